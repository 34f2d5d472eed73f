"""Small CNNs from timm that stand beside an image tower, as partners of its features."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from clipreid.backbones.backbone import Triple
from clipreid.backbones.imageonly import BROKEN
from clipreid.errors import UserError

# timm's names: an architecture alone starts from random weights, one with a tag behind the point from those weights
PartnerName = Literal[
    "mobilenetv4_conv_small_050",
    "mobilenetv4_conv_small_050.e3000_r224_in1k",
    "repvit_m0_9",
    "repvit_m0_9.dist_450e_in1k",
    "convnext_atto",
    "convnext_atto.d2_in1k",
]
LEAST = 32  # pixels: the strides of these CNNs together


class Partner(nn.Module):
    """A timm CNN without its classifier: pixels as the tower gets them to one vector per image, pooled over the image.

    MobileNet has one layer more between pooling and classifier, which stays.

    Args:
        name: of `PartnerName`; its weights are random here, `load_pretrained` fetches those of its tag.
        mean, std: of the pixels that it is given; the CNN sees them as its own weights want them.

    Attributes:
        width: d of its feature.

    Raises:
        UserError: another name.
    """

    def __init__(self, name: PartnerName, mean: Triple, std: Triple) -> None:
        super().__init__()
        import timm
        from timm.data import resolve_data_config

        if name not in get_args(PartnerName):
            raise UserError(f"--partner {name}: choose one of {', '.join(get_args(PartnerName))}")
        self.name = name
        self.model: Any = timm.create_model(name, pretrained=False, num_classes=0)
        self.width: int = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        own = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        ours, theirs = (torch.tensor(values).view(2, 1, 3, 1, 1) for values in ((mean, std), (own["mean"], own["std"])))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", ours[1] / theirs[1], persistent=False)  # [1, 3, 1, 1]
        self.register_buffer("shift", (ours[0] - theirs[0]) / theirs[1], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W], at least 32x32, to [B, d]."""
        found: Tensor = self.model(pixels * self.scale + self.shift)
        return found

    @property
    def has_batch_norm(self) -> bool:
        """Whether its features in training depend on the other images of the batch."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())

    def load_pretrained(self) -> None:
        """The weights that the tag of its name means, from the Hub or its local cache; nothing for a name without one.

        Raises:
            UserError: they cannot be had.
        """
        import timm

        if "." not in self.name:
            return
        try:
            loaded: Any = timm.create_model(self.name, pretrained=True, num_classes=0)
        except (ConnectionError, *BROKEN) as error:  # huggingface_hub's errors are OSErrors
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--partner {self.name}: its weights are not in the local cache and cannot be downloaded ({reason}): "
                f"connect once, or start from random weights, --partner {self.name.partition('.')[0]}"
            ) from error
        self.model.load_state_dict(loaded.state_dict())


def check_partner(name: PartnerName, image_size: tuple[int, int], processes: int) -> None:
    """Refuses a partner that these crops are too small for, or whose batch norms would see one process only.

    Raises:
        UserError: as said, and as `Partner` and `Partner.load_pretrained`.
    """
    partner = Partner(name, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    if min(image_size) < LEAST:
        raise UserError(
            f"--partner {name} needs crops of at least {LEAST}x{LEAST} pixels, and these are "
            f"{image_size[0]}x{image_size[1]}: give a larger --image-size, or --fusion none"
        )
    if processes > 1 and partner.has_batch_norm:
        raise UserError(
            f"--partner {name}: its batch norms would see the images of one process only, so results would depend on "
            f"their number ({processes}): train on one process, or take --partner convnext_atto"
        )
    partner.load_pretrained()
