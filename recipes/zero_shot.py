"""What backbones know before any training: models x data sets, with what each costs.

    python recipes/zero_shot.py                                                    # tiny-clip on synthetic
    python recipes/zero_shot.py --data market1501:/data/Market-1501 msmt17:/data/MSMT17 --output zero_shot.csv \\
        --backbones open_clip:ViT-B-16-quickgelu/openai hf:google/siglip2-base-patch16-256 \\
        timm:vit_base_patch14_dinov2.lvd142m timm:vit_pe_core_base_patch16_224.fb osnet:x1_0/osnet_x1_0_msmt17.pth

Each backbone gets its own mean, std and interpolation and the *whole* crop, 256x128 (252x126 for patches of 14), its
positions resized to that; no centre crop, no square. Preparation decides such tables: the code released with a
published one (arXiv 2601.20598) normalises the crops with ImageNet's mean and std, and its CLIP and PE wrappers then
hand that float tensor to torchvision's ToPILImage. That multiplies by 255 and keeps the lowest byte, so whatever is
below 0 or above 1 wraps around: less than a quarter of the grey levels come through. CLIP's own preparation then cuts
the middle out of what is left, half of the body. SigLIP2 and DINOv2 get sound pixels there. CLIP's rows near chance in
that table are what this gives; `tests/recipes/test_zero_shot.py` shows the effect on one and the same tower.

The columns: `protocol` says which images count as junk (each data set has its own; a folder with `test/` alone is
scored cross-camera; figures under two protocols cannot be compared); `feature` is the better of stage 2's concatenation
and the projection (for towers without text: their own pooling); `parameters` of the image tower; `gflops` multiply-adds
per crop; `ms` per crop, see --batch-size, --threads. The backbone `colour` is the floor: stripes of colour, no network.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from clipreid.backbones import ImageTower
from clipreid.config import none_is
from clipreid.data import ReIDData, load_data, reader_flags
from clipreid.disk import whole_file
from clipreid.errors import UserError, print_user_errors
from clipreid.evaluation import format_table, get_protocol
from clipreid.evaluation.cost import gflops, latency, parameters
from clipreid.evaluation.score import score
from clipreid.flags import parse_flags
from clipreid.hub import load_untrained
from clipreid.model import ReIDModel
from clipreid.training.crop import check_whole_patches
from clipreid.training.harness import check_writable, set_threads

Names = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]  # --data A B and --data A --data B are the same


@dataclass(frozen=True)
class ZeroShot:
    backbones: Annotated[Names, none_is("tiny-clip")] = ()
    """tiny-clip | open_clip:MODEL/TAG | hf:NAME | timm:NAME | osnet:x1_0/FILE | colour (the floor), one or more"""
    data: Annotated[Names, none_is("synthetic")] = ()
    """synthetic | market1501:/path | folder:/path | ..., one or more"""
    output: Annotated[Path | None, none_is("the table is only printed")] = None
    """Also write the table to this CSV file"""
    image_size: Annotated[tuple[int, int] | None, none_is("each backbone's, 256 128 or nearly so")] = None
    """Height and width of the crops in pixels"""
    batch_size: int = 32
    """Crops at once, for the time per crop"""
    threads: Annotated[int | None, none_is("all cores")] = None
    """CPU threads"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0
    """Of the noise that the time is taken with; nothing else is random"""
    protocol: Annotated[str | None, none_is("each data set's own")] = None
    """market1501 | cross-camera | no-cameras | ..., for all data sets"""
    pattern: Annotated[str | None, none_is("the patterns of docs/own-images.md")] = None
    """Regular expression for file names of folder: data, with the groups identity, camera, view"""
    columns: Annotated[str | None, none_is("the names of docs/data.md")] = None
    """Which column is which in csv:, hub: and coco: data, where a table has other names: identity=name,..."""
    unknown: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], none_is("the words of docs/data.md")] = ()
    """A further identity that means "unknown", repeatable, or several with commas (tables and yolo: data)"""
    skip_bad: bool = False
    """Leave out images that cannot be decoded"""


def costs(model: ReIDModel, config: ZeroShot) -> dict[str, Any]:
    """The columns that do not depend on the data."""
    size, tower = model.image_size, model.image
    return {
        "size": f"{size[0]}x{size[1]}",
        "parameters": parameters(tower),
        "gflops": gflops(tower, size, config.device),
        "ms": latency(tower, size, config.batch_size, config.device),
    }


def scores(model: ReIDModel, data: ReIDData, config: ZeroShot) -> dict[str, Any]:
    """The columns that do: the protocol, the better feature, its mAP and rank-1."""
    found = score(data, model, skip_bad=config.skip_bad, protocol=config.protocol).as_zero_shot()
    report = found.reports[found.feature]
    feature = model.tower.pooling if isinstance(model.tower, ImageTower) else found.feature
    return {"protocol": report.protocol, "feature": feature, **{key: report.metrics[key] for key in ("mAP", "rank1")}}


@contextmanager
def leave_out_failures(failed: list[str], what: str) -> Iterator[None]:
    """One backbone or data set that cannot be used does not cost the others their figures."""
    try:
        yield
    except UserError as error:
        failed.append(str(error))
        print(f"{what}: left out, see below", flush=True)


def main(config: ZeroShot) -> None:
    torch.manual_seed(config.seed)
    set_threads(config.threads)
    if config.output is not None:
        check_writable(config.output, "zero_shot.csv")
    if config.protocol is not None:
        get_protocol(config.protocol)
    if config.batch_size < 1:
        raise UserError(f"--batch-size {config.batch_size}: must be at least 1")
    names = [name for given in config.backbones for name in given] or ["tiny-clip"]
    specs = [spec for given in config.data for spec in given] or ["synthetic"]
    table: list[dict[str, Any]] = []
    failed: list[str] = []
    tests: list[ReIDData] = []
    for spec, flags in reader_flags(specs, config.pattern, config.columns, config.unknown).items():
        with leave_out_failures(failed, spec):
            tests.append(load_data(spec, **flags))
    if not tests:
        raise UserError("no data is left to test on:\n  " + "\n  ".join(failed))
    for name in names:  # one backbone in memory at a time
        with leave_out_failures(failed, name):
            model = load_untrained(name, image_size=config.image_size).to(config.device)
            check_whole_patches(config.image_size, None, model.source[0])
            cost = costs(model, config)
            for data in tests:
                with leave_out_failures(failed, f"{name} on {data.name}"):
                    table.append({"data": data.name, "backbone": name, **scores(model, data, config), **cost})
                    row = table[-1]
                    print(f"{name} on {data.name} ({row['protocol']}): mAP {row['mAP']:.1%}", flush=True)
    by_data = [row for name in dict.fromkeys(data.name for data in tests) for row in table if row["data"] == name]
    print(f"\n{format_table(by_data)}")
    print(f"\nms: per crop, in batches of {config.batch_size}, {torch.get_num_threads()} threads, {config.device}")
    if config.output is not None and table:
        with whole_file(config.output) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        print(f"written: {config.output}")
    if failed:
        raise UserError("left out:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    with print_user_errors():
        main(parse_flags(ZeroShot, sys.argv[1:], description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
