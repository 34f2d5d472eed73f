"""What of a run is public: names of data and backbones, settings by name, and the last look."""

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_hub import edit_config
from test_package import PEOPLE, content, finished

from clipreid.config import RunConfig
from clipreid.data.crops import Split
from clipreid.data.fingerprint import fingerprint
from clipreid.errors import UserError
from clipreid.hub import HEADS, save_identities
from clipreid.hub.leaks import check_paths
from clipreid.hub.package import CARD, package
from clipreid.hub.public import DataNames, public_backbone, public_config, public_metrics, public_settings
from clipreid.methods import clip_reid


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished(tmp_path / "run")


# Names ------------------------------------------------------------------------------------------------------------

parts = st.text(st.characters(categories=("L", "N"), include_characters="-_ ()"), min_size=4, max_size=12)


@given(st.sampled_from(["folder", "csv", "hub", "market1501", "msmt17"]), st.lists(parts, min_size=2, max_size=4))
def test_no_part_of_a_place_is_in_a_public_name(reader: str, place: list[str]) -> None:
    path = "/" + "/".join(place)
    for name in (f"{reader}:{path}", f"{reader}:{path} (val)", f"{reader}:{path} (cross-camera)"):
        public = DataNames({"run": {"data": [name.split(" (val)")[0]]}, "local": [f"{reader}:{path}"]}, {name: {}})(
            name
        )
        assert "/" not in public
        head = public.removesuffix(" (val)").removesuffix(" (cross-camera)")
        assert re.fullmatch(rf"({reader}|own data)( \d+)?", head)


def test_data_names_stay_apart_and_keep_our_remarks() -> None:
    config = {"run": {"data": ["folder:a/one", "csv:two.csv"], "test": ["market1501:/data/M"]}, "local": ["hub:a/b"]}
    names = DataNames(
        config,
        {
            "market1501:/data/M (val)": {},
            "hub:x/y": {},
            "hub:a/b": {},
            "folder:/x (Bob)": {},
            "synthetic:new-cameras (val)": {},
        },
    )
    assert names("folder:a/one") == "own data 1"
    assert names("csv:two.csv") == "own data 2"
    assert names("market1501:/data/M (val)") == "market1501 (val)"
    assert names("hub:x/y") == "hub:x/y"
    assert names("hub:a/b") == "own data 3"  # a folder, as training noted
    assert names("folder:/x (Bob)") == "own data 4"
    assert names("synthetic:new-cameras (val)") == "synthetic:new-cameras (val)"


def test_two_places_of_one_public_set_stay_two() -> None:
    specs = ["market1501:/data/aa11", "market1501:/data/bb22", "msmt17:/data/cc33"]
    figures = {spec: {"stage2": {"mAP": nth / 10}} for nth, spec in enumerate(specs)}
    config = {
        "backbone": {"name": "tiny-clip"},
        "method": "clip_reid",
        "config": {},
        "stages": ["stage2"],
        "data": {"names": specs},
        "run": {"data": specs},
        "fingerprint": {spec: {"train": {"images": nth}} for nth, spec in enumerate(specs)},
    }
    names = DataNames(config, figures)
    public, metrics = public_config(config, names, "tiny-clip"), public_metrics(figures, names)
    expected = ["market1501 1", "market1501 2", "msmt17"]
    assert metrics == dict(zip(expected, figures.values(), strict=True))
    assert public["data"]["names"] == public["run"]["data"] == [*public["fingerprint"]] == expected
    again = DataNames(public, metrics)  # of a clone, which is published in turn
    assert [again(name) for name in expected] == expected


def test_names_that_are_public_already_stay_beside_new_ones() -> None:
    """A clone that was scored on further data."""
    metrics = {"own data 1": {}, "market1501": {}, "folder:/a": {}, "folder:/b": {}, "market1501:/c": {}}
    names = DataNames({}, metrics)
    assert [names(name) for name in metrics] == ["own data 1", "market1501", "own data 2", "own data 3", "market1501 1"]


