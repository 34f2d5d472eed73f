"""A run as a folder of transformers: its image tower with the adapter merged, loaded without clipreid or peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import clipreid
from clipreid.backbones.save import preprocessor, square_tower, vision_config
from clipreid.data.images import INTERPOLATIONS
from clipreid.disk import whole_folder
from clipreid.errors import UserError
from clipreid.export.merge import bake
from clipreid.hub.files import share, write_json
from clipreid.hub.plain import merged_lines, plain_settings
from clipreid.metric import needs_cosine
from clipreid.model import ReIDModel

ARCHITECTURES = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
NOTE = """\
# {name}: an image tower for re-identification

Written by `clipreid export --format merged` {version}{strength}: the weights after training, in the layout of
transformers' `{architecture}`. The whole image is resized to {height} x {width} pixels (height x width) and
`interpolate_pos_encoding=True` is needed, for the stored position table is square. Size, mean and std also stand in
`preprocessor_config.json`; but transformers' processors neither turn an image upright by EXIF nor lay transparency on
black, nor keep 16 bits: `rgb` does. The feature for retrieval by dot product:

```python
{lines}```
"""


def check_merged(config: dict[str, Any]) -> None:
    """Refuses a run that transformers' image towers cannot express, by its `config.json` (as `read_settings` gives it).

    Raises:
        UserError: an image-only tower, overlapping patches, head tuning.
    """
    source, tuning = config["backbone"], config["config"].get("tuning")
    stride, patch = source.get("stride"), None
    if "vision" in source:  # imported: the shape is written down
        stride, patch = source["vision"].get("stride"), source["vision"].get("patch_size")
    why = None
    if source["name"].startswith(("timm:", "osnet:")):
        why = f"{source['name']} is none of transformers' CLIP or SigLIP towers"
    elif stride is not None and stride != patch:
        why = f"its patches overlap (stride {stride}), and transformers' towers have no stride of their own"
    elif plain_settings(config["method"]) is None:
        why = f"the method {config['method']} is not among those whose features are shown to be a tower's own"
    elif tuning == "head":
        why = "it trained linear maps behind the tower, which transformers' image models have no place for"
    if why is not None:
        raise UserError(f"--format merged: {why}; take --format onnx, or load the run with clipreid")


@torch.no_grad()
def export_merged(model: ReIDModel, folder: Path, name: str = "run") -> None:
    """Writes config.json, model.safetensors, preprocessor_config.json and README.md, which shows how to use them.

    The position table is stored for a square image of the crop's longer side, such that transformers' bicubic
    resize back to the crop is exactly the trained one, however it was made. Of side information the mean embedding is
    kept. `CLIPVisionModelWithProjection` (or `CLIPVisionModel`, without the projection) and `SiglipVisionModel` load
    the folder; `final` and `projection` are equal to those of `model.features` up to rounding.

    Args:
        model: a run that `check_merged` lets pass, of any strength.
        folder: made if it is not there.
        name: of the run, for the README.

    Raises:
        UserError: a model that compares features by another metric than their cosine; a folder that cannot be written.
    """
    needs_cosine(model.metric, "the feature of --format merged")
    baked = bake(model)
    tower: Any = baked.tower
    if tuple(tower.grid) != (tower.grid[0],) * 2 or tower.config.image_size != (tower.grid[0] * tower.patch_size,) * 2:
        tower = square_tower(tower, max(tower.grid) * tower.patch_size)
    state = {k if k.startswith("visual_projection.") else f"vision_model.{k}": t for k, t in tower.state_dict().items()}
    (height, width), architecture = model.image_size, ARCHITECTURES[model.family]
    images = preprocessor(
        model.family, (height, width), int(INTERPOLATIONS[model.interpolation]), model.mean, model.std
    )
    lines = merged_lines(model, ".")
    strength = "" if model.strength == 1 else f", strength {model.strength:g} (0 is the backbone, 1 the whole run)"
    note = NOTE.format(
        name=name,
        version=clipreid.__version__,
        strength=strength,
        architecture=architecture,
        height=height,
        width=width,
        lines=lines,
    )
    with whole_folder(folder) as new:
        save_file({k: t.contiguous() for k, t in state.items()}, new / "model.safetensors", metadata={"format": "pt"})
        share(new / "model.safetensors")
        write_json(new / "config.json", {"architectures": [architecture], **vision_config(tower.config)})
        write_json(new / "preprocessor_config.json", images)
        (new / "README.md").write_text(note, encoding="utf-8")
