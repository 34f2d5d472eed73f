"""The official data sets, each a declaration: where the images lie, what their names say, and what was published.

Where every count comes from stands in docs/data.md. A count that no source gives is None.
"""

import re
from dataclasses import replace

from clipreid.data.folders import Adjust, Counts, Layout
from clipreid.data.listings import CaptionFile, SplitFile, TextLists
from clipreid.data.patterns import MARKET, Crop, Pattern
from clipreid.data.viewpoints import Viewpoints

AERIAL, GROUND, WEARABLE = 0, 1, 2  # views, as the aerial-ground protocols number them
WITHDRAWN = (
    "DukeMTMC was withdrawn by its authors in 2019: the people in it had not agreed to it. A local copy is read; "
    "do not pass it on, and think about whether you need it (docs/data.md)"
)
# the names of Market-1501, but no identity number has a special meaning
PLAIN = replace(MARKET, name="identity_camera", junk=frozenset(), distractors=frozenset())
MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
TESTED = ("train", "query", "gallery")
VERI_VIEWS = Viewpoints(("keypoint_train.txt", "keypoint_test.txt"))


def _train_apart(split: str, crop: Crop) -> Crop:
    """For sets that number the people of train and of test from 0: the same number, another person."""
    return crop._replace(identity=f"train-{crop.identity}") if split == "train" else crop


def _cargo_view(split: str, crop: Crop) -> Crop:
    return crop._replace(view=AERIAL if crop.camera <= 5 else GROUND)


def _agreid_view(split: str, crop: Crop) -> Crop:
    return crop._replace(view={0: AERIAL, 2: WEARABLE, 3: GROUND}.get(crop.camera, -1))


def _market_like(
    name: str, official: dict[str, Counts], people: str, folder: str = "", protocol: str = "market1501"
) -> Layout:
    notice = WITHDRAWN if people == "dukemtmc" else ""
    folders = {split: folder + below for split, below in MARKET_FOLDERS.items()}
    return Layout(name, folders, PLAIN, protocol, official=official, notice=notice, people=people)


def _msmt17(name: str, train: str, test: str, notice: str = "") -> Layout:
    """Wei et al., "Person Transfer GAN", CVPR 2018. The published training set is list_train and list_val together."""
    return Layout(
        name,
        {"train": train, "query": test, "gallery": test},
        Pattern(
            "msmt17",
            r"^(?:\S*/)?\d+_\d+_(?P<camera>\d+)_\S* (?P<identity>\d+)$",
            "0000/0000_000_01_0303morning_0015_0.jpg 0",
        ),
        protocol="market1501",
        official={"train": (32_621, 1_041, 15), "query": (11_659, 3_060, 15), "gallery": (82_161, 3_060, 15)},
        listing=TextLists(
            {
                "train": ("list_train.txt", "list_val.txt"),
                "query": ("list_query.txt",),
                "gallery": ("list_gallery.txt",),
            }
        ),
        adjust=_train_apart,
        notice=notice,
        people="msmt17",
    )


def _cuhk03_classic(kind: str, number: int) -> Layout:
    """Li et al., "DeepReID", CVPR 2014: 20 splits with 100 people for testing; cameras are 1 and 2 of each pair."""
    return Layout(
        f"cuhk03-classic-{kind}{f'-{number}' if number > 1 else ''}",
        dict.fromkeys(TESTED, f"images_{kind}"),
        Pattern("cuhk03", r"^(?P<identity>\d_\d+)_(?P<camera>\d)_\d+\.\w+$", "1_001_2_06.png"),
        protocol="cuhk03-classic",
        official={"train": (None, 1_367, 2), "query": (None, 100, 2), "gallery": (None, 100, 2)},
        listing=SplitFile(f"splits_classic_{kind}.json", number),
        people="cuhk03",
    )


def _vehicleid(size: int, images: int | None = None) -> Layout:
    """Liu et al., "Deep Relative Distance Learning", CVPR 2016; the protocol draws a gallery from the test."""
    test, counts = (f"train_test_split/test_list_{size}.txt",), (images, size, None)
    return Layout(
        "vehicleid" if size == 800 else f"vehicleid-{size}",
        dict.fromkeys(TESTED, "image"),
        Pattern("vehicleid", r"^\d+ (?P<identity>\d+)$", "0000001 1"),
        protocol="vehicleid",
        noun="vehicle",
        official={"train": (113_346, 13_164, None), "query": counts, "gallery": counts},
        listing=TextLists(
            {"train": ("train_test_split/train_list.txt",), "query": test, "gallery": test}, suffix=".jpg"
        ),
        people="vehicleid",
    )


