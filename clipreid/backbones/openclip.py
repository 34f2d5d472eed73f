"""Read CLIP and SigLIP from open_clip: its factory builds and fills them, then names are translated."""

import re
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipreid.backbones.backbone import SIGLIP_MEAN, SIGLIP_STD
from clipreid.backbones.blocks import ACTIVATIONS
from clipreid.backbones.build import POSITIONS, Source
from clipreid.backbones.text import TextConfig
from clipreid.backbones.tokenizer import OpenClipTokenizer
from clipreid.backbones.vision import VisionConfig
from clipreid.errors import UserError

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
    """Read `MODEL/TAG` or `MODEL/FILE`, e.g. "ViT-B-16-quickgelu/openai".

    Raises:
        UserError: unknown model or tag, QuickGELU mismatch, weights that cannot be downloaded or do not
            fit, or a model that is not a plain CLIP or SigLIP ViT.
    """
    import open_clip

    name, _, weights = spec.partition("/")
    _check_name(name, weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = open_clip.create_model(name, pretrained=weights, device="cpu", precision="fp32")
    except Exception as error:  # open_clip, torch, the hub and the network each raise their own
        reason = "; ".join(str(error).strip().splitlines()[:2])
        todo = (
            f"is {weights} really a checkpoint of {name}?"
            if Path(weights).is_file()
            else "check the network, or download the file elsewhere and give open_clip:MODEL/FILE"
        )
        raise UserError(f"open_clip:{spec}: the weights cannot be loaded ({reason}): {todo}") from error
    source = convert(model, name)
    if Path(weights).is_file():
        if source.vision.pooling == "attention":  # open_clip knows SigLIP's mean and std by tag only
            source.mean, source.std = SIGLIP_MEAN, SIGLIP_STD
    else:
        source.raw_logits = weights.lower() == "openai"
    return source


def convert(model: nn.Module, name: str) -> Source:
    """An open_clip model, as `open_clip.create_model` builds it, to a `Source`.

    Raises:
        UserError: not a plain CLIP ViT or SigLIP (ResNets, CoCa, other text towers, ...).
    """
    visual: Any = model.visual
    vision, image_state = _timm_image(visual, name) if hasattr(visual, "trunk") else _clip_image(visual, name)
    text, text_state = _text(model, name)
    bias: Any = getattr(model, "logit_bias", None)
    scale: Any = model.logit_scale
    return Source(
        vision,
        text,
        image_state,
        text_state,
        tokenizer=OpenClipTokenizer(name, text),
        mean=tuple(visual.preprocess_cfg["mean"]),
        std=tuple(visual.preprocess_cfg["std"]),
        logit_scale=scale.exp().item(),
        logit_bias=0.0 if bias is None else bias.item(),
    )


def _clip_image(visual: Any, name: str) -> tuple[VisionConfig, dict[str, Tensor]]:
    if not hasattr(visual, "class_embedding") or visual.attn_pool is not None or visual.pool_type != "tok":
        raise _unsupported(name, "its image tower is not a ViT that pools at the CLS token")
    state = {key: value for key, value in visual.state_dict().items() if key != "proj"}
    state = _translate(state, CLIP_NAMES)
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
    if not hasattr(pool, "latent") or getattr(trunk, "cls_token", None) is not None:
        raise _unsupported(name, "its timm image tower is not SigLIP's (patch tokens and attention pooling)")
    state = _translate(visual.state_dict(), TIMM_NAMES)
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
        raise _unsupported(name, "its text tower is not CLIP's or SigLIP's")
    causal = tower.attn_mask is not None
    pool = getattr(tower, "pool_type", None) or model.text_pool_type
    if pool not in (("argmax", "eos") if causal else ("last",)):
        raise _unsupported(name, f"its {'causal' if causal else 'bidirectional'} text tower pools {pool!r}")
    kept = ("token_embedding", "positional_embedding", "transformer", "ln_final", "cls_emb")
    state = {key: value for key, value in tower.state_dict().items() if key.split(".")[0] in kept}
    state = _translate(state, CLIP_NAMES)
    projection = tower.text_projection
    if projection is None:
        raise _unsupported(name, "its text tower has no projection")
    weight = projection.weight if isinstance(projection, nn.Linear) else projection.T  # [E, W]
    bias = projection.bias if isinstance(projection, nn.Linear) else None
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


def _translate(state: dict[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
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
    raise _unsupported(name, f"activation {type(module).__name__}")


def _norms(module: nn.Module) -> list[nn.LayerNorm]:
    return [m for m in module.modules() if isinstance(m, nn.LayerNorm)]


def _norm_eps(module: nn.Module, name: str) -> float:
    return _same((norm.eps for norm in _norms(module)), name)


def _same(values: Any, name: str) -> Any:
    """The one value that all modules share."""
    found = set(values)
    if len(found) != 1:
        raise _unsupported(name, f"its blocks differ from each other: {sorted(found)}")
    return found.pop()


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _unsupported(name: str, why: str) -> UserError:
    return UserError(
        f"open_clip model {name} cannot be converted: {why}; use a plain CLIP ViT such as "
        "open_clip:ViT-B-16-quickgelu/openai or a SigLIP such as open_clip:ViT-B-16-SigLIP2-256/webli"
    )


def _check_name(name: str, weights: str) -> None:
    """Refuse what open_clip would refuse with a long list, or accept with a mere warning."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    models = open_clip.list_models()
    if name not in models:
        close = get_close_matches(name, models, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
        raise UserError(f"open_clip has no model {name!r}: {hint}")
    if Path(weights).is_file():
        return
    tags = list_pretrained_tags_by_model(name)
    known = get_pretrained_cfg(name, weights) if weights else {}
    plain = name.removesuffix("-quickgelu")
    if not known and weights and get_pretrained_cfg(plain, weights):
        raise UserError(
            f"open_clip:{name}/{weights}: these weights were trained without QuickGELU; use open_clip:{plain}/{weights}"
        )
    if not known:
        listed = ", ".join(tags) or "(none)"
        given = f"{weights!r} is neither a tag of {name} nor a file" if weights else f"no weights given for {name}"
        raise UserError(f"open_clip:{name}/{weights}: {given}; its tags: {listed}")
    wanted, has = known.get("quick_gelu", False), open_clip.get_model_config(name).get("quick_gelu", False)
    if wanted and not has:
        raise UserError(
            f"open_clip:{name}/{weights}: these weights were trained with QuickGELU, but {name} has GELU, so "
            f"the features would be wrong; use open_clip:{name}-quickgelu/{weights}"
        )
    if has and not wanted:
        raise UserError(
            f"open_clip:{name}/{weights}: these weights were trained without QuickGELU, but {name} has it; "
            "choose a model name without it"
        )
