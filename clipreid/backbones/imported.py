"""A CLIP image tower whose weights came from a whole checkpoint: its shape is known, no published source is."""

from typing import Any

from torch import Tensor, nn

from clipreid.backbones.backbone import SIGLIP_MEAN, SIGLIP_STD, Backbone
from clipreid.backbones.vision import VisionConfig, VisionTower
from clipreid.errors import UserError

IMPORTED = "imported"  # the name of such a backbone in run folders


class ImportedBackbone(Backbone):
    """An image tower of the given shape, to be filled; `text` is None.

    It stands for OpenAI's CLIP as CLIP-ReID fine-tunes it: raw dot products, pixels of mean and std 0.5, test
    images resized bilinearly.
    """

    text: None  # type: ignore[assignment]

    def __init__(self, config: VisionConfig) -> None:
        nn.Module.__init__(self)
        self.image, self.text, self.tokenizer = VisionTower(config), None, None
        self.name, self.family = IMPORTED, "clip"
        self.mean, self.std = SIGLIP_MEAN, SIGLIP_STD  # 0.5 each
        self.logit_scale, self.logit_bias, self.raw_logits, self.interpolation = 1.0, 0.0, True, "bilinear"

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "ImportedBackbone":
        """From a `VisionConfig` as JSON keeps it; raises `TypeError` or `ValueError` for anything else."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(VisionConfig(**values))

    def encode_text(self, texts: list[str]) -> Tensor:
        """There is no text tower. Raises `UserError`, always."""
        raise UserError("this run was imported: the checkpoint's image side alone was kept, so it takes no text")
