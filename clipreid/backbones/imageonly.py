"""Image towers without a text tower, wrapped as they are: baselines from timm, and OSNet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from clipreid.backbones.backbone import Backbone, Triple
from clipreid.backbones.build import DEFAULT_SIZE, check_grid
from clipreid.backbones.vision import About, Hook, Tokens
from clipreid.errors import UserError

HOOKABLE = "the CLIP and SigLIP backbones have it: tiny-clip, open_clip:MODEL/TAG, hf:OWNER/NAME"
BROKEN = (  # what a bad file raises: torch's unpickler trips over anything
    *(SafetensorError, UnpicklingError, RuntimeError, ValueError, LookupError),
    *(TypeError, AttributeError, EOFError, OSError),
)
WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model")  # where checkpoints keep their weights


class ImageTower(nn.Module):
    """What a wrapped tower offers: the call of `VisionTower`, without hooks and taps.

    A subclass computes `tokens(pixels)` and sets these:
        image_size: (height, width) in pixels. stride: pixels between two patches.
        embed_dim: E of its one feature, `Tokens.pooled`. pooling: in a word or two, how that is made.
        depth: 0, there are no layers that can be tapped.
        lora_targets: regular expression of the Linears that LoRA adapts, over all module names; None: it has none.
    """

    image_size: tuple[int, int]
    stride: int
    embed_dim: int
    pooling: str
    depth: int = 0
    lora_targets: str | None = None

    @property
    def width(self) -> int:
        """E, for there is no other feature."""
        return self.embed_dim

    def tokens(self, pixels: Tensor) -> Tokens:  # [B, 3, H, W]
        raise NotImplementedError

    def forward(
        self, pixels: Tensor, taps: Sequence[int] = (), hooks: Sequence[Hook] = (), about: About | None = None
    ) -> Tokens:
        """Normalised pixels [B, 3, H, W] to tokens; `Tokens.pooled` [B, E] is the feature.

        Raises:
            NotImplementedError: taps or hooks were asked for.
            ValueError: wrong image size.
        """
        if taps or hooks:
            raise NotImplementedError(f"a wrapped image-only tower has no {'taps' if taps else 'hooks'}; {HOOKABLE}")
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(
                f"pixels have shape {list(pixels.shape)}, this tower takes [B, 3, {height}, {width}]; "
                "resize the images or load the backbone with another image_size"
            )
        return self.tokens(pixels)


class ImageBackbone(Backbone):
    """A `Backbone` with an image tower only: family "image-only", `text` is None.

    Args:
        image: the wrapped tower.
        name: what `load_backbone` was called with.
        mean, std, interpolation: how the weights want their images prepared.
    """

    image: ImageTower  # type: ignore[assignment]
    text: None  # type: ignore[assignment]

    def __init__(self, image: ImageTower, *, name: str, mean: Triple, std: Triple, interpolation: str) -> None:
        nn.Module.__init__(self)
        self.image, self.text, self.tokenizer = image, None, None
        self.name, self.mean, self.std, self.interpolation = name, mean, std, interpolation
        self.family = "image-only"
        self.logit_scale, self.logit_bias, self.raw_logits = 1.0, 0.0, False  # there is no text to compare with

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return self.image.image_size

    def encode_text(self, texts: list[str]) -> Tensor:
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{self.name} has no text tower; {HOOKABLE}")


def check_fits(backbone: Backbone, tuning: str) -> None:
    """Refuses what a wrapped image-only tower has nothing for.

    Raises:
        UserError: LoRA on a tower without Linears in its blocks.
    """
    tower: nn.Module = backbone.image
    if isinstance(tower, ImageTower) and tuning == "lora" and tower.lora_targets is None:
        raise UserError(f"--tuning lora: {backbone.name} has no linear layers in its blocks; use --tuning full or head")


def check_processes(backbone: Backbone, tuning: str, processes: int) -> None:
    """Refuses to train batch norms inside a tower on several processes: each would see its own images only.

    Raises:
        UserError: full tuning of such a tower (OSNet) on more than one process.
    """
    if tuning == "full" and processes > 1 and any(isinstance(m, nn.BatchNorm2d) for m in backbone.image.modules()):
        raise UserError(
            f"--tuning full: the batch norms of {backbone.name} would see the images of one process only, so results "
            f"would depend on their number ({processes}): train on one process, or take --tuning head"
        )


def crop_size(image_size: int | tuple[int, int] | None, patch: int, name: str) -> tuple[int, int]:
    """(height, width) in whole patches; None: 256x128, or the nearest there is (252x126 for patches of 14 pixels).

    Raises:
        UserError: a size that is not a multiple of the patch, or has too many (`check_grid`).
    """
    wanted = DEFAULT_SIZE if image_size is None else image_size
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    nearest = tuple(max(1, round(side / patch)) * patch for side in (height, width))
    if image_size is not None and nearest != (height, width):
        raise UserError(
            f"image_size {height}x{width}: {name} takes multiples of its patch of {patch} pixels, "
            f"such as {nearest[0]}x{nearest[1]}"
        )
    check_grid((nearest[0] // patch, nearest[1] // patch), name)
    return nearest[0], nearest[1]


def read_weights(path: str, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, without the wrapping that training adds (`module.`, `state_dict`).

    Raises:
        UserError: no file, a file that holds more than plain tensors, no state dict.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{what}: there is no file {file}")
    state: Any
    try:
        is_safe = file.suffix == ".safetensors"
        state = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    except BROKEN as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{what}: {file} is not a file of plain weights ({reason}); nothing that could run code is loaded: give a "
            "state dict (.pth) or safetensors"
        ) from error
    for key in WRAPPINGS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{what}: {file} holds no state dict (names and tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def check_weights(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Every weight must be there, with the right shape, and none be left over: nothing stays random.

    Raises:
        UserError: naming the first of the weights that do not fit.
    """
    wanted = module.state_dict()
    problems = {
        "missing": wanted.keys() - state.keys(),
        "not understood": state.keys() - wanted.keys(),
        "of another shape": {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape},
    }
    for problem, keys in problems.items():
        if keys:
            first, more = sorted(keys)[:3], f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(f"{what}: weights {problem}: {', '.join(first)}{more}; is it a checkpoint of this model?")
