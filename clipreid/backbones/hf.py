"""Read CLIP, SigLIP and fixed-resolution SigLIP2 from transformers-format folders, local or on the Hub."""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipreid.backbones.build import DEFAULT_SIZE, Source
from clipreid.backbones.text import TextConfig
from clipreid.backbones.tokenizer import read_tokenizer
from clipreid.backbones.vision import VisionConfig
from clipreid.disk import read_json
from clipreid.errors import UserError

# transformers' names of activations -> ours
ACTIVATION_NAMES = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
WANTED_FILES = [
    "*.json",
    "*.txt",
    "spiece.model",
    "tokenizer.model",
    "model.safetensors",
    "model-*.safetensors",
]
PICKLED = "pytorch_model.bin"  # old repositories have their weights in it
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json keeps them
OPENAI = "openai/clip-"  # the repositories whose weights need QuickGELU, and whose logits are raw
CONVERT = (
    "write it again with transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) makes "
    "model.safetensors"
)


def read_hf(name: str, revision: str | None = None) -> Source:
    """Read `name`: a local folder or a Hub id ("openai/clip-vit-base-patch16"), at a commit, branch or tag of it.

    The activation is the one that config.json names. It is checked where the weights are known to be OpenAI's: by the
    Hub id, or by the `_name_or_path` that transformers 4 wrote. Of other folders nothing is known: logits are
    cosines there, also of OpenAI's weights saved locally.

    Raises:
        UserError: no such folder or repository, no network, an architecture other than CLIP and SigLIP,
            OpenAI's weights with another activation than QuickGELU, weights that are missing.
    """
    folder, is_hub = _find_folder(name, revision)
    source = read_folder(folder)
    source.revision = folder.name if is_hub else None  # a snapshot in the cache is called after its commit
    origin = name if is_hub else str(_read_json(folder / "config.json").get("_name_or_path", ""))
    if not origin.lower().startswith(OPENAI):
        return source
    for tower, config in (("vision_config", source.vision), ("text_config", source.text)):
        if config.activation != "quick_gelu":
            raise UserError(
                f"hf:{name}: {tower} in config.json says {config.activation}, but the weights of {origin} were trained "
                'with QuickGELU, so the features would be wrong; set "hidden_act": "quick_gelu" there'
            )
    source.raw_logits = source.raw_logits or is_hub
    return source


def read_folder(folder: Path) -> Source:
    """Read a transformers-format folder: config.json, weights (whole or sharded), tokenizer, mean and std."""
    config = _read_json(folder / "config.json")
    vision, text, pad_id = _configs(config, folder)
    image_state, text_state, rest = split_state(_read_weights(folder))
    for state, what in ((image_state, "image"), (text_state, "text")):
        if not state:
            raise UserError(f"{folder} has no weights for the {what} tower; a folder with both is needed")
    preprocessor = _preprocessor(folder)
    ours = config.get("clipreid", {})
    return Source(
        vision,
        text,
        image_state,
        text_state,
        tokenizer=read_tokenizer(folder, text, pad_id),
        mean=_triple(preprocessor.get("image_mean")),
        std=_triple(preprocessor.get("image_std")),
        logit_scale=math.exp(rest["logit_scale"].item()) if "logit_scale" in rest else 1 / 0.07,
        logit_bias=rest["logit_bias"].item() if "logit_bias" in rest else 0.0,
        raw_logits=bool(ours.get("raw_logits", False)),
        interpolation=_interpolation(preprocessor, folder),
        image_size=tuple(ours.get("image_size", DEFAULT_SIZE)),
    )


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Settings of the images: in a file of their own, or (transformers 5) inside the processor's; {} without."""
    own, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    if own.is_file():
        return _read_json(own)
    return _read_json(whole).get("image_processor", {}) if whole.is_file() else {}