def _prcc(name: str, query: str, protocol: str) -> Layout:
    """Yang et al., "Person Re-identification by Contour Sketch", TPAMI 2021.

    Cameras A and B saw the same clothes, camera C others. rgb/val shows the people of rgb/train, and is not read.
    """
    folders = {"query": "ABC".index(query) + 1, "gallery": 1}  # there the folder names the camera, in train the image

    def adjust(split: str, crop: Crop) -> Crop:
        camera = folders.get(split, crop.camera)
        return crop._replace(camera=camera, clothes=f"{crop.identity}_{'2' if camera == 3 else '1'}")

    return Layout(
        name,
        {"train": "rgb/train", "query": f"rgb/test/{query}", "gallery": "rgb/test/A"},
        Pattern("prcc", r"^(?P<identity>\d+)/(?:(?P<camera>[ABC])_)?[^/]+$", "001/A_cropped_rgb001.jpg"),
        protocol=protocol,
        official={"train": (17_896, 150, 3), "query": (None, 71, 1), "gallery": (None, 71, 1)},
        adjust=adjust,
        people="prcc",
    )


def _captioned(
    name: str,
    listing: CaptionFile,
    pattern: Pattern,
    official: dict[str, Counts],
    adjust: Adjust | None = None,
    people: str = "",
) -> Layout:
    """The images lie below imgs/; the official counts say which splits there are, of the query its captions."""
    folders = dict.fromkeys(official, "imgs")
    return Layout(
        name, folders, pattern, "text-to-image", official=official, listing=listing, adjust=adjust, people=people
    )


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "market1501",  # Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015
            MARKET_FOLDERS,
            MARKET,  # -1 is junk; 0000 are distractors: the 751st "identity" of the gallery
            protocol="market1501",
            official={"train": (12_936, 751, 6), "query": (3_368, 750, 6), "gallery": (15_913, 751, 6)},
        ),
        _msmt17("msmt17", "train", "test"),
        _msmt17(
            "msmt17-v2",
            "mask_train_v2",
            "mask_test_v2",
            "version 2, with blurred faces: figures are not those of version 1",
        ),
        # Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017
        *(
            _market_like(
                f"cuhk03-np-{kind}",
                {"train": (train, 767, 2), "query": (1_400, 700, 2), "gallery": (gallery, 700, 2)},
                "cuhk03",
                f"{kind}/",
                protocol="cuhk03-np",
            )
            for kind, train, gallery in (("labeled", 7_368, 5_328), ("detected", 7_365, 5_332))
        ),
        *(_cuhk03_classic(kind, number) for kind in ("labeled", "detected") for number in range(1, 21)),
        # Zheng et al., "Unlabeled Samples Generated by GAN", ICCV 2017; 408 people are in the gallery only
        _market_like(
            "dukemtmc",
            {"train": (16_522, 702, 8), "query": (2_228, 702, 8), "gallery": (17_661, 1_110, 8)},
            "dukemtmc",
        ),
        # Miao et al., "Pose-Guided Feature Alignment for Occluded Person Re-Identification", ICCV 2019
        _market_like(
            "occluded-duke",
            {"train": (15_618, 702, 8), "query": (2_210, 519, 8), "gallery": (17_661, 1_110, 8)},
            "dukemtmc",
        ),
        Layout(
            "p-dukemtmc",  # Zhuo et al., "Occluded Person Re-identification", ICME 2018
            {"train": "train", "query": "test/occluded_body_images", "gallery": "test/whole_body_images"},
            Pattern("p-dukemtmc", r"^(?:.*/)?(?P<identity>\d+)_c?(?P<camera>\d+)_[^/]*$", "0001/0001_2_0046182.jpg"),
            protocol="no-cameras",
            official={"train": (12_927, 665, None), "query": (2_163, 634, None), "gallery": (9_053, 634, None)},
            notice=WITHDRAWN,
            people="dukemtmc",
        ),
        Layout(
            "occluded-reid",  # Zhuo et al., as above; taken by hand-held cameras without numbers
            {"query": "occluded_body_images", "gallery": "whole_body_images"},
            Pattern("occluded-reid", r"^(?:.*/)?(?P<identity>\d+)(?:_[^/]*|/[^/]+)$", "001/001_01.tif"),
            protocol="no-cameras",
            official={"query": (1_000, 200, None), "gallery": (1_000, 200, None)},
        ),
        Layout(
            "veri",  # Liu et al., "A Deep Learning-Based Approach to Progressive Vehicle Re-identification", ECCV 2016
            {"train": "image_train", "query": "image_query", "gallery": "image_test"},
            Pattern(
                "veri",
                r"^(?:.*/)?(?P<identity>-1|\d+)_c(?P<camera>\d+)(?:s\d+)?_[^/]*?(?: view (?P<view>\d+))?$",
                "0001_c001_00016450_0.jpg",
            ),
            protocol="veri",
            noun="vehicle",
            listing=VERI_VIEWS,
            remarks=VERI_VIEWS.notes,
            official={"train": (37_778, 576, None), "query": (1_678, 200, None), "gallery": (11_579, 200, None)},
        ),
        _vehicleid(800, 6_493),
        _vehicleid(1600, 13_377),
        _vehicleid(2400, 19_777),
        *(_vehicleid(size) for size in (3200, 6000, 13164)),
        _prcc("prcc", "C", "cloth-changing"),
        _prcc("prcc-same", "B", "same-clothes"),
        Layout(
            "ltcc",  # Qian et al., "Long-Term Cloth-Changing Person Re-identification", ACCV 2020
            {"train": "train", "query": "query", "gallery": "test"},
            Pattern(
                "ltcc", r"^(?:.*/)?(?P<clothes>(?P<identity>\d+)_\d+)_c(?P<camera>\d+)_[^/]*$", "001_1_c10_015833.png"
            ),
            protocol="cloth-changing",
            official={"train": (9_576, 77, None), "query": (493, 75, None), "gallery": (7_050, 75, None)},
        ),
        _captioned(
            "cuhk-pedes",  # Li et al., "Person Search with Natural Language Description", CVPR 2017
            CaptionFile("reid_raw.json", image="file_path"),
            Pattern("cuhk-pedes", r" (?P<identity>\d+)$", "cam_a/004_45.png 1"),
            {
                "train": (34_054, 11_003, None),
                "val": (3_078, 1_000, None),
                "query": (6_156, 1_000, None),
                "gallery": (3_074, 1_000, None),
            },
        ),
        _captioned(
            "icfg-pedes",  # Ding et al., "Semantically Self-Aligned Network", 2021; made from MSMT17
            CaptionFile("ICFG[-_]PEDES.json", image="file_path"),
            Pattern(
                "icfg-pedes",
                r"^(?:\S*/\d+_\d+_(?P<camera>\d+)_\S*|.*) (?P<identity>\d+)$",
                "train/0000/0000_000_01_0303morning_0015_0.jpg 0",
            ),
            {"train": (34_674, 3_102, None), "query": (19_848, 1_000, None), "gallery": (19_848, 1_000, None)},
            _train_apart,
            "msmt17",
        ),
        _captioned(
            "rstpreid",  # Zhu et al., "DSSL", ACM MM 2021; made from MSMT17
            CaptionFile("data_captions.json", image="img_path"),
            Pattern("rstpreid", r"^(?:\S*_c(?P<camera>\d+)_\S*|.*) (?P<identity>\d+)$", "0000_c14_0031.jpg 0"),
            {
                "train": (18_505, 3_701, None),
                "val": (1_000, 200, None),
                "query": (2_000, 200, None),
                "gallery": (1_000, 200, None),
            },
            people="msmt17",
        ),
        Layout(
            "ag-reid-v2",  # Nguyen et al., "AG-ReID.v2", IEEE TIFS 2024
            {"train": "train_all", "query": "query", "gallery": "gallery"},
            Pattern(
                "ag-reid-v2",
                r"^(?:.*/)?(?P<identity>P\d+T\d+A\d+)C(?P<camera>\d+)F\d+\.\w+$",
                "P0001T04041A0/P0001T04041A0C0F31.jpg",
            ),
            protocol="aerial-ground",
            official={"train": (None, 807, None)},
            adjust=_agreid_view,
        ),
        Layout(
            "cargo",  # Zhang et al., "View-decoupled Transformer", CVPR 2024; rendered people
            {"train": "train", "query": "query", "gallery": "gallery"},
            Pattern(
                "cargo",
                r"^(?:.*/)?Cam(?P<camera>\d+)_[a-z]+_(?P<identity>\d+)_[^/]*$",
                "Cam2/Cam2_day_2519_320.jpg",
            ),
            protocol="aerial-ground",
            official={"train": (51_451, 2_500, None), "query": (312, None, None), "gallery": (50_712, None, None)},
            adjust=_cargo_view,
        ),
    )
}


def variants(name: str) -> list[str]:
    """The numbered variants of a name: of `vehicleid` those are `vehicleid-1600`, ..."""
    return [other for other in LAYOUTS if re.fullmatch(re.escape(name) + r"-\d+", other)]


def same_people(spec_a: str, spec_b: str) -> str | None:
    """The name shared by two official sets (`NAME:ROOT` or `NAME`) that show the same individuals, such as "cuhk03".

    Each numbers them in its own way: together, one individual is several identities. None where they are different
    people, or nothing is known, as of `folder:`, `csv:`, `hub:` and `synthetic`.
    """
    first, second = (LAYOUTS.get(spec.partition(":")[0]) for spec in (spec_a, spec_b))
    if first is None or second is None:
        return None
    shared = first.people or first.name
    return shared if shared == (second.people or second.name) else None


def plain_names() -> list[str]:
    """All names but the numbered variants."""
    numbered = {variant for name in LAYOUTS for variant in variants(name)}
    return [name for name in LAYOUTS if name not in numbered]
