"""Checkpoints published for the original CLIP-ReID -> run folders that load, embed and are evaluated like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

import clipreid
from clipreid.backbones.imageonly import check_weights, read_weights
from clipreid.backbones.imported import IMPORTED, ImportedBackbone
from clipreid.backbones.openclip import CLIP_NAMES, translate
from clipreid.backbones.vision import VisionConfig
from clipreid.disk import check_place, whole_folder
from clipreid.errors import UserError
from clipreid.hub import CONFIG, save_identities, save_model
from clipreid.hub.files import METRICS, write_json
from clipreid.hub.folder import identity_state
from clipreid.methods import build, clip_reid
from clipreid.model import ReIDModel

SIZES = ((256, 128), (256, 256))  # the published crops: persons, vehicles
BLOCKS = "transformer.resblocks."
NECKS = {
    "bottleneck.": "necks.final.norm.",
    "bottleneck_proj.": "necks.projection.norm.",
    "classifier.": "necks.final.classifier.",
    "classifier_proj.": "necks.projection.classifier.",
}
SIDES = {  # rows of a released `cv_embed` -> (flags, what they are)
    6: (("--sie camera", "Market-1501"),),
    8: (("--sie camera", "DukeMTMC, Occluded-Duke"), ("--sie view", "VeRi")),
    15: (("--sie camera", "MSMT17"),),
    20: (("--sie camera", "VeRi"),),
    160: (("--sie camera+view --views 8", "VeRi"),),
}
DROPPED = ("text_encoder.", "prompt_learner.")  # not needed once trained; only the learned tokens are kept


def import_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    sie: str | None = None,
    sie_coefficient: float = 1.0,
    views: int | None = None,
) -> ReIDModel:
    """A ViT checkpoint of CLIP-ReID (arXiv 2211.13977, its released code's state dict) as a finished run folder.

    Everything is read off the shapes: width, depth, embedding, patch; heads are width / 64, as in all of OpenAI's
    ViTs; crop and stride are what makes the number of positions. Text encoder and prompts are dropped, but for the
    learned tokens, which go to `identities.safetensors` with the classifiers.

    Args:
        checkpoint: a torch or safetensors file of plain tensors, `module.` in front of the names or not.
        output: the run folder to make.
        image_size: (height, width) in pixels; None: 256x128 or 256x256, whichever fits.
        stride: of the patches in pixels; None: the one that fits.
        sie: what a `cv_embed` embeds: "camera", "view" or "camera+view"; its rows do not say, so that None is refused
            where there are several. Cameras get the numbers 1, 2, ... as in the file names of the benchmarks, views
            0, 1, ...
        sie_coefficient: that it was trained with; the released configs say 1.0.
        views: how many, for "camera+view".

    Returns:
        The model, in eval mode.

    Raises:
        UserError: not a plain state dict, not a CLIP-ReID ViT, shapes that do not fit or fit several readings, an
            `output` in use.
    """
    check_place("--output", output)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output} is in use: give a new or an empty folder")
    state = read_weights(str(checkpoint), "import")
    _check_names(state, checkpoint)
    tower = {k.removeprefix("image_encoder."): t.float() for k, t in state.items() if k.startswith("image_encoder.")}
    vision = read_shape(tower, checkpoint, image_size, stride)
    cameras, seen = _sides(state.get("cv_embed"), sie, views, checkpoint)
    kind: Any = "none" if "cv_embed" not in state else sie or "camera"
    config = clip_reid.Config(
        tuning="full",
        sie=kind,
        sie_coefficient=sie_coefficient,
        cameras=cameras,
        views=seen,
        identities_per_batch=16,
        images_per_identity=4,
    )
    count = len(state.get("classifier.weight", ()))
    model = build(clip_reid, ImportedBackbone(vision), config, count).eval()
    projection = tower.pop("proj").T
    found = {f"image.{k}": t for k, t in translate(tower, CLIP_NAMES).items()}
    found["image.visual_projection.weight"] = projection
    for old, new in NECKS.items():
        found |= {new + k.removeprefix(old): t for k, t in state.items() if k.startswith(old)}
    if "cv_embed" in state:
        found["hooks.side.table"] = state["cv_embed"].flatten(1)
    check_weights(model, found, f"import of {checkpoint}")
    model.load_state_dict(found)
    _write(model, vision, state.get("prompt_learner.cls_ctx"), checkpoint, output)
    return model


def read_shape(
    tower: dict[str, Tensor], checkpoint: Path, image_size: tuple[int, int] | None, stride: int | None
) -> VisionConfig:
    """The architecture of an OpenAI ViT from the shapes of its weights.

    Raises:
        UserError: a weight that is missing or of a strange shape; no crop and stride, or several, for its positions.
    """
    needed = {"conv1.weight": 4, "positional_embedding": 2, "proj": 2, f"{BLOCKS}0.mlp.c_fc.weight": 2}
    for name, dimensions in needed.items():
        if name not in tower or tower[name].dim() != dimensions:
            what = list(tower[name].shape) if name in tower else "missing"
            raise UserError(f"import of {checkpoint}: image_encoder.{name} is {what}; this is not a CLIP-ReID ViT")
    width, _, patch, _ = tower["conv1.weight"].shape
    if width % 64:
        raise UserError(f"import of {checkpoint}: a width of {width} is not a whole number of heads of 64")
    size, step = find_geometry(len(tower["positional_embedding"]) - 1, patch, image_size, stride, checkpoint)
    return VisionConfig(
        image_size=size,
        patch_size=patch,
        stride=None if step == patch else step,
        width=width,
        depth=1 + max(int(name.split(".")[2]) for name in tower if name.startswith(BLOCKS)),
        heads=width // 64,
        mlp_width=len(tower[f"{BLOCKS}0.mlp.c_fc.weight"]),
        embed_dim=tower["proj"].shape[1],
    )


def find_geometry(
    patches: int, patch: int, image_size: tuple[int, int] | None, stride: int | None, checkpoint: Path
) -> tuple[tuple[int, int], int]:
    """The crop (height, width) and the stride, in pixels, that make so many patches; raises `UserError` unless one."""
    sizes: Sequence[tuple[int, int]] = SIZES if image_size is None else (image_size,)
    strides = range(1, patch + 1) if stride is None else (stride,)
    choices = []
    for size, step in product(sizes, strides):
        rows, columns = VisionConfig(image_size=size, patch_size=patch, stride=step).grid if step > 0 else (0, 0)
        if min(rows, columns) > 0 and rows * columns == patches:
            choices.append((size, step))
    if len(choices) == 1:
        return choices[0]
    tried = ", ".join(f"{h}x{w}" for h, w in sizes) + (f" with stride {stride}" if stride else "")
    if not choices:
        raise UserError(
            f"import of {checkpoint}: its {patches} positions are not those of crops of {tried}: "
            "give --image-size HEIGHT WIDTH (and --stride) as it was trained"
        )
    listed = "; ".join(f"--image-size {h} {w} --stride {step}" for (h, w), step in choices)
    raise UserError(f"import of {checkpoint}: {patches} positions fit several crops, choose one: {listed}")


def _check_names(state: dict[str, Tensor], checkpoint: Path) -> None:
    """Refuses what is not a CLIP-ReID ViT, and whatever could change its features without our knowing."""
    if any(name.startswith(("image_encoder.layer1.", "image_encoder.attnpool.")) for name in state):
        raise UserError(f"import of {checkpoint}: this is a ResNet (RN50); only ViT checkpoints can be imported")
    if not any(name.startswith("image_encoder.") for name in state):
        raise UserError(
            f"import of {checkpoint}: none of its weights is image_encoder.*, but such as "
            f"{', '.join(sorted(state)[:3])}; this is not a checkpoint of CLIP-ReID"
        )
    known = ("image_encoder.", *NECKS, *DROPPED)
    odd = sorted(name for name in state if not name.startswith(known) and name != "cv_embed")
    if odd:
        raise UserError(f"import of {checkpoint}: weights that are not understood: {', '.join(odd[:3])}")


def _sides(
    table: Tensor | None, kind: str | None, views: int | None, checkpoint: Path
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The camera and the view of each row of `cv_embed` [S, C] or [S, 1, C], as `SideEmbedding` takes them.

    The published row of a pair is camera index * number of views + view index.
    """
    if table is None:
        if kind is not None:
            raise UserError(f"--sie {kind}: {checkpoint} has no cv_embed, it was trained without side information")
        return (), ()
    rows = len(table)
    if kind is None and rows > 1:
        raise UserError(_ask_side(rows, checkpoint))
    if kind == "camera+view":
        if not views or rows % views:
            given = f"{views} views do" if views else "--views is not given, so that this does"
            raise UserError(
                f"--sie camera+view: cv_embed has {rows} rows, and {given} not tell the number of cameras: "
                "give --views N with N x cameras = rows"
            )
        return tuple(row // views + 1 for row in range(rows)), tuple(row % views for row in range(rows))
    if views is not None and not (kind == "view" and views == rows):
        raise UserError(f"--views {views} does not go with --sie {kind or 'camera'} and the {rows} rows of cv_embed")
    return ((), tuple(range(rows))) if kind == "view" else (tuple(range(1, rows + 1)), ())


def _ask_side(rows: int, checkpoint: Path) -> str:
    """What may be in so many rows, as flags to paste, those of released checkpoints first."""
    readings = {"--sie camera": f"{rows} cameras", "--sie view": f"{rows} views"}
    for views in (n for n in range(2, rows // 2 + 1) if rows % n == 0):
        readings[f"--sie camera+view --views {views}"] = f"{rows // views} cameras x {views} views"
    known = {flags: f", as those of {whose}" for flags, whose in SIDES.get(rows, ())}
    lines = [
        f"  {flags:33s}{what}{known.get(flags, '')}"
        for flags, what in sorted(readings.items(), key=lambda each: each[0] not in known)
    ]
    head = (
        f"import of {checkpoint}: it has side information (cv_embed) of {rows} rows, which do not say whether they are "
        "cameras, views or pairs of both; read wrongly, the features are wrong. Give what it was trained with:"
    )
    return "\n".join([head, *lines])


def _write(model: ReIDModel, vision: VisionConfig, prompts: Tensor | None, checkpoint: Path, output: Path) -> None:
    """The run folder, whole or not at all."""
    tensors = identity_state(model)
    count = len(next(iter(tensors.values()), ()))
    if prompts is not None:
        tensors["prompts"] = prompts
    backbone = {"name": IMPORTED, "vision": asdict(vision)}
    record = {
        "clipreid": clipreid.__version__,
        "method": model.method,
        "config": asdict(model.config),
        "stages": ["stage2"],
        "finished": True,
        "backbone": backbone,
        "imported": checkpoint.name,
    }
    with whole_folder(output) as folder:
        save_model(model, folder)
        save_identities(folder, tensors, [str(i) for i in range(count)])  # numbered: the checkpoint has no names
        write_json(folder / METRICS, {})
        write_json(folder / CONFIG, record)


def describe(model: ReIDModel, output: Path) -> str:
    """What was imported and what to type next; for printing."""
    tower, config = model.tower, model.config
    (height, width), neck = model.image_size, model.necks["final"]
    identities: Any = neck.classifier
    lines = [
        f"ViT of {tower.depth} blocks, width {tower.width}, patch {tower.patch_size}, stride {tower.stride}; crops "
        f"{height}x{width}; {0 if identities is None else identities.out_features} training identities"
    ]
    if model.sides:
        known = {"cameras": config.cameras, "views": config.views}
        sides = " and ".join(f"{what} {n[0]} to {n[-1]}" for what, n in known.items() if n)
        lines.append(f"side information of {sides}: model.embed(images, cameras=[...], views=[...])")
    more = " --same-cameras" if model.sides else ""
    lines += [f"run folder: {output}", "next, on the data it was trained for:"]
    return "\n".join([*lines, f"  clipreid evaluate {output} --data NAME:ROOT{more}"])
