"""Read CLIP and SigLIP from open_clip: its factory builds and fills them, then names are translated."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from clipreid.backbones.backbone import SIGLIP_MEAN, SIGLIP_STD
from clipreid.backbones.build import POSITIONS, Source
from clipreid.backbones.openclip_checks import check_config, check_folder, check_name, unsupported
from clipreid.backbones.text import TextConfig
from clipreid.backbones.tokenizer import OpenClipTokenizer
from clipreid.backbones.transformer import ACTIVATIONS
from clipreid.backbones.vision import VisionConfig
from clipreid.errors import UserError

OPENAI = "open_clip:ViT-B-16-quickgelu/openai"
LOCAL = "local-dir:"  # open_clip's own prefix of a folder
# open_clip's names -> ours, applied in this order
CLIP_NAMES = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", POSITIONS),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.in_proj_", ".self_attn.qkv_proj."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
TIMM_NAMES = (
    (r"^trunk\.", ""),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^pos_embed$", POSITIONS),
    (r"^blocks\.", "encoder.layers."),
    (r"^norm\.", "post_layernorm."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv_proj."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"^attn_pool\.latent$", "head.probe"),
    (r"^attn_pool\.proj\.", "head.attention.out_proj."),
    (r"^attn_pool\.norm\.", "head.layernorm."),
    (r"^attn_pool\.mlp\.", "head.mlp."),
)


def read_open_clip(spec: str) -> Source:
    """Read `MODEL/TAG` ("ViT-B-16-quickgelu/openai"), `MODEL/FILE`, or `FOLDER` as open_clip itself writes them.

    What needs QuickGELU is known of every tag (a mismatch is refused) and of a folder (its open_clip_config.json
    says so), but not of a file: whoever gives OpenAI's weights as a file names the -quickgelu model himself.

    Raises:
        UserError: unknown model or tag, QuickGELU mismatch, weights that cannot be downloaded or do not
            fit, or a model that is not a plain CLIP or SigLIP ViT (said before anything is downloaded).
    """
    name, _, weights = spec.partition("/")
    folder = Path(spec).expanduser()
    if folder.is_dir() and name not in open_clip.list_models():
        config = check_folder(folder)
        return _load(f"{LOCAL}{folder}", "", config, f"is there a checkpoint in {folder}, and of that config?")
    check_name(name, weights)
    config = open_clip.get_model_config(name)
    if Path(weights).is_file():
        source = _load(name, weights, config, f"is {weights} really a checkpoint of {name}?")
        if source.vision.pooling == "attention":  # open_clip knows SigLIP's mean and std by tag only
            source.mean, source.std = SIGLIP_MEAN, SIGLIP_STD
        return source
    advice = "check the network, or download the file elsewhere and give open_clip:MODEL/FILE"
    source = _load(name, weights, config, advice)
    source.raw_logits = weights.lower() == "openai"
    return source


def _load(name: str, weights: str, config: dict[str, Any], advice: str) -> Source:
    """Refuse the architecture if need be, then read the weights (of a folder when `weights` is empty)."""
    try_out(name, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = open_clip.create_model(name, weights or None, device="cpu", require_pretrained=True)
        except Exception as error:  # open_clip, torch, the hub and the network each raise their own
            reason = "; ".join(str(error).strip().splitlines()[:2])
            if "TorchScript" in reason:
                reason, advice = "a TorchScript archive, which can run code", f"take a tag such as {OPENAI}"
            given = f"{name}/{weights}" if weights else name.removeprefix(LOCAL)
            raise UserError(f"open_clip:{given}: the weights cannot be loaded ({reason}): {advice}") from error
    return convert(model, name)


def try_out(name: str, config: dict[str, Any]) -> tuple[VisionConfig, TextConfig]:
    """The towers' shapes, from an open_clip model without weights; `UserError` where our towers have no such shape."""
    check_config(config, name)
    with warnings.catch_warnings(), torch.device("meta"), _without_weights():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(name, load_weights=False, device="meta")
    vision, _, text, _ = _towers(model, name)
    return vision, text