def _interpolation(preprocessor: dict[str, Any], folder: Path) -> str:
    """Pillow's number of the filter (`resample`) as a word; bicubic where nothing is said."""
    number = preprocessor.get("resample")
    if number is None:
        return "bicubic"
    if number not in RESAMPLE:
        raise UserError(f"{folder}: the images' resample is {number!r}; known are 2 (bilinear) and 3 (bicubic)")
    return RESAMPLE[number]


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's weights by tower, under the names of the standalone towers.

    Understands whole models (`vision_model.encoder...`, projections beside it) and image towers saved
    alone, by transformers 4 (with the `vision_model.` prefix) or 5 (without).

    Returns:
        (image tower, text tower, the rest: logit_scale, logit_bias).
    """
    image: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):  # a constant that old versions stored
            continue
        if key.startswith(("vision_model.", "visual_projection.")):
            image[key.removeprefix("vision_model.")] = tensor
        elif key.startswith(("text_model.", "text_projection.")):
            text[key.removeprefix("text_model.")] = tensor
        elif key.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")):
            image[key] = tensor
        else:
            rest[key] = tensor
    return image, text, rest


def _configs(config: dict[str, Any], folder: Path) -> tuple[VisionConfig, TextConfig, int | None]:
    """Our configs from config.json; transformers' config classes supply what the file leaves out."""
    from transformers import CLIPConfig, SiglipConfig

    kind = config.get("model_type")
    if kind == "siglip2":
        raise UserError(
            f"{folder} is a NaFlex SigLIP2 (variable resolution), which is not supported: take a "
            "fixed-resolution one such as hf:google/siglip2-base-patch16-256"
        )
    if re.fullmatch(r"(clip|siglip|siglip2)_(vision|text)_model", str(kind)):
        raise UserError(
            f"{folder} holds one tower alone (model_type {kind!r}), and both are needed: take the folder of the whole "
            "CLIPModel or SiglipModel (for an image tower without language there is timm:NAME)"
        )
    if kind not in ("clip", "siglip"):
        raise UserError(f"{folder}/config.json has model_type {kind!r}; supported: clip, siglip")
    is_clip = kind == "clip"
    whole = (CLIPConfig if is_clip else SiglipConfig).from_dict(config)
    v, t = whole.vision_config, whole.text_config
    if not is_clip and not v.vision_use_head:
        raise UserError(f"{folder}: this SigLIP has no pooling head (vision_use_head is false)")
    vision = VisionConfig(
        image_size=_pair(v.image_size),
        patch_size=_pair(v.patch_size)[0],
        width=v.hidden_size,
        depth=v.num_hidden_layers,
        heads=v.num_attention_heads,
        mlp_width=v.intermediate_size,
        embed_dim=whole.projection_dim if is_clip else v.hidden_size,
        pooling="cls" if is_clip else "attention",
        activation=_activation(v.hidden_act, folder),
        eps=v.layer_norm_eps,
    )
    eot_id = t.eos_token_id[0] if isinstance(t.eos_token_id, list) else t.eos_token_id
    text = TextConfig(
        vocab_size=t.vocab_size,
        context_length=t.max_position_embeddings,
        width=t.hidden_size,
        depth=t.num_hidden_layers,
        heads=t.num_attention_heads,
        mlp_width=t.intermediate_size,
        embed_dim=whole.projection_dim if is_clip else t.projection_size,
        causal=is_clip,
        activation=_activation(t.hidden_act, folder),
        eps=t.layer_norm_eps,
        eot_id=None if eot_id == 2 or not is_clip else eot_id,  # 2: a known mistake, means "the largest id"
    )
    return vision, text, t.pad_token_id


def _activation(name: str, folder: Path) -> str:
    if name not in ACTIVATION_NAMES:
        raise UserError(f"{folder}: activation {name!r}; supported: {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def _find_folder(name: str, revision: str | None) -> tuple[Path, bool]:
    """(folder, whether it came from the Hub)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path, False
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"hf:{name}: there is no folder {path}; give a folder or a Hub id OWNER/NAME")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=WANTED_FILES))
        if not any(folder.glob("model*.safetensors")):  # some old repositories have only this
            huggingface_hub.hf_hub_download(name, PICKLED, revision=folder.name)
    except (LocalEntryNotFoundError, ConnectionError) as error:
        at = f" (commit {revision})" if revision else ""
        raise UserError(
            f"hf:{name}{at} is not in the local cache and the Hub cannot be reached (or HF_HUB_OFFLINE is set): "
            "connect once, or give hf:FOLDER, or use tiny-clip, which needs no network"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"hf:{name} cannot be downloaded ({reason}): check the name on huggingface.co, and for a private "
            "or gated model log in with `hf auth login`"
        ) from error
    return folder, True


def _read_weights(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    if whole.is_file():
        return load_file(whole)
    if index.is_file():
        state: dict[str, Tensor] = {}
        for shard in sorted(set(_read_json(index)["weight_map"].values())):
            if Path(shard).name != shard:  # it could lead to any file of this machine
                raise UserError(f"{index} names {shard!r}, which does not lie beside it")
            if not (folder / shard).is_file():
                raise UserError(f"{folder / shard} is missing, though {index.name} names it")
            state.update(load_file(folder / shard))
        return state
    old = folder / PICKLED  # tensors only: what could run code is refused
    if old.is_file():
        try:
            return torch.load(old, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{old} holds more than tensors, or is damaged, and is not opened; {CONVERT}") from error
    if (folder / f"{old.name}.index.json").is_file():
        raise UserError(f"{folder}: weights in several {old.stem}-*.bin files are not read; {CONVERT}")
    raise UserError(f"{folder} has no weights: model.safetensors (or shards with {index.name}) is needed")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        hint = f": this is a folder of open_clip's, open_clip:{file.parent}"
        hint = hint if (file.parent / "open_clip_config.json").is_file() else ""
        raise UserError(f"{file} is missing; a transformers-format folder is needed{hint}")
    try:
        return read_json(file)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error


def _pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _triple(values: list[float] | None) -> tuple[float, float, float] | None:
    return (values[0], values[1], values[2]) if values else None
