"""`clipreid export`: the flags; the work is in `clipreid.export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from clipreid.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run for other programs: as a model of transformers, or as an ONNX graph.

    merged: config.json, model.safetensors and preprocessor_config.json, which transformers loads without clipreid or
    peft; README.md there shows how. onnx: model.onnx takes normalised pixels [N, 3, H, W] and gives features [N, D];
    preprocessing.json beside it says how images are prepared.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder, such as runs/demo, or the name of a published run, OWNER/NAME; for onnx also an untrained model by
    its name, such as tiny-clip, timm:..., osnet:x1_0/FILE"""
    format: Literal["merged", "onnx"]
    """merged: safetensors in transformers' layout; onnx: needs pip install "clipreid[onnx]" """
    output: Annotated[Path, arg(metavar="DIR")]
    """New or empty folder"""
    strength: Annotated[float, arg(metavar="S")] = 1.0
    """How much of what training changed takes part, from 0 (zero-shot) to 1 (as trained)"""

    def __call__(self) -> None:
        export(self)


def export(flags: Export) -> None:
    """`clipreid export`.

    Raises:
        UserError: the run, the format or the folder cannot be used.
    """
    from clipreid.backbones.colour import COLOUR
    from clipreid.cli.scoring import Asked
    from clipreid.disk import check_place
    from clipreid.export import check_merged, check_onnx, export_merged, export_onnx
    from clipreid.hub import load, load_untrained
    from clipreid.hub.checks import read_settings
    from clipreid.strength import check_strength

    check_strength(flags.strength)
    check_place("--output", flags.output)
    if flags.output.exists() and any(flags.output.iterdir()):
        raise UserError(f"--output {flags.output} is in use: give a new or an empty folder")
    if flags.format == "onnx":
        check_onnx()
    asked = Asked.find(flags.run)
    if asked.name == COLOUR and asked.folder is None:
        raise UserError(f"{COLOUR} has no weights to export: give a run, or a backbone such as tiny-clip")
    if asked.folder is None:
        if flags.format == "merged":
            raise UserError(
                f"--format merged: {asked.name} is untrained and has no adapter to merge: use its own weights, or take "
                "--format onnx"
            )
        model = load_untrained(asked.name, strength=flags.strength)
    else:
        record = read_settings(asked.folder).record
        if flags.format == "merged":
            check_merged(record)
        model = load(asked.folder, strength=flags.strength)
    if model.sides:
        print(f"side information ({' and '.join(model.sides)}): the mean embedding, as for unknown cameras and views")
    width = sum(model.widths.values())
    size = "x".join(map(str, model.image_size))
    if flags.format == "merged":
        export_merged(model, flags.output, flags.run.rstrip("/").rpartition("/")[2])
        print(f"{flags.output}: transformers' layout, crops {size}; README.md there shows how to load it")
        return
    worst = export_onnx(model, flags.output)
    shapes = f"pixels [N, 3, {', '.join(map(str, model.image_size))}] -> features [N, {width}]"
    print(f"{flags.output / 'model.onnx'}: {shapes}; differs from the run by {worst:.1g} at most in onnxruntime")
