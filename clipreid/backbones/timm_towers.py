"""Image-only transformers from timm, wrapped: DINOv2, DINOv3, PE-Core, PE-Spatial, EVA-02, supervised ViT.

Images are prepared as timm's own `pretrained_cfg` says (mean, std, interpolation), except that the whole crop is
kept: no centre crop, no square. The position table is resized to the crop's grid by timm; rotary positions need none.

The one feature is what the weights' own head would read, timm's `forward_head(pre_logits=True)`:

    DINOv2, DeiT, supervised ViT, CLIP's ViT     the CLS token after the final norm
    DINOv3                                       the same, as its authors use it (timm's default is the mean)
    PE-Core, SigLIP's ViT                        attention pooling, before the projection into the text space
    PE-Spatial, EVA-02 (not its CLIP variants)   the mean of the patches
"""

import re
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from clipreid.backbones.imageonly import BROKEN, ImageBackbone, ImageTower, check_weights, crop_size, read_weights
from clipreid.backbones.positions import PositionMode
from clipreid.backbones.vision import Tokens
from clipreid.errors import UserError

MODULES = ("vision_transformer", "eva", "deit")  # of timm: those whose models are plain ViTs
POOLINGS = {"token": "CLS", "avg": "mean", "map": "attention"}
ADVICE = (
    f"of timm only plain ViTs are wrapped (its modules {', '.join(MODULES)}), such as "
    "timm:vit_small_patch14_dinov2.lvd142m; for a convolutional baseline take osnet:x1_0/FILE"
)


class TimmTower(ImageTower):
    """A timm ViT or EVA, its head removed. LoRA adapts every Linear of every block."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.image_size = model.patch_embed.img_size
        self.stride = model.patch_embed.patch_size[0]
        self.embed_dim = model.num_features
        self.pooling = POOLINGS.get(model.global_pool, model.global_pool)
        linears = {n.partition(".")[2] for n, m in model.blocks.named_modules() if isinstance(m, nn.Linear)}
        self.lora_targets = rf"model\.blocks\.\d+\.({'|'.join(re.escape(name) for name in sorted(linears))})"
        for module in model.modules():
            if getattr(module, "q_bias", None) is not None:  # EVA: else timm takes qkv's weight without its adapter
                module.qkv_bias_separate = True

    def tokens(self, pixels: Tensor) -> Tokens:
        x = self.model.forward_features(pixels)  # [B, prefix+N, C], the prefix being CLS and registers
        cls = x[:, 0] if self.model.cls_token is not None else None
        patches = x[:, self.model.num_prefix_tokens :]
        pooled = self.model.forward_head(x, pre_logits=True)  # [B, E]
        return Tokens(cls, patches, self.model.patch_embed.grid_size, {}, pooled)


def load_timm(
    spec: str,
    image_size: int | tuple[int, int] | None = None,
    positions: PositionMode = "bicubic",
    gradient_checkpointing: bool = False,
) -> ImageBackbone:
    """`NAME` as in `timm.list_models(pretrained=True)`, or `NAME/FILE` with a weights file of that model.

    positions: how timm resizes the position table, with antialiasing.

    Raises:
        UserError: unknown name, a model that is no plain ViT, weights that are not available or do not fit, an image
            size that is not a multiple of the patch.
    """
    import timm
    from timm.data import resolve_data_config

    name, _, file = spec.partition("/")
    cfg = _check_name(name)
    how = {"global_pool": "token"} if "_dinov3" in name else {}
    patch = timm.create_model(name, num_classes=0, device="meta", **how).patch_embed
    if type(patch) is not timm.layers.PatchEmbed:
        raise UserError(f"timm:{name} has a {type(patch).__name__} before its blocks: {ADVICE}")
    size = crop_size(image_size, patch.patch_size[0], f"timm:{name}")
    state = read_weights(file, f"timm:{spec}") if file else _download(name, cfg)
    model = timm.create_model(name, num_classes=0, img_size=size, **how)
    _fill(model, state, cfg, positions, f"timm:{spec}")
    model.set_grad_checkpointing(gradient_checkpointing)
    data = resolve_data_config(pretrained_cfg=cfg)
    return ImageBackbone(
        TimmTower(model.eval()),
        name=f"timm:{spec}",
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
    )


def _check_name(name: str) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a model that can be wrapped; a name without a tag means timm's default tag."""
    import timm

    known = {model for module in MODULES for model in timm.list_models(module=module)}
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained()
    if architecture in known and (not tag or name in tagged):
        return timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict()
    if architecture in known:
        tags = ", ".join(full for full in tagged if full.split(".")[0] == architecture)
        raise UserError(f"timm:{name}: timm has no weights {tag!r} of {architecture}; it has: {tags or '(none)'}")
    if architecture in timm.list_models():
        raise UserError(f"timm:{name} is not a plain vision transformer: {ADVICE}")
    close = get_close_matches(name, [*known, *tagged], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models(pretrained=True)"
    raise UserError(f"timm has no model {name!r}: {hint}")


def _download(name: str, cfg: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that timm names for this model, from the Hub or its local cache."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from timm.models import load_state_dict_from_hf

    if not cfg.get("hf_hub_id"):
        raise UserError(f"timm:{name}: there are no published weights of it on the Hub; give a file, timm:{name}/FILE")
    place = [cfg["hf_hub_id"]] + ([cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else [])
    try:
        return load_state_dict_from_hf(*place, weights_only=True)
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise UserError(
            f"timm:{name}: its weights ({place[0]}) are not in the local cache and the Hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set): connect once, or give a file, timm:{name}/FILE"
        ) from error
    except (HfHubHTTPError, *BROKEN) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"timm:{name}: its weights ({place[0]}) cannot be downloaded ({reason}): try again, log in with "
            f"`hf auth login` if they are gated, or give a file, timm:{name}/FILE"
        ) from error


def _fill(model: Any, state: dict[str, Tensor], cfg: dict[str, Any], positions: PositionMode, what: str) -> None:
    """Loads the weights through timm's own conversion, which also resizes the positions; all or nothing."""
    from timm.models import eva, vision_transformer

    try:
        if isinstance(model, eva.Eva):
            state = eva.checkpoint_filter_fn(state, model, interpolation=positions)
        else:
            state = vision_transformer.checkpoint_filter_fn(
                state, model, adapt_layer_scale=True, interpolation=positions
            )
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{what}: timm cannot convert these weights ({error}); are they of this model?") from error
    heads = cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    state = {key: tensor.float() for key, tensor in state.items() if not key.startswith(heads)}
    check_weights(model, state, what)
    model.load_state_dict(state)
