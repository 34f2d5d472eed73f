"""`ReIDModel`: an image tower that is adapted, the features taken from it, and the necks that training needs.

B images of one process, G = B x processes, T tokens, C tower width, E embedding, I identities, D width of a feature.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipreid.aggregation import Aggregator, Pooled, Taps
from clipreid.backbones import Backbone, ImageTower, VisionTower, attention_rollout, check_fits
from clipreid.backbones.text import TextTower
from clipreid.backbones.tokenizer import unread
from clipreid.data.attributes import attribute_codes, clean
from clipreid.data.augment import normalise
from clipreid.data.images import Images, stack_images
from clipreid.distributed import gather
from clipreid.errors import UserError
from clipreid.hooks import TokenHook
from clipreid.metric import Cosine, Metric

Tuning = Literal["lora", "full", "head"]
TextTuning = Literal["frozen", "lora", "full"]
GIVEN = ("cameras", "views", "attributes")  # what `embed` is told of the images
SWITCHING = threading.Lock()  # held while a model changes its mode (in no model: models are copied)
LORA_TARGETS = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


@dataclass
class Output:
    """One training forward, over the images of all processes.

    Attributes:
        features: every feature of the aggregator by name, [G, D] each, before the necks.
        logits: [G, I] for each feature that has a neck; [G, S] where S identities are compared.
    """

    features: dict[str, Tensor]
    logits: dict[str, Tensor]


class Classifier(nn.Linear):
    """One row of weights per training identity, no bias; it is not published."""

    per_identity = True

    def __init__(self, width: int, identities: int) -> None:
        super().__init__(width, identities, bias=False)
        nn.init.normal_(self.weight, std=0.001)


class Neck(nn.Module):
    """BNNeck (Luo et al., arXiv 1903.07071): batch norm without shift, then a bias-free classifier."""

    def __init__(self, width: int, identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.classifier = Classifier(width, identities) if identities else None

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """[G, D] to logits [G, I], or [G, S] of the classifier's rows [S, D] that are given."""
        if self.classifier is None:
            raise RuntimeError("this model was loaded without its classifiers: it embeds, but cannot be trained")
        x = self.norm(x.float())
        return self.classifier(x) if rows is None else F.linear(x, rows)