# Settings, by type ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """One setting of each type that a method may have."""

    count: int = 1
    share: float = 0.5
    flag: bool = False
    perhaps: int | None = None
    sizes: tuple[int, int] = (1, 2)
    many: tuple[float, ...] = ()
    word: Literal["one", "two"] = "one"
    word_or_none: Literal["one", "two"] | None = None
    words: tuple[Literal["one", "two"], ...] = ()
    described: Annotated[Literal["one"] | None, "of a flag"] = None
    text: str = ""
    text_or_none: str | None = None
    texts: tuple[str, ...] = ()
    file: Path | None = None
    files: tuple[Path, ...] = ()
    table: dict[str, int] = field(default_factory=dict)
    sentence: Annotated[str, "of a flag"] = ""
    anything: Any = None
    plain: object = None


PUBLIC = ("count", "share", "flag", "perhaps", "sizes", "many", "word", "word_or_none", "words", "described")


def test_settings_are_published_by_type_and_texts_and_paths_never() -> None:
    values = {"count": 3, "share": 1, "flag": True, "perhaps": 4, "sizes": [3, 4], "many": [0.1, 0.2], "word": "two",
              "word_or_none": "one", "words": ["two", "one"], "described": "one"}  # fmt: skip
    private = {each.name: f"/srv/{PEOPLE[0]}" for each in fields(Toy) if each.name not in PUBLIC}
    assert public_settings({**values, **private, "unknown": "x"}, Toy, "config") == values
    assert public_settings({}, Toy, "config") == {}  # what an earlier version did not write is not made up
    empty = {"perhaps": None, "word_or_none": None, "described": None, "many": [], "words": []}
    assert public_settings(empty, Toy, "config") == empty


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("word", "Aurelia"),
        ("word", "/srv/crops"),
        ("word", None),
        ("word", 1),
        ("word", ["one"]),
        ("word", {"one": 1}),
        ("word_or_none", "three"),
        ("words", ["one", "/srv/crops"]),
        ("words", "one"),
        ("words", [["one"]]),
        ("described", "two"),
        ("count", "one"),
        ("count", True),
        ("count", 0.5),
        ("share", "0.5"),
        ("share", float("nan")),
        ("flag", "yes"),
        ("flag", 1),
        ("perhaps", "none"),
        ("sizes", [1, "/srv/crops"]),
        ("sizes", [1]),
        ("many", ["one"]),
        ("many", {"/srv/crops": 1}),
    ],
)
def test_a_text_in_the_place_of_a_number_or_a_word_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config.json: config.{name} is .* never writes there, and nothing else is"):
        public_settings({name: value}, Toy, "config")


def test_of_the_flags_of_a_run_no_text_is_published() -> None:
    private = {"backbone", "data", "test", "output", "init", "pattern", "columns", "unknown", "noun", "push"}
    everything = {each.name: "x" for each in fields(RunConfig) if each.name in private}
    assert set(everything) == private
    assert public_settings(everything, RunConfig, "run") == {}
    values = json.loads(json.dumps(asdict(clip_reid.Config()) | {"occluder_folder": "/srv/cutouts"}))
    public = public_settings(values, clip_reid.Config, "config")
    assert public == {name: value for name, value in values.items() if name != "occluder_folder"}


# Backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hf:./clip", "hf:/w/clip", "hf:clip", "timm:vit_tiny/w.pt", "osnet:x1_0/w.pth", "open_clip:/w", "hf:a/b/c"]
)
def test_backbones_that_nobody_else_can_have_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"lies on this machine, .* --base-model, such as hf:openai"):
        public_backbone({"backbone": {"name": name}})


def test_a_name_without_its_source() -> None:
    with pytest.raises(UserError, match=r"^openai/clip-b is no name of a backbone: give hf:OWNER/NAME, open_clip:"):
        public_backbone({"backbone": {"name": "openai/clip-b"}})


def test_a_folder_that_looks_like_a_name_of_the_hub_was_noted_in_training() -> None:
    assert public_backbone({"backbone": {"name": "hf:models/clip"}, "local": []}) == "hf:models/clip"
    with pytest.raises(UserError, match="lies on this machine"):
        public_backbone({"backbone": {"name": "hf:models/clip"}, "local": ["hf:models/clip"]})


