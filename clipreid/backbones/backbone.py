"""A backbone: an image tower, a text tower, a tokenizer, and the numbers that go with the weights."""

from typing import Any, Literal, Protocol

from torch import Tensor, nn

from clipreid.backbones.positions import PositionMode
from clipreid.backbones.text import TextConfig, TextTower
from clipreid.backbones.vision import Tokens, VisionConfig, VisionTower

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN: Triple = (0.5, 0.5, 0.5)
SIGLIP_STD: Triple = (0.5, 0.5, 0.5)


class Tokenizer(Protocol):
    """Texts to ids: `tokenizer(list of n str)` -> [n, context] long; `eot(ids)` -> [n] pool positions."""

    def __call__(self, texts: list[str]) -> Tensor: ...

    def eot(self, ids: Tensor) -> Tensor: ...


class Backbone(nn.Module):
    """Two towers that share an embedding space. `load_backbone(name)` fills one from published weights.

    Args:
        image, text: the towers.
        name: what `load_backbone` was called with (recorded in run folders).
        tokenizer: texts to ids; may be set later, only `encode_text` needs it.
        mean, std: of the pixels, per channel, on the 0..1 scale; None takes the family's own.
        logit_scale: the weights' exp(temperature parameter); logit_bias: SigLIP's bias, 0 for CLIP.
        raw_logits: True only for OpenAI's CLIP weights: image-text logits are raw dot products there,
            elsewhere cosine x logit_scale.
        interpolation: how its images are resized, "bicubic" or "bilinear".
        positions: how its position table was resized to the crop, "bicubic" or "bilinear".
        revision: the commit that its repository was at, of `hf:OWNER/NAME` from the Hub.

    `family` is "clip", "siglip" or "image-only" (`ImageBackbone`).
    """

    positions: PositionMode = "bicubic"
    revision: str | None = None

    def __init__(
        self,
        image: VisionTower,
        text: TextTower,
        *,
        name: str = "custom",
        tokenizer: Tokenizer | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        logit_scale: float = 1 / 0.07,
        logit_bias: float = 0.0,
        raw_logits: bool = False,
        interpolation: str = "bicubic",
        positions: PositionMode = "bicubic",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if image.embed_dim != text.embed_dim:
            raise ValueError(f"the towers' embeddings differ: {image.embed_dim} (image), {text.embed_dim} (text)")
        self.image, self.text = image, text
        self.name, self.tokenizer = name, tokenizer
        self.family: Literal["clip", "siglip", "image-only"] = "clip" if image.has_cls else "siglip"
        self.mean = mean or (CLIP_MEAN if image.has_cls else SIGLIP_MEAN)
        self.std = std or (CLIP_STD if image.has_cls else SIGLIP_STD)
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.raw_logits, self.interpolation, self.positions = raw_logits, interpolation, positions
        self.revision = revision

    @classmethod
    def from_configs(cls, image: VisionConfig, text: TextConfig, **kwargs: Any) -> "Backbone":
        """A freshly initialised backbone, for training from scratch; kwargs as for the constructor."""
        return cls(VisionTower(image), TextTower(text), **kwargs)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return self.image.config.image_size

    def tokens(self, pixels: Tensor, **kwargs: Any) -> Tokens:
        """Normalised pixels [B, 3, H, W] to `Tokens`; kwargs (`taps`, `hooks`) as for `VisionTower`."""
        return self.image(pixels, **kwargs)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] to image features [B, E], not L2-normalised."""
        return self.image(pixels).pooled

    def encode_text(self, texts: list[str]) -> Tensor:
        """n texts to text features [n, E], not L2-normalised.

        Raises:
            ValueError: this backbone has no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(f"backbone {self.name!r} has no tokenizer: set backbone.tokenizer first")
        ids = self.tokenizer(texts).to(self.text.embeddings.token_embedding.weight.device)
        return self.text.encode(ids)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, family={self.family!r}, image_size={self.image_size}"
