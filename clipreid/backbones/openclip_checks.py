"""What can be known of an open_clip name before its weights are downloaded: spelling, tag, activation, architecture."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from clipreid.disk import read_json
from clipreid.errors import UserError

CONFIG_FILE = "open_clip_config.json"
SUPPORTED = (
    "supported are plain CLIP ViTs (ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, ... with -quickgelu where the weights need "
    "it) and SigLIP (ViT-*-SigLIP*, ViT-*-SigLIP2*), such as open_clip:ViT-B-16-quickgelu/openai or "
    "open_clip:ViT-B-16-SigLIP2-256/webli"
)


def unsupported(name: str, why: str) -> UserError:
    """The error for a model that our towers cannot be."""
    return UserError(f"open_clip model {name} cannot be converted: {why}; {SUPPORTED}")


def check_config(config: dict[str, Any], name: str) -> None:
    """Refuse what the config alone shows, before another library downloads a text tower that would be refused."""
    text_tower = config["text_cfg"].get("hf_model_name")
    if "multimodal_cfg" in config:
        raise unsupported(name, "it is a captioning model (CoCa)")
    if text_tower:
        raise unsupported(name, f"its text tower is {text_tower}, not CLIP's or SigLIP's")


def check_folder(folder: Path) -> dict[str, Any]:
    """The model's config in a folder that open_clip wrote.

    Raises:
        UserError: no open_clip_config.json in it, or not one of open_clip's.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(
            f"open_clip:{folder}: {file} is missing; a folder needs it beside the weights (a folder of transformers, "
            f"with config.json, is hf:{folder}; a weights file is open_clip:MODEL/FILE)"
        )
    try:
        return read_json(file)["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a config of open_clip's (JSON with model_cfg): {error}") from error


def check_name(name: str, weights: str) -> None:
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