class ReIDModel(nn.Module):
    """A backbone's image tower made to recognise individuals: adapters, token hooks, aggregator, necks and metric.

    `forward` is for training; `embed` turns images into features for retrieval, `embed_text` sentences.

    Args:
        backbone: whose image tower is adapted, in place.
        tuning: what of the tower is trained. "lora": adapters in every block; "full": all weights; "head": none, but a
            linear map on each feature with a neck, which starts as the identity.
        rank, alpha: of LoRA; the update is alpha / rank x B A. alpha None: `usual_alpha(rank)`.
        text_tuning: the same for the text tower, which is frozen for most methods.
        aggregator: tokens to features; None: `default_aggregator`.
        hooks: at the tower's layers, by name, in this order.
        metric: of test features; None: their cosine.
        identities: number of training identities; 0 for a model that only embeds.

    Raises:
        UserError: unknown tuning, or one that this backbone has nothing for.
        ValueError: a hook or an aggregator whose `reads` names something else than `GIVEN`.
    """

    def __init__(
        self,
        backbone: Backbone,
        tuning: Tuning = "lora",
        *,
        rank: int = 8,
        alpha: float | None = 16.0,
        text_tuning: TextTuning = "frozen",
        aggregator: Aggregator | None = None,
        hooks: Mapping[str, TokenHook] | None = None,
        metric: Metric | None = None,
        identities: int = 0,
    ) -> None:
        super().__init__()
        for flag, value, valid in (("tuning", tuning, Tuning), ("text-tuning", text_tuning, TextTuning)):
            if value not in get_args(valid):
                raise UserError(f"--{flag} {value}: choose one of {', '.join(get_args(valid))}")
        check_fits(backbone, tuning)
        tower, alpha = backbone.image, usual_alpha(rank) if alpha is None else alpha
        self.source = (backbone,)  # for its text tower; in a tuple, so that this is no part of the model
        self.tuning, self.text_tuning = tuning, text_tuning
        self.family, self.raw_logits = backbone.family, backbone.raw_logits
        self.image_size, self.mean, self.std = backbone.image_size, backbone.mean, backbone.std
        self.interpolation = backbone.interpolation
        self.method, self.config = "", None  # type: str, Any
        tower.requires_grad_(tuning == "full")
        self.image: nn.Module = _with_lora(tower, rank, alpha, backbone.name) if tuning == "lora" else tower
        self.text: nn.Module | None = None
        if text_tuning != "frozen":
            text = need_text(backbone, "--text-tuning").requires_grad_(text_tuning == "full")
            with torch.random.fork_rng(devices=[]):  # what is drawn for images does not depend on it
                self.text = _with_lora(text, rank, alpha, backbone.name) if text_tuning == "lora" else text
        self.aggregator = default_aggregator(backbone) if aggregator is None else aggregator
        widths = {name: self.aggregator.widths[name] for name in self.aggregator.necks}
        self.maps = nn.ModuleDict()
        if tuning == "head":
            for name, width in widths.items():
                self.maps[name] = nn.Linear(width, width, bias=False)
                nn.init.eye_(self.maps[name].weight)  # type: ignore[arg-type]
        self.hooks = nn.ModuleDict()
        for name, hook in (hooks or {}).items():
            self.hooks[name] = hook
            hook.reset_parameters()
        _check_reads({f"hook {name!r}": hook for name, hook in self.hooks.items()} | {"aggregator": self.aggregator})
        self.metric = Cosine() if metric is None else metric
        self.parts = 1  # in which `forward` embeds a batch (`clipreid.training.parts`)
        self.necks = nn.ModuleDict({name: Neck(width, identities) for name, width in widths.items()})
        self.strength = 1.0  # `clipreid.strength` sets it, and keeps weights before and after training in `ends`
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}
        self.embedding, self.was_training = 0, True  # `evaluating`: how many threads embed, and the mode of before

    def train(self, mode: bool = True) -> ReIDModel:
        """As of any module, but a frozen tower keeps the batch statistics it came with (OSNet has some)."""
        super().train(mode)
        if self.tuning == "head":
            self.image.eval()
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """In eval mode as long as this lasts; then in the mode of before, also after an error.

        Of several threads the first one switches, and the last one switches back.
        """
        with SWITCHING:
            if not self.embedding:
                self.was_training = self.training
                self.eval()
            self.embedding += 1
        try:
            yield
        finally:
            with SWITCHING:
                self.embedding -= 1
                if not self.embedding:
                    self.train(self.was_training)

    @property
    def tower(self) -> VisionTower:
        """The image tower, without the wrapper that holds its adapters."""
        return self.image.get_base_model() if self.tuning == "lora" else self.image  # type: ignore

    @property
    def text_tower(self) -> TextTower:
        """The text tower, with its adapters where it has some. Raises `UserError` for a backbone without one."""
        return need_text(self.source[0], "captions")  # type: ignore[return-value]

    @property
    def widths(self) -> dict[str, int]:
        """The width of each part of the test feature, in order."""
        return {name: self.aggregator.widths[name] for name in self.aggregator.test}

    @property
    def reads(self) -> tuple[str, ...]:
        """What hooks and aggregator want to be given at test, of "cameras", "views" and "attributes"."""
        parts: list[Any] = [*self.hooks.values(), self.aggregator]
        return tuple(dict.fromkeys(name for part in parts for name in part.reads))

    @property
    def sides(self) -> tuple[str, ...]:
        """Of `reads` the numbers of a data set, which mean nothing in another one: "cameras" and "views"."""
        return tuple(name for name in self.reads if name != "attributes")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def features(self, pixels: Tensor, about: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Normalised pixels [B, 3, H, W] to the aggregator's features, [B, D] each.

        about: what is known of the images, by name, [B] each (cameras, views: numbers as in the data, -1 = unknown;
            attributes: codes [B, A, 2]); only hooks and aggregators that ask for it read it.
        """
        about = {name: x.to(pixels.device) for name, x in (about or {}).items()}
        hooks: Any = tuple(self.hooks.values())
        tokens = self.image(pixels, taps=self.aggregator.taps, hooks=hooks, about=about)
        found = self.aggregator(tokens, {**about, "pixels": pixels} if self.aggregator.pixels else about)
        return found | {name: self.maps[name](found[name]) for name in self.maps}

    def forward(self, batch: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None = None) -> Output:
        """A batch of this process ("pixels" [B, 3, H, W], normalised) to features and logits of all processes.

        rows: for each neck, the rows of its classifier that are compared, [S, D]; None: all.

        Features are gathered, with gradient, before the necks: batch statistics, mining and losses see the
        global batch, whatever the number of processes.
        """
        about = {name: x for name, x in batch.items() if name != "pixels"}
        features = {name: gather(x.float()) for name, x in self._in_parts(batch["pixels"], about).items()}
        given = rows or {}
        logits = {name: self.necks[name](features[name], given.get(name)) for name in self.aggregator.necks}
        return Output(features, logits)

    def _in_parts(self, pixels: Tensor, about: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`features` of `parts` parts of the batch one by one, each computed again when its gradients are."""
        if self.parts == 1:
            return self.features(pixels, about)
        split = [pixels.chunk(self.parts), *(x.chunk(self.parts) for x in about.values())]
        found: list[dict[str, Tensor]] = [
            checkpoint(self.features, part, dict(zip(about, known, strict=True)), use_reentrant=False)
            for part, *known in zip(*split, strict=True)
        ]
        return {name: torch.cat([features[name] for features in found]) for name in found[0]}

    def test_feature(self, features: Mapping[str, Tensor]) -> Tensor:
        """The retrieval feature, float32 [B, D], L2-normalised: the aggregator's test features side by side.

        For OpenAI's CLIP the concatenation is normalised as a whole, as CLIP-ReID published it; elsewhere each part is
        normalised first, for their raw norms have no common scale. With weights each part is normalised and multiplied
        by the root of its weight.
        """
        parts = [features[name].float() for name in self.aggregator.test]
        weights = self.aggregator.weights
        if weights is not None or not self.raw_logits:
            parts = [F.normalize(part, dim=1) for part in parts]
        if weights is not None:
            parts = [weight**0.5 * part for weight, part in zip(weights, parts, strict=True)]
        return F.normalize(torch.cat(parts, dim=1), dim=1)

    def normalise(self, crops: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to pixels with this model's mean and std, on the device and of the type of its weights."""
        kind = next((weight.dtype for weight in self.image.parameters()), torch.float32)  # stripes of colour have none
        return normalise(crops.to(self.device), self.mean, self.std).to(kind)

    @torch.no_grad()
    def embed_parts(self, crops: Tensor, about: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """uint8 crops [B, 3, H, W] of the right size to the test feature (`concat`), its parts, and what else the
        aggregator wants to be scored, L2-normalised.

        about: as for `features`.
        """
        with self.evaluating():
            features = self.features(self.normalise(crops), about)
        names = dict.fromkeys((*self.aggregator.test, *self.aggregator.scored))
        parts = {name: F.normalize(features[name].float(), dim=1) for name in names}
        return {"concat": self.test_feature(features), **parts}

    def attention_maps(self, crops: Tensor, about: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """uint8 crops as for `embed_parts` to maps [B, h, w], float32 on the CPU: how much each patch tells.

        Attention rollout (`clipreid.backbones.attention_rollout`), each map sums to one. None for a wrapped
        image-only tower, whose attention is not ours to read.
        """
        if not isinstance(self.tower, VisionTower):
            return None
        about = {name: x.to(self.device) for name, x in (about or {}).items()}
        hooks: Any = tuple(self.hooks.values())
        return attention_rollout(self.tower, self.normalise(crops), hooks, about).float().cpu()

    def crops(self, images: Images) -> Tensor:
        """Images as for `embed` to uint8 [N, 3, H, W] at this model's crop size, the whole image resized."""
        return stack_images(images, self.image_size, self.interpolation)

    def embed(
        self,
        images: Images,
        batch_size: int = 32,
        *,
        cameras: Sequence[int] | Tensor | None = None,
        views: Sequence[int] | Tensor | None = None,
        attributes: Sequence[Mapping[str, Any]] | None = None,
    ) -> Tensor:
        """Images to features for retrieval, compared by `metric` (a dot product, for most methods).

        Args:
            images: PIL images, paths, or a uint8 tensor or array [N, 3, H, W] (RGB, any size; resized as a whole, never
                cut).
            batch_size: images at a time, at least 1.
            cameras, views: N numbers each, as in the training set. They matter to a model trained with side
                information only, which takes the mean embedding for a number that it was not trained on, for
                -1, and for all images when nothing is given.
            attributes: what is known of each of the N images, such as {"hat": "cap"}, in the words of the training set.
                They matter to a model with attribute experts only; without them no expert takes part.

        Returns:
            float32 [N, D] on the CPU, each row of unit length, also where the weights are `half()` or `bfloat16()`.

        Raises:
            UserError: an image cannot be read; features that are not finite, which weights give that are absurd.
            ValueError: a tensor that is not uint8 [N, 3, H, W]; something else than images; not one camera, view
                or set of attributes for each image; batch_size under 1.
        """
        _check_batch_size(batch_size)
        crops = self.crops(images)
        if not len(crops):
            return torch.empty(0, sum(self.widths.values()))
        about = {}
        for what, given in (("cameras", cameras), ("views", views)):
            if given is not None:
                about[what] = torch.as_tensor(given)
                if about[what].shape != (len(crops),):
                    shape = list(about[what].shape)
                    raise ValueError(f"{what} must be {len(crops)} numbers, one for each image, not {shape}")
        if attributes is not None:
            if len(attributes) != len(crops) or not all(isinstance(each, Mapping) for each in attributes):
                raise ValueError(f"attributes must be {len(crops)} dictionaries, one for each image")
            about["attributes"] = attribute_codes([clean(each) for each in attributes])
        rows = torch.arange(len(crops)).split(batch_size)
        found = [self.embed_parts(crops[at], {name: x[at] for name, x in about.items()})["concat"].cpu() for at in rows]
        return check_finite(torch.cat(found))

    @torch.no_grad()
    def embed_text(
        self, texts: Sequence[str], batch_size: int = 256, *, say: Callable[[str], None] | None = None
    ) -> Tensor:
        """n sentences to float32 [n, E] on the CPU, rows of unit length, to be compared with images' "projection".

        The text tower is the backbone's own, with what the method trained of it. What does not fit into its context is
        cut off; how much of it was read is then said in a sentence.

        Args:
            texts: the sentences.
            batch_size: sentences at a time.
            say: gets that sentence; None: it becomes a Python warning.

        Raises:
            UserError: the backbone has no text tower or no tokenizer.
            ValueError: one string, or something else than strings; batch_size under 1.
        """
        _check_batch_size(batch_size)
        if isinstance(texts, str):
            raise ValueError("embed_text takes a list of sentences: write model.embed_text([sentence])")
        texts = list(texts)
        if odd := [nth for nth, text in enumerate(texts) if not isinstance(text, str)]:
            raise ValueError(f"embed_text takes sentences, and text {odd[0]} is {texts[odd[0]]!r}")
        (backbone,) = self.source
        if backbone.text is None or backbone.tokenizer is None:
            lacks = "text tower" if backbone.text is None else "tokenizer"
            raise UserError(
                f"{backbone.name} has no {lacks}: captions cannot be compared with its images; ask with images, or "
                "take a backbone with text (tiny-clip, open_clip:..., hf:...)"
            )
        if note := unread(backbone.tokenizer, texts):
            say(note) if say is not None else warnings.warn(note, stacklevel=3)  # behind the wrapper of no_grad
        batches = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        if not batches:
            return torch.empty(0, backbone.text.embed_dim)
        with self.evaluating(), torch.autocast(self.device.type, enabled=False):
            backbone.text.to(self.device).eval()  # where it is frozen it is no part of the model
            found = [F.normalize(backbone.encode_text(batch).float(), dim=1).cpu() for batch in batches]
        return check_finite(torch.cat(found), "texts")


def check_finite(features: Tensor, of: str = "images") -> Tensor:
    """The features [N, D]; raises `UserError` where some of them are NaN or infinite. of: what they are of."""
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"the features of {len(bad):,} of {len(features):,} {of} (the first is number {bad[0]}) are not finite: "
            "the weights are finite but absurd, or too large for their type; train anew, or take float32"
        )
    return features


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it is the number of images or texts at a time, at least 1")


def _check_reads(parts: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the part, where `reads` has a name that is not in `GIVEN`."""
    for where, part in parts.items():
        if odd := [name for name in part.reads if name not in GIVEN]:
            raise ValueError(
                f"{where} ({type(part).__name__}): reads has {', '.join(map(repr, odd))}, but only "
                f"{', '.join(map(repr, GIVEN))} can be given at test; what a batch has is in `about` anyway"
            )


def default_aggregator(backbone: Backbone, kind: str = "cls") -> Aggregator:
    """CLIP-ReID's three taps by CLS token or mean patch (`Taps`); the one feature of an image-only tower.

    Raises:
        UserError: an unknown kind, or another one than "cls" for a tower that pools in its own way.
    """
    tower = backbone.image
    if isinstance(tower, ImageTower):
        if kind != "cls":
            raise UserError(
                f"--aggregation {kind}: {backbone.name} has one feature, pooled in its own way "
                f"({tower.pooling}): leave the flag out"
            )
        return Pooled(tower.embed_dim)
    return Taps(kind, tower.depth, tower.width, tower.embed_dim)


def untrained_model(backbone: Backbone, aggregation: str = "cls") -> ReIDModel:
    """The backbone before any training, as a model: zero-shot. Its linear maps are the identity."""
    return ReIDModel(backbone, "head", aggregator=default_aggregator(backbone, aggregation)).eval()


def need_text(backbone: Backbone, what: str) -> nn.Module:
    """The text tower; raises `UserError`, with `what` needs it, for a backbone that has none."""
    if backbone.text is None:
        raise UserError(
            f"{what}: {backbone.name} has no text tower: take a backbone with text (tiny-clip, open_clip:..., hf:...)"
        )
    return backbone.text


def usual_alpha(rank: int) -> float:
    """LoRA's alpha: 16 at rank 8, growing with the root of the rank, so that the update alpha / rank x B A does not get
    smaller where the rank is larger (rank-stabilised LoRA: Kalajdzievski, arXiv 2312.03732)."""
    return 16.0 * (rank / 8) ** 0.5


def _with_lora(tower: nn.Module, rank: int, alpha: float, backbone: str) -> nn.Module:
    """Adapters on the attention and MLP Linears of every block (Hu et al., arXiv 2106.09685)."""
    from peft import LoraConfig, get_peft_model  # slow to import, and most commands adapt nothing

    targets = tower.lora_targets if isinstance(tower, ImageTower) else LORA_TARGETS
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    wrapped: nn.Module = get_peft_model(tower, settings)
    wrapped.peft_config["default"].base_model_name_or_path = backbone.removeprefix("hf:")  # type: ignore
    return wrapped
