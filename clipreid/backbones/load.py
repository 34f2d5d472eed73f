"""`load_backbone`: one name for every source of weights."""

from difflib import get_close_matches
from pathlib import Path

from clipreid.backbones.backbone import Backbone
from clipreid.backbones.build import Source, build
from clipreid.backbones.positions import PositionMode
from clipreid.errors import UserError

TINY = ("tiny-clip", "tiny-siglip2")
WEIGHTS = Path(__file__).parent.parent / "weights"  # inside the package
VALID_NAMES = """\
  tiny-clip                          in this package
  open_clip:MODEL/TAG or MODEL/FILE  as open_clip:ViT-B-16-quickgelu/openai
  hf:OWNER/NAME or hf:FOLDER         as hf:openai/clip-vit-base-patch16, hf:google/siglip2-base-patch16-256"""


def load_backbone(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    positions: PositionMode = "bicubic",
    stride: int | None = None,
    gradient_checkpointing: bool = False,
) -> Backbone:
    """A backbone by name, in float32 on the CPU, all parameters trainable.

    Args:
        name: `tiny-clip`, `tiny-siglip2`, `open_clip:MODEL/TAG` (or a weights file after the slash),
            `hf:OWNER/NAME`, `hf:FOLDER`.
        image_size: (height, width) of the pictures in pixels, one number for a square; None takes what the
            weights recommend, (256, 128) for those that say nothing.
        positions: how the position table is resized to the crop's grid: "bicubic" (as transformers'
            `interpolate_pos_encoding`) or "bilinear" (as CLIP-ReID).
        stride: of the patches in pixels; None is the patch size, smaller means overlapping patches.
        gradient_checkpointing: recompute blocks in the backward pass; slower, far less memory.

    Raises:
        UserError: unknown name, weights that cannot be had or do not fit, impossible size or stride.
    """
    source = _read(name)
    return build(
        source,
        name,
        image_size=image_size,
        positions=positions,
        stride=stride,
        gradient_checkpointing=gradient_checkpointing,
    )


def _read(name: str) -> Source:
    kind, _, rest = name.partition(":")
    if name in TINY:
        from clipreid.backbones.hf import read_folder

        if not (WEIGHTS / name / "config.json").is_file():
            raise UserError(
                f"{name}: {WEIGHTS / name} is not there; reinstall clipreid, or make the weights with "
                "recipes/pretrain_tiny.py"
            )
        return read_folder(WEIGHTS / name)
    if kind == "open_clip" and rest:
        from clipreid.backbones.openclip import read_open_clip

        return read_open_clip(rest)
    if kind == "hf" and rest:
        from clipreid.backbones.hf import read_hf

        return read_hf(rest)
    if kind == "timm" and rest:
        raise UserError(f"{name}: timm towers are not supported yet; valid names:\n{VALID_NAMES}")
    close = _closest(name)
    hint = f" (did you mean {close}?)" if close else ""
    raise UserError(f"unknown backbone {name!r}{hint}; valid names:\n{VALID_NAMES}")


def _closest(name: str) -> str | None:
    """What may have been meant: a misspelt prefix, a name that lacks one, a misspelt tiny name."""
    kind, colon, rest = name.partition(":")
    if colon:
        prefix = get_close_matches(kind, ("open_clip", "hf", "timm"), n=1)
        return f"{prefix[0]}:{rest or 'NAME'}" if prefix else None
    if name.startswith("ViT-"):
        return f"open_clip:{name}" if "/" in name else f"open_clip:{name}/TAG"
    if "/" in name:
        return f"hf:{name}"
    return next(iter(get_close_matches(name, TINY, n=1, cutoff=0.4)), None)
