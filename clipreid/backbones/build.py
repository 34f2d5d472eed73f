"""From what a loader has read to a `Backbone`: the step that all loaders share."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clipreid.backbones.backbone import Backbone, Tokenizer, Triple
from clipreid.backbones.positions import PositionMode, resize_positions
from clipreid.backbones.text import TextConfig, TextTower
from clipreid.backbones.vision import VisionConfig, VisionTower
from clipreid.errors import UserError

POSITIONS = "embeddings.position_embedding.weight"
DEFAULT_SIZE = (256, 128)  # the field's person crop
MOST_PATCHES = 16_384  # of 16 pixels: 2048 x 2048


@dataclass
class Source:
    """What a loader has read, with the key names of our towers and the source's own (native) image size."""

    vision: VisionConfig
    text: TextConfig
    image_state: dict[str, Tensor]
    text_state: dict[str, Tensor]
    tokenizer: Tokenizer | None
    mean: Triple | None
    std: Triple | None
    logit_scale: float
    logit_bias: float = 0.0
    raw_logits: bool = False
    interpolation: str = "bicubic"  # how the images are resized, as `clipreid.data` names it
    revision: str | None = None  # the commit that a repository of the Hub was at
    image_size: tuple[int, int] = DEFAULT_SIZE  # the crop to build for unless the caller says otherwise


def build(
    source: Source,
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    positions: PositionMode = "bicubic",
    stride: int | None = None,
    gradient_checkpointing: bool = False,
) -> Backbone:
    """Towers for the wanted crop and stride in float32, filled with the source's weights.

    Raises:
        UserError: a crop or stride that cannot be, or has too many patches (`check_grid`), or weights that do not fit
            the architecture.
    """
    size = _size(image_size, source)
    if stride is not None and not 1 <= stride <= source.vision.patch_size:
        raise UserError(f"stride={stride}: choose 1 to {source.vision.patch_size}, the patch size of {name}")
    vision = replace(source.vision, image_size=size, stride=None if stride == source.vision.patch_size else stride)
    if POSITIONS not in source.image_state:
        raise UserError(f"{name}: the weights have no position table for the image tower")
    check_grid(vision.grid, name)
    table = source.image_state[POSITIONS].float()
    table = resize_positions(table, source.vision.grid, vision.grid, positions)
    for shape, state in ((source.vision, source.image_state), (source.text, source.text_state)):
        if shape.depth > len(state):  # before so many blocks are made
            raise UserError(f"{name}: its config says {shape.depth:,} blocks, and there are {len(state)} weights")
    with torch.device("meta"):  # shapes only: the weights come next
        image = VisionTower(vision, gradient_checkpointing)
        text = TextTower(source.text, gradient_checkpointing)
    _fill(image, {**source.image_state, POSITIONS: table}, f"{name}, image tower")
    _fill(text, source.text_state, f"{name}, text tower")
    return Backbone(
        image,
        text,
        name=name,
        tokenizer=source.tokenizer,
        mean=source.mean,
        std=source.std,
        logit_scale=source.logit_scale,
        logit_bias=source.logit_bias,
        raw_logits=source.raw_logits,
        interpolation=source.interpolation,
        positions=positions,
        revision=source.revision,
    )


def check_grid(grid: tuple[int, int], name: str) -> None:
    """Refuses, with `UserError`, more patches (rows, columns) than any crop needs, before memory is taken for them."""
    if (patches := grid[0] * grid[1]) > MOST_PATCHES:
        raise UserError(
            f"{name}: {grid[0]:,} x {grid[1]:,} patches are {patches:,}, and at most {MOST_PATCHES:,} are taken: "
            "choose a smaller image_size or a larger stride"
        )


def _size(image_size: int | tuple[int, int] | None, source: Source) -> tuple[int, int]:
    patch = source.vision.patch_size
    if image_size is None:  # whole patches: what is left over at the edge, no patch would see
        height, width = (side - side % patch for side in source.image_size)
    else:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < patch:
        raise UserError(f"image_size {height}x{width} is smaller than one {patch}x{patch} patch")
    return int(height), int(width)


def _fill(tower: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load float32 copies; every weight must be there, with the right shape, and none be left over."""
    wanted = tower.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    misshapen = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    for what, keys in (("missing", missing), ("not understood", unexpected), ("of another shape", misshapen)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"{where}: weights {what}: {', '.join(keys[:3])}{more}; this is not the plain CLIP or SigLIP "
                "architecture that its config describes"
            )
    # A copy each: no storage shared with the source or between towers, so that everything can be saved.
    copies = {key: tensor.detach().float().clone() for key, tensor in state.items()}
    tower.load_state_dict(copies, assign=True)