# The last look ----------------------------------------------------------------------------------------------------


def test_a_path_that_got_in_by_another_way_is_found(run: Path) -> None:
    """--noun is the user's own word, and published."""
    edit_config(run, lambda config: config["data"].update(noun=f"person of {run}"))
    with pytest.raises(UserError, match=r"README.md would show a path of this machine \(.*run\).* noun"):
        package(run, "me/demo")


def test_a_name_that_got_in_by_another_way_is_found(run: Path) -> None:
    for noun in ("Aurelia Quist", f"twin of {PEOPLE[1]}", "person, Kunigunde Vey"):
        edit_config(run, lambda config, noun=noun: config["data"].update(noun=noun))
        with pytest.raises(UserError, match=r"would show the name of a training identity .* noun"):
            package(run, "me/demo")


def test_honest_runs_are_not_taken_for_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named like the repository, a home at /root, data at /a; identities called like words of the card."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/root")
    Path("alice").mkdir()
    run = finished(Path("alice/demo"), data="market1501:/a")
    edit_config(run, lambda config: config["data"].update(noun="class A car"))
    words = ["1", "A", "1501", "Vey", "person", "adam", "cosine", "Results", "market1501", "de", "tiny", "clip", "LoRA"]
    save_identities(run, {"prompts": torch.zeros(len(words), 1)}, words)
    card = content(package(run, "alice/demo"), CARD).decode()
    assert 'clipreid.load("alice/demo")' in card
    assert package(run, "alice/rootnet")
    assert package(run, "a/a")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("crops of /srv/data/x.jpg", True),
        ("(/srv/data)", True),
        ("file:///srv/data, and", True),
        ('"/srv/d\\u00e4ta"', True),
        ("in /srv/data.", True),
        ("/srv/database", False),
        ("/srv/data-2", False),
        ("/srv/data.bak", False),
        ("https://example.org/srv/data", False),
        ("~/srv/data", False),
        ("</srv>", False),
    ],
)
def test_only_whole_paths_count(tmp_path: Path, text: str, found: bool) -> None:
    specs = (
        ["folder:/srv/data", "csv:/srv/däta", "market1501:/srv"]
        if "</" in text
        else ["folder:/srv/data", "csv:/srv/däta"]
    )
    header = json.dumps({"__metadata__": {"note": text}}, ensure_ascii=False).encode()
    weights = len(header).to_bytes(8, "little") + header
    (tmp_path / "w.safetensors").write_bytes(weights + b"/srv/data")  # values are no text
    files: list[dict[str, bytes | Path]] = [{CARD: text.encode()}]
    if '"' not in text:
        files += [{HEADS: weights}, {HEADS: tmp_path / "w.safetensors"}]
    for each in files:
        if found:
            with pytest.raises(UserError, match=r"would show a path of this machine \(/srv/d.ta\)"):
                check_paths(each, tmp_path / "run", specs)
        else:
            check_paths(each, tmp_path / "run", specs)


# The fingerprint of data ------------------------------------------------------------------------------------------


def split_of(root: str, order: list[int], camera: int = 1) -> Split:
    images = [{"path": f"{root}/{i}.jpg"} for i in order]
    return Split.from_columns("train", images, [f"p{i // 2}" for i in order], [camera] * len(order))


def test_a_fingerprint_is_of_the_data_not_of_where_they_lie() -> None:
    one = fingerprint(split_of("/a", [0, 1, 2, 3]))
    assert (one["images"], one["identities"], one["cameras"]) == (4, 2, 1)
    assert fingerprint(split_of("/elsewhere/b", [3, 1, 0, 2])) == one
    assert fingerprint(split_of("/a", [0, 1, 2]))["hash"] != one["hash"]
    assert fingerprint(split_of("/a", [0, 1, 2, 3], camera=2))["hash"] != one["hash"]
    assert fingerprint(replace(split_of("/a", [0, 1, 2, 3]), name="query")) == one
