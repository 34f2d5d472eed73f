"""Write a backbone as a transformers-format folder, readable by `CLIPModel` / `SiglipModel` and by us."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipreid.backbones.backbone import Backbone, Triple
from clipreid.backbones.build import POSITIONS
from clipreid.backbones.hf import RESAMPLE
from clipreid.backbones.imageonly import HOOKABLE
from clipreid.backbones.positions import square_positions
from clipreid.backbones.tokenizer import FastTokenizer
from clipreid.backbones.vision import VisionConfig, VisionTower

# our names of activations -> transformers'
ACTIVATION_NAMES = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def save_backbone(
    backbone: Backbone,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and the tokenizer's two files.

    Args:
        backbone: with square images and stride = patch size (`square_backbone` makes one of another),
            and a `FastTokenizer` or none.
        folder: made if it is not there; files of these names in it are replaced.
        dtype: of the stored weights (float16 halves the file); loading gives float32 again.
        image_size: (height, width) of the crop that `load_backbone` builds for by default;
            None: the backbone's own square.

    Raises:
        NotImplementedError: an image-only backbone.
        ValueError: positions that are not square, an unmerged adapter, an EOT id or a pair of towers or a
            tokenizer that the format cannot express.
    """
    _check(backbone)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(backbone.tokenizer, FastTokenizer):
        backbone.tokenizer.save(folder)
    _write_json(folder / "config.json", _config(backbone, image_size or backbone.image_size))
    resample = next(number for number, word in RESAMPLE.items() if word == backbone.interpolation)
    images = preprocessor(backbone.family, backbone.image_size, resample, backbone.mean, backbone.std)
    _write_json(folder / "preprocessor_config.json", images)
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in _state(backbone).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def square_backbone(backbone: Backbone, image_size: int) -> Backbone:
    """A copy for square images of `image_size` pixels, whose bicubic resize back is exactly the original.

    Raises:
        ValueError: the square's grid is coarser than the backbone's (see `square_positions`).
    """
    result = copy.deepcopy(backbone)
    result.image = square_tower(backbone.image, image_size)
    return result


def square_tower(tower: VisionTower, image_size: int) -> VisionTower:
    """The same of an image tower alone; raises the same."""
    config = replace(tower.config, image_size=(image_size, image_size), stride=None)
    square = VisionTower(config, tower.gradient_checkpointing).to(tower.post_layernorm.weight)
    state = dict(tower.state_dict())
    state[POSITIONS] = square_positions(state[POSITIONS], tower.grid, config.grid)
    square.load_state_dict(state)
    return square


def _check(backbone: Backbone) -> None:
    if backbone.family == "image-only":
        raise NotImplementedError(f"{backbone.name} has no folder format of transformers; {HOOKABLE}")
    image, text = backbone.image, backbone.text
    height, width = backbone.image_size
    if height != width or image.stride != image.patch_size:
        raise ValueError(
            f"the folder's format has square images with stride = patch size; this backbone has "
            f"{height}x{width}, stride {image.stride}: pass it through square_backbone first"
        )
    if any("lora_" in key or "base_layer" in key for key in backbone.state_dict()):
        raise ValueError("the towers carry an adapter: merge_and_unload it first")
    if image.has_cls != text.causal:
        raise ValueError("transformers pairs a CLS image tower with a causal text tower, or neither")
    if text.causal and text.config.eot_id == 2:
        raise ValueError("transformers misreads eos_token_id 2 as 'the largest id': give EOT another id")
    if not isinstance(backbone.tokenizer, FastTokenizer | None):
        kind = type(backbone.tokenizer).__name__
        raise ValueError(f"a {kind} cannot be stored: set backbone.tokenizer to a FastTokenizer or None")


def _state(backbone: Backbone) -> dict[str, Tensor]:
    """All weights under transformers' names."""
    state: dict[str, Tensor] = {}
    for key, value in backbone.image.state_dict().items():
        state[key if key.startswith("visual_projection.") else f"vision_model.{key}"] = value
    for key, value in backbone.text.state_dict().items():
        state[key if key.startswith("text_projection.") else f"text_model.{key}"] = value
    scale = torch.tensor(math.log(backbone.logit_scale))
    if backbone.family == "clip":
        return {**state, "logit_scale": scale}
    return {**state, "logit_scale": scale[None], "logit_bias": torch.tensor([backbone.logit_bias])}


def _config(backbone: Backbone, image_size: tuple[int, int]) -> dict[str, Any]:
    is_clip = backbone.family == "clip"
    v, t = backbone.image.config, backbone.text.config
    vision = vision_config(v)
    text = {
        "model_type": f"{backbone.family}_text_model",
        "dtype": "float32",
        "vocab_size": t.vocab_size,
        "max_position_embeddings": t.context_length,
        "hidden_size": t.width,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "intermediate_size": t.mlp_width,
        "hidden_act": ACTIVATION_NAMES[t.activation],
        "layer_norm_eps": t.eps,
        "bos_token_id": None,
        "eos_token_id": 2 if t.eot_id is None else t.eot_id,  # 2: transformers then takes the largest id
        "pad_token_id": backbone.tokenizer.pad_id if isinstance(backbone.tokenizer, FastTokenizer) else 0,
    }
    text["projection_dim" if is_clip else "projection_size"] = t.embed_dim
    top = {"projection_dim": v.embed_dim, "logit_scale_init_value": math.log(backbone.logit_scale)}
    return {
        "architectures": ["CLIPModel" if is_clip else "SiglipModel"],
        "model_type": backbone.family,
        "dtype": "float32",
        **(top if is_clip else {}),
        "vision_config": vision,
        "text_config": text,
        "clipreid": {"image_size": list(image_size), "raw_logits": backbone.raw_logits},
    }


def vision_config(config: VisionConfig) -> dict[str, Any]:
    """transformers' config of an image tower for square images, as a folder of that tower alone has it, too."""
    family = "clip" if config.pooling == "cls" else "siglip"
    found = {
        "model_type": f"{family}_vision_model",
        "dtype": "float32",  # for who loads one tower alone: else transformers keeps the stored float16
        "image_size": config.image_size[0],
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.eps,
    }
    return found | ({"projection_dim": config.embed_dim} if family == "clip" else {})


def preprocessor(family: str, size: tuple[int, int], resample: int, mean: Triple, std: Triple) -> dict[str, Any]:
    """transformers' image processor: the whole image resized to (height, width) with Pillow's filter of the number
    `resample`, then normalised."""
    return {
        "image_processor_type": "CLIPImageProcessor" if family == "clip" else "SiglipImageProcessor",
        "do_resize": True,
        "do_center_crop": False,
        "size": {"height": size[0], "width": size[1]},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
