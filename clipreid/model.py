"""`ReIDModel`: an image tower that is adapted, the features taken from it, and the necks that training needs.

B pictures of one process, G = B x processes, C tower width, E embedding, I identities, D = width of the test feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from clipreid.aggregation import AGGREGATIONS, identity_features
from clipreid.backbones import Backbone, ImageTower, VisionTower, attention_rollout, check_fits
from clipreid.data.augment import normalise
from clipreid.data.images import Images, stack_images
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.side import Side, SideEmbedding, check_cls

Tuning = Literal["lora", "full", "head"]
HEADS = ("final", "projection")  # the features with a neck; their concatenation is the test feature
ONE_HEAD = ("projection",)  # the same, of an image-only tower
LORA_TARGETS = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


@dataclass(frozen=True)
class ModelConfig:
    """What is trained on top of a backbone, and how pictures are prepared for it.

    Raises:
        UserError: unknown tuning, aggregation or side information.
    """

    tuning: Tuning = "lora"  # lora: adapters in every block; full: the whole image tower; head: a linear map
    aggregation: str = "cls"  # cls | mean
    lora_rank: int = 8
    lora_alpha: float = 16.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of the pixels, 0..1
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"  # of test crops
    sie: Side = "none"  # side information embedding of the CLS token: none | camera | view | camera+view
    sie_coefficient: float = 1.0
    cameras: tuple[int, ...] = ()  # of each row of the embedding, as numbered in the training set
    views: tuple[int, ...] = ()  # the same; of camera+view both are as long, and (camera, view) are the trained pairs

    def __post_init__(self) -> None:
        for what, value, valid in (
            ("tuning", self.tuning, get_args(Tuning)),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("sie", self.sie, get_args(Side)),
        ):
            if value not in valid:
                raise UserError(f"no {what} {value!r}: choose one of {', '.join(valid)}")


@dataclass
class Output:
    """One training forward, over the pictures of all processes."""

    features: dict[str, Tensor]  # penultimate [G, C], final [G, C], projection [G, E]: before the necks
    logits: dict[str, Tensor]  # final [G, I], projection [G, I]: classifiers after the necks


class Neck(nn.Module):
    """BNNeck (Luo et al., arXiv 1903.07071): batch norm without shift, then a bias-free classifier."""

    def __init__(self, width: int, identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, identities, bias=False) if identities else None
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:  # [G, C] -> [G, I]
        if self.classifier is None:
            raise RuntimeError("this model was loaded without its classifiers: it embeds, but cannot be trained")
        return self.classifier(self.norm(x.float()))


class ReIDModel(nn.Module):
    """A backbone's image tower made to recognise individuals (CLIP-ReID, arXiv 2211.13977, section 3).

    `forward` is for training; `embed` turns pictures into features for retrieval.

    Args:
        backbone: whose image tower is adapted, in place.
        config: what is trained.
        identities: number of training identities; 0 for a model that only embeds.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, identities: int = 0) -> None:
        super().__init__()
        tower = backbone.image
        self.source = (backbone,)  # for its text tower; in a tuple, so that this is no part of the model
        self.config, self.family, self.raw_logits = config, backbone.family, backbone.raw_logits
        self.image_size, self.depth = backbone.image_size, tower.depth
        check_fits(backbone, config.tuning, config.aggregation)
        self.heads = ONE_HEAD if backbone.family == "image-only" else HEADS
        all_widths = {"final": tower.width, "projection": tower.embed_dim}
        self.widths = widths = {name: all_widths[name] for name in self.heads}
        tower.requires_grad_(config.tuning == "full")
        self.image: nn.Module = tower
        if config.tuning == "lora":
            self.image = _with_lora(tower, config, backbone.name)
        self.maps = nn.ModuleDict()
        if config.tuning == "head":
            for name, width in widths.items():
                self.maps[name] = nn.Linear(width, width, bias=False)
                nn.init.eye_(self.maps[name].weight)  # type: ignore[arg-type]
        self.side: SideEmbedding | None = None
        if config.sie != "none":
            check_cls(config.sie, backbone.family, backbone.name)
            self.side = SideEmbedding(config.cameras, config.views, tower.width, config.sie_coefficient)
        self.necks = nn.ModuleDict({name: Neck(width, identities) for name, width in widths.items()})
        self.strength = 1.0  # `clipreid.strength` turns it, and keeps weights before and after training in `ends`
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}

    def train(self, mode: bool = True) -> ReIDModel:
        """As of any module, but a frozen tower keeps the batch statistics it came with (OSNet has some)."""
        super().train(mode)
        if self.config.tuning == "head":
            self.image.eval()
        return self

    @property
    def tower(self) -> VisionTower:
        """The image tower, without the wrapper that holds its adapters."""
        return self.image.get_base_model() if self.config.tuning == "lora" else self.image  # type: ignore

    @property
    def device(self) -> torch.device:
        return next(self.image.parameters()).device

    @contextmanager
    def without_side(self) -> Iterator[None]:
        """In this block side information is left out, as before training, when its embedding is a random start."""
        side, self.side = self.side, None
        try:
            yield
        finally:
            self.side = side

    def features(self, pixels: Tensor, cameras: Tensor | None = None, views: Tensor | None = None) -> dict[str, Tensor]:
        """Normalised pixels [B, 3, H, W] to penultimate [B, C], final [B, C] and projection [B, E]; image-only
        towers have the last one only.

        cameras, views: [B] numbers as in the data, -1 = unknown; only a model with side information reads them.
        """
        hooks = {0: self.side.hook(cameras, views)} if self.side is not None else None
        if self.heads == ONE_HEAD:
            found = {"projection": self.image(pixels).pooled}
        else:
            tokens = self.image(pixels, taps=(self.depth - 1,), hooks=hooks)
            found = dict(identity_features(tokens, self.config.aggregation))
        return found | {name: self.maps[name](found[name]) for name in self.maps}

    def forward(self, pixels: Tensor, cameras: Tensor | None = None, views: Tensor | None = None) -> Output:
        """Normalised pixels [B, 3, H, W] of this process to the features and logits of all processes.

        cameras, views: [B] of this process's pictures, as for `features`.

        Features are gathered, with gradient, before the necks: batch statistics, mining and losses see the
        global batch, whatever the number of processes.
        """
        features = {name: gather(x.float()) for name, x in self.features(pixels, cameras, views).items()}
        return Output(features, {name: self.necks[name](features[name]) for name in self.heads})

    def test_feature(self, features: dict[str, Tensor]) -> Tensor:
        """The retrieval feature, float32 [B, D], L2-normalised: the pre-neck `final` and `projection` side by side.

        For OpenAI's CLIP the concatenation is normalised as a whole, as published; elsewhere each part is
        normalised first, for their raw norms have no common scale.
        """
        parts = [features[name].float() for name in self.heads]
        if not self.raw_logits:
            parts = [F.normalize(part, dim=1) for part in parts]
        return F.normalize(torch.cat(parts, dim=1), dim=1)

    def normalise(self, crops: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to float pixels with this model's mean and std, on its device."""
        return normalise(crops.to(self.device), self.config.mean, self.config.std)

    @torch.no_grad()
    def embed_parts(
        self, crops: Tensor, cameras: Tensor | None = None, views: Tensor | None = None
    ) -> dict[str, Tensor]:
        """uint8 crops [B, 3, H, W] of the right size to the test feature (`concat`) and its parts, L2-normalised.

        cameras, views: [B], as for `features`.
        """
        was_training = self.training
        self.eval()
        features = self.features(self.normalise(crops), cameras, views)
        self.train(was_training)
        parts = {name: F.normalize(features[name].float(), dim=1) for name in self.heads}
        return {"concat": self.test_feature(features), **parts}

    def look(self, crops: Tensor, cameras: Tensor | None = None, views: Tensor | None = None) -> Tensor | None:
        """uint8 crops as for `embed_parts` to maps [B, h, w], float32 on the CPU: how much each patch tells.

        Attention rollout (`clipreid.backbones.attention_rollout`), each map sums to one. None for a wrapped
        image-only tower, whose attention is not ours to read.
        """
        if not isinstance(self.tower, VisionTower):
            return None
        hooks = {0: self.side.hook(cameras, views)} if self.side is not None else None
        return attention_rollout(self.tower, self.normalise(crops), hooks).cpu()

    def crops(self, images: Images) -> Tensor:
        """Pictures as for `embed` to uint8 [N, 3, H, W] at this model's crop size, the whole picture resized."""
        return stack_images(images, self.image_size, self.config.interpolation)

    def embed(
        self,
        images: Images,
        batch_size: int = 32,
        *,
        cameras: Sequence[int] | Tensor | None = None,
        views: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Pictures to features for retrieval by dot product.

        Args:
            images: PIL images, paths, or a uint8 tensor or array [N, 3, H, W] (RGB, any size; resized as a whole, never
                cut).
            batch_size: pictures at a time.
            cameras, views: N numbers each, as in the training set (`model.config.cameras`, `.views`). They matter to
                a model trained with side information (`--sie`) only, which takes the mean embedding for a number
                that it was not trained on, for -1, and for all pictures when nothing is given.

        Returns:
            float32 [N, D] on the CPU, each row of unit length.

        Raises:
            UserError: a picture cannot be read.
            ValueError: a tensor that is not uint8 [N, 3, H, W]; something else than pictures; not one camera or view
                for each picture.
        """
        crops = self.crops(images)
        if not len(crops):
            return torch.empty(0, sum(self.widths.values()))
        unknown = torch.full((len(crops),), -1)
        sides = [unknown if given is None else torch.as_tensor(given) for given in (cameras, views)]  # [N] each
        for what, given in zip(("cameras", "views"), sides, strict=True):
            if given.shape != unknown.shape:
                raise ValueError(f"{what} must be {len(crops)} numbers, one for each picture, not {list(given.shape)}")
        batches = zip(*(x.split(batch_size) for x in (crops, *sides)), strict=True)
        return torch.cat([self.embed_parts(*batch)["concat"].cpu() for batch in batches])

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """n sentences to float32 [n, E] on the CPU, rows of unit length, to be compared with pictures' "projection".

        The text tower is the backbone's own, untouched by training; what does not fit into its context is cut off.

        Raises:
            UserError: the backbone has no text tower or no tokenizer. ValueError: one string, not a list of them.
        """
        if isinstance(texts, str):
            raise ValueError("embed_text takes a list of sentences: write model.embed_text([sentence])")
        (backbone,) = self.source
        if backbone.text is None or backbone.tokenizer is None:
            lacks = "text tower" if backbone.text is None else "tokenizer"
            raise UserError(f"{backbone.name} has no {lacks}: captions cannot be compared with its pictures")
        backbone.text.to(self.device).eval()
        batches = [list(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        with torch.autocast(self.device.type, enabled=False):
            found = [F.normalize(backbone.encode_text(batch).float(), dim=1).cpu() for batch in batches]
        return torch.cat(found) if found else torch.empty(0, backbone.text.embed_dim)


def _with_lora(tower: VisionTower | ImageTower, config: ModelConfig, backbone: str) -> nn.Module:
    """Adapters on the attention and MLP Linears of every block (Hu et al., arXiv 2106.09685)."""
    targets = tower.lora_targets if isinstance(tower, ImageTower) else LORA_TARGETS
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets)
    wrapped = get_peft_model(tower, settings)
    wrapped.peft_config["default"].base_model_name_or_path = backbone.removeprefix("hf:")
    return wrapped
