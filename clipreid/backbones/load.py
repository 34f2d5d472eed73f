"""`load_backbone`: one name for every source of weights."""

from difflib import get_close_matches
from pathlib import Path

from clipreid.backbones.backbone import Backbone
from clipreid.backbones.build import Source, build
from clipreid.backbones.positions import PositionMode
from clipreid.errors import UserError

TINY = ("tiny-clip", "tiny-siglip2")
IMAGE_ONLY = ("timm", "osnet")  # sources of image towers that have no text tower
WEIGHTS = Path(__file__).parent.parent / "weights"  # inside the package
VALID_NAMES = """\
  tiny-clip, tiny-siglip2            in this package
  open_clip:MODEL/TAG or MODEL/FILE  as open_clip:ViT-B-16-quickgelu/openai
  open_clip:FOLDER                   with open_clip_config.json and the weights
  hf:OWNER/NAME or hf:FOLDER         as hf:openai/clip-vit-base-patch16, hf:google/siglip2-base-patch16-256
  timm:NAME or timm:NAME/FILE        image only, as timm:vit_small_patch14_dinov2.lvd142m
  osnet:WIDTH/FILE                   image only, as osnet:x1_0/osnet_x1_0_market.pth"""


def load_backbone(
    name: str,
    *,
    revision: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    positions: PositionMode = "bicubic",
    stride: int | None = None,
    gradient_checkpointing: bool = False,
    raw_logits: bool = False,
) -> Backbone:
    """A backbone by name, in float32 on the CPU, all parameters trainable.

    Args:
        name: `tiny-clip`, `tiny-siglip2`, `open_clip:MODEL/TAG` (or a weights file after the slash),
            `open_clip:FOLDER`, `hf:OWNER/NAME`, `hf:FOLDER`; image only: `timm:NAME`, `timm:NAME/FILE`,
            `osnet:WIDTH/FILE`.
        revision: a commit, branch or tag of `hf:OWNER/NAME`; None is its main branch. Other names have none.
        image_size: (height, width) of the images in pixels, one number for a square; None takes what the
            weights recommend, (256, 128) for those that say nothing; rounded down to whole patches, so that the
            whole crop is seen: (252, 126) for patches of 14.
        positions: how the position table is resized to the crop's grid: "bicubic" (as transformers'
            `interpolate_pos_encoding`) or "bilinear" (as CLIP-ReID).
        stride: of the patches in pixels; None is the patch size, smaller means overlapping patches.
        gradient_checkpointing: recompute blocks in the backward pass; slower, far less memory.
        raw_logits: the weights are OpenAI's, whose features are compared by raw dot products. It is known of their
            tags and Hub names, and must be said of a plain file or folder.

    Raises:
        UserError: unknown name, weights that are not available or do not fit, impossible size or stride, a revision of
            something else than `hf:OWNER/NAME`, `raw_logits` of weights that cannot be OpenAI's.
    """
    if revision is not None and not name.startswith("hf:"):
        raise UserError(f"revision={revision!r}: only hf:OWNER/NAME has revisions, {name} has none")
    if is_image_only(name):
        if stride is not None:
            raise UserError(f"stride={stride}: {name} is wrapped as it is, with its own stride: leave it out")
        if raw_logits:
            raise UserError(f"--raw-logits is for OpenAI's CLIP weights, {name} is an image-only tower: leave it out")
        wrapped = _wrap(name, image_size, positions, gradient_checkpointing)
        wrapped.positions = positions
        return wrapped
    source = _read(name, revision)
    if raw_logits:
        _check_openai(source, name)
        source.raw_logits = True
    return build(
        source,
        name,
        image_size=image_size,
        positions=positions,
        stride=stride,
        gradient_checkpointing=gradient_checkpointing,
    )


def is_backbone(name: str) -> bool:
    """Whether a name has the form of a backbone's: a tiny one, or SOURCE:REST; `load_backbone` says if there is one."""
    kind, _, rest = name.partition(":")
    return name in TINY or (kind in ("open_clip", "hf", *IMAGE_ONLY) and bool(rest))


def is_image_only(name: str) -> bool:
    """Whether a backbone's name means an image tower without text: timm's, or OSNet."""
    kind, _, rest = name.partition(":")
    return kind in IMAGE_ONLY and bool(rest)


def is_local(name: str) -> bool:
    """Whether a backbone's name means a local file or folder; called early, before the working folder could change."""
    kind, _, rest = name.partition(":")
    if kind in ("timm", "osnet"):  # timm:NAME/FILE; OSNet has files only
        return "/" in rest
    inner = rest.partition("/")[2]
    places = [rest, inner] if kind == "open_clip" else [rest] if kind == "hf" else []
    return any(place and (Path(place).expanduser().exists() or place.startswith((".", "/", "~"))) for place in places)


def _check_openai(source: Source, name: str) -> None:
    """Raises `UserError` where weights that are said to be OpenAI's cannot be: SigLIP, or another activation."""
    if source.vision.pooling != "cls":
        raise UserError(f"--raw-logits is for OpenAI's CLIP weights, {name} is a SigLIP: leave it out")
    if (found := source.vision.activation) != "quick_gelu":
        raise UserError(
            f"--raw-logits: {name} has {found}, and OpenAI's weights were trained with QuickGELU: the features would "
            'be wrong: take the -quickgelu model of open_clip, or set "hidden_act": "quick_gelu" in config.json'
        )


def _wrap(
    name: str, image_size: int | tuple[int, int] | None, positions: PositionMode, gradient_checkpointing: bool
) -> Backbone:
    kind, _, rest = name.partition(":")
    if kind == "timm":
        from clipreid.backbones.timm_towers import load_timm

        return load_timm(rest, image_size, positions, gradient_checkpointing)
    from clipreid.backbones.osnet import load_osnet

    return load_osnet(rest, image_size, gradient_checkpointing)


def _read(name: str, revision: str | None = None) -> Source:
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

        return read_hf(rest, revision)
    close = closest(name)
    hint = f" (did you mean {close}?)" if close else ""
    raise UserError(f"unknown backbone {name!r}{hint}; valid names:\n{VALID_NAMES}")


def closest(name: str) -> str | None:
    """What may have been meant: a misspelt prefix, a name that lacks one, a misspelt tiny name."""
    kind, colon, rest = name.partition(":")
    if colon:
        prefix = get_close_matches(kind, ("open_clip", "hf", *IMAGE_ONLY), n=1)
        return f"{prefix[0]}:{rest or 'NAME'}" if prefix else None
    if name.startswith("ViT-"):
        return f"open_clip:{name}" if "/" in name else f"open_clip:{name}/TAG"
    if "/" in name:
        return f"hf:{name}"
    return next(iter(get_close_matches(name, TINY, n=1, cutoff=0.4)), None)