@contextmanager
def _without_weights() -> Iterator[None]:
    """Keeps back open_clip's warning of a randomly initialised model: none is wanted here, the weights come later."""

    def keep(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    root = logging.getLogger()  # which open_clip writes to
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def convert(model: nn.Module, name: str) -> Source:
    """An open_clip model, as `open_clip.create_model` builds it, to a `Source`.

    Raises:
        UserError: not a plain CLIP ViT or SigLIP (ResNets, CoCa, other text towers, ...).
    """
    vision, image_state, text, text_state = _towers(model, name)
    bias: Any = getattr(model, "logit_bias", None)
    scale: Any = model.logit_scale
    preprocessing: Any = model.visual.preprocess_cfg  # type: ignore[union-attr]
    return Source(
        vision,
        text,
        image_state,
        text_state,
        tokenizer=OpenClipTokenizer(name, text),
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        logit_scale=scale.exp().item(),
        logit_bias=0.0 if bias is None else bias.item(),
        interpolation=preprocessing.get("interpolation", "bicubic"),
    )


def _towers(model: nn.Module, name: str) -> tuple[VisionConfig, dict[str, Tensor], TextConfig, dict[str, Tensor]]:
    """Configs and weights of both towers."""
    visual: Any = model.visual
    image = _timm_image(visual, name) if hasattr(visual, "trunk") else _clip_image(visual, name)
    return *image, *_text(model, name)


def _clip_image(visual: Any, name: str) -> tuple[VisionConfig, dict[str, Tensor]]:
    if not hasattr(visual, "class_embedding") or visual.attn_pool is not None or visual.pool_type != "tok":
        raise unsupported(name, "its image tower is not a ViT that pools at the CLS token")
    state = {key: value for key, value in visual.state_dict().items() if key != "proj"}
    state = translate(state, CLIP_NAMES)
    state["visual_projection.weight"] = visual.proj.T
    block = visual.transformer.resblocks[0]
    config = VisionConfig(
        image_size=_pair(visual.image_size),
        patch_size=_pair(visual.patch_size)[0],
        width=visual.conv1.out_channels,
        depth=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp_width=block.mlp.c_fc.out_features,
        embed_dim=visual.proj.shape[1],
        activation=_same((_activation(b.mlp.gelu, name) for b in visual.transformer.resblocks), name),
        eps=_norm_eps(visual, name),
    )
    return config, state


def _timm_image(visual: Any, name: str) -> tuple[VisionConfig, dict[str, Tensor]]:
    trunk = visual.trunk
    pool: Any = getattr(trunk, "attn_pool", None)
    if type(trunk) is not VisionTransformer or any(type(block) is not Block for block in trunk.blocks):
        raise unsupported(name, f"its image tower is timm's {type(trunk).__name__}, not SigLIP's ViT")
    if trunk.num_prefix_tokens or trunk.pos_embed is None or not hasattr(pool, "latent") or pool.pool != "token":
        raise unsupported(name, "its timm ViT is not SigLIP's (patch tokens with positions, attention pooling)")
    state = translate(visual.state_dict(), TIMM_NAMES)
    for part in ("weight", "bias"):
        pair = [state.pop(f"attn_pool.{key}.{part}") for key in ("q", "kv")]
        state[f"head.attention.in_proj_{part}"] = torch.cat(pair)
    state[POSITIONS] = state[POSITIONS][0]  # [1, N, C] -> [N, C]
    first = trunk.blocks[0]
    config = VisionConfig(
        image_size=_pair(trunk.patch_embed.img_size),
        patch_size=_pair(trunk.patch_embed.patch_size)[0],
        width=trunk.embed_dim,
        depth=len(trunk.blocks),
        heads=_same((pool.num_heads, first.attn.num_heads), name),
        mlp_width=first.mlp.fc1.out_features,
        embed_dim=trunk.embed_dim,
        pooling="attention",
        activation=_same((_activation(m.mlp.act, name) for m in (*trunk.blocks, pool)), name),
        eps=_norm_eps(trunk, name),
    )
    return config, state


def _text(model: Any, name: str) -> tuple[TextConfig, dict[str, Tensor]]:
    tower = getattr(model, "text", model)  # CustomTextCLIP keeps the tower apart, CLIP spreads it out
    if not hasattr(tower, "token_embedding"):
        raise unsupported(name, "its text tower is not CLIP's or SigLIP's")
    causal = tower.attn_mask is not None
    pool = getattr(tower, "pool_type", None) or model.text_pool_type
    if pool not in (("argmax", "eos") if causal else ("last",)):
        raise unsupported(name, f"its {'causal' if causal else 'bidirectional'} text tower pools {pool!r}")
    kept = ("token_embedding", "positional_embedding", "transformer", "ln_final", "cls_emb")
    state = {key: value for key, value in tower.state_dict().items() if key.split(".")[0] in kept}
    state = translate(state, CLIP_NAMES)
    projection = tower.text_projection
    if projection is None:  # as SigLIP So400m i18n: the token's own features
        projection = torch.eye(tower.token_embedding.embedding_dim)
    is_linear = isinstance(projection, nn.Linear)
    weight, bias = (projection.weight, projection.bias) if is_linear else (projection.T, None)  # weight [E, W]
    layer = "text_projection" if causal else "head"
    state[f"{layer}.weight"] = weight
    if bias is not None or not causal:
        state[f"{layer}.bias"] = torch.zeros(len(weight)) if bias is None else bias
    block: Any = tower.transformer.resblocks[0]
    eos_id = tower.eos_id if hasattr(tower, "eos_id") else getattr(model, "text_eos_id", None)
    config = TextConfig(
        vocab_size=tower.token_embedding.num_embeddings,
        context_length=len(tower.positional_embedding),
        width=tower.token_embedding.embedding_dim,
        depth=len(tower.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp_width=block.mlp.c_fc.out_features,
        embed_dim=len(weight),
        causal=causal,
        activation=_same((_activation(b.mlp.gelu, name) for b in tower.transformer.resblocks), name),
        eps=_same((m.eps for m in (*_norms(tower.transformer), tower.ln_final)), name),
        eot_id=eos_id if pool == "eos" else None,
    )
    return config, state


def translate(state: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Rename keys and split each fused query-key-value projection in three."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        if ".qkv_proj." in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                result[key.replace(".qkv_proj.", f".{letter}_proj.")] = part
        else:
            result[key] = tensor
    return result


def _activation(module: nn.Module, name: str) -> str:
    """Our name of an activation module, recognised by what it computes."""
    x = torch.linspace(-6, 6, 241)
    for ours, function in ACTIVATIONS.items():
        if torch.allclose(module(x.clone()), function(x), rtol=0, atol=1e-6):
            return ours
    raise unsupported(name, f"activation {type(module).__name__}")


def _norms(module: nn.Module) -> list[nn.LayerNorm]:
    return [m for m in module.modules() if isinstance(m, nn.LayerNorm)]


def _norm_eps(module: nn.Module, name: str) -> float:
    return _same((norm.eps for norm in _norms(module)), name)


def _same(values: Any, name: str) -> Any:
    """The one value that all modules share."""
    found = set(values)
    if len(found) != 1:
        raise unsupported(name, f"its blocks differ from each other: {sorted(found)}")
    return found.pop()


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
