"""Using a run without clipreid: whether peft and transformers alone give its features, and how."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipreid.backbones.imported import IMPORTED
from clipreid.backbones.load import TINY, is_image_only
from clipreid.disk import read_json
from clipreid.methods import get_method, method_names
from clipreid.model import ReIDModel

# open_clip's names of OpenAI's weights and the Hub's repositories of the same weights, in transformers' layout
OPENAI = {
    "open_clip:ViT-B-32-quickgelu/openai": "openai/clip-vit-base-patch32",
    "open_clip:ViT-B-16-quickgelu/openai": "openai/clip-vit-base-patch16",
    "open_clip:ViT-L-14-quickgelu/openai": "openai/clip-vit-large-patch14",
    "open_clip:ViT-L-14-336-quickgelu/openai": "openai/clip-vit-large-patch14-336",
}
# How `clipreid.data.images` reads an image, for programs without clipreid; `embed` refuses other depths too
RGB_LINES = (
    "def rgb(image):  # upright by EXIF, 16 bits to 8, transparency on black",
    "    image = ImageOps.exif_transpose(image)",
    '    if image.mode == "F":',
    '        raise ValueError("scale the values of the image to 8 bits first")',
    '    if image.mode.startswith("I"):',
    "        values = numpy.asarray(image)",
    '        deep = image.mode != "I" or values.max() > 255',
    '        image = Image.fromarray((values // 256 if deep else values).astype("uint8"))',
    '    if "A" in image.getbands() or "transparency" in image.info:',
    '        image = image.convert("RGBA")',
    '        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)',
    '    return image.convert("RGB")',
)
CLASSES = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}  # of transformers, by family


def plain_settings(method: str) -> dict[str, tuple[Any, ...]] | None:
    """The values of a method's settings with which peft and transformers are *shown* to give its features.

    They stand in the method's file (`PLAIN`), and tests/hub/test_plain.py tries each; what is not there is not plain.
    None for a method that names none, and for one that this version does not have.
    """
    return getattr(get_method(method), "PLAIN", None) if method in method_names() else None


def transformers_base(backbone: str) -> str | None:
    """What holds the weights of a backbone in transformers' layout, by `load_backbone`'s name for it.

    Returns:
        A Hub repository OWNER/NAME; a folder for `hf:FOLDER`; `tiny-clip` or `tiny-siglip2` for what lies in
        `weights/` of this package; None where no such repository is known for certain (open_clip's other tags,
        some of which have the weights there with another activation) or there can be none (timm, OSNet, imported).
    """
    if backbone in TINY:
        return backbone
    if backbone.startswith("hf:"):
        return backbone.removeprefix("hf:")
    return OPENAI.get(backbone)


def plain_base(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """Whether the adapter of a run, on transformers' own image tower, gives the run's features without clipreid.

    Args:
        config: `config.json` of a finished run; only `backbone`, `method` and `config` are read.

    Returns:
        (base, reason): `transformers_base` of its backbone, and None if peft and transformers with
        `interpolate_pos_encoding=True` are shown to give equal features (`plain_settings`), else a sentence that says
        why not.
    """
    base = transformers_base(config["backbone"]["name"])
    return base, next(iter(_reasons(base, config)), None)


def _reasons(base: str | None, config: dict[str, Any]) -> list[str]:
    source, method, settings = config["backbone"], config["method"], config["config"]
    name, tuning, shown = source["name"], settings.get("tuning"), plain_settings(method)
    if name == IMPORTED:
        return ["it was imported as a whole image tower: there is no adapter"]
    found = {
        f"{name} is an image-only tower, which transformers has no such model for": is_image_only(name),
        "all weights of the image tower were trained: there is no adapter": tuning == "full",
        "a linear map on the frozen features was trained: there is no adapter": tuning == "head",
        f"its patches overlap (stride {source.get('stride')}), which transformers' towers cannot": source.get("stride"),
        "its position table was resized bilinearly, and transformers resizes it bicubically": (
            source.get("positions") == "bilinear"
        ),
        f"no repository in transformers' layout is known for certain to hold the weights of {name}": base is None,
        f"its method, {method}, is not among those that are shown to work without clipreid": shown is None,
    }
    reasons = [reason for reason, holds in found.items() if holds]
    odd = [flag for flag, values in (shown or {}).items() if settings.get(flag, values[0]) not in values]
    return reasons or [
        f"it has {flag} {settings[flag]}, which transformers' towers are not shown to do" for flag in odd
    ]


def plain_facts(source: dict[str, Any], model: ReIDModel) -> dict[str, Any]:
    """What of `config.json` `plain_base` reads, for a model that is being saved; `source`: its backbone's record."""
    settings = {} if model.config is None else asdict(model.config)
    return {"backbone": source, "method": model.method, "config": settings}


def mark_adapter(folder: Path, config: dict[str, Any], family: str) -> None:
    """Writes into `adapter_config.json` in `folder` what the adapter belongs on, as far as peft can make use of it.

    `base_model_name_or_path` is the backbone's repository or folder for transformers (its name where there is none),
    `revision` the commit it was trained on.
    `auto_mapping` is transformers' class where `AutoPeftModel` then loads a tower that gives the run's features, else
    null: better no tower than one with other features.

    Args:
        config: as for `plain_base`.  family: "clip", "siglip" or "image-only".
    """
    file = folder / "adapter_config.json"
    settings = read_json(file)
    base, reason = plain_base(config)
    settings["base_model_name_or_path"] = base or config["backbone"]["name"]
    settings["revision"] = config["backbone"].get("revision")
    can = reason is None and base not in TINY
    settings["auto_mapping"] = {"base_model_class": CLASSES[family], "parent_library": "transformers"} if can else None
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def plain_lines(model: ReIDModel, base: str, adapter: str, image: str = "a.jpg", revision: str | None = None) -> str:
    """Python that turns an image into the feature of `model.embed` with peft and transformers only.

    Args:
        model: of a run without a reason in `plain_base`.
        base: its base from there.
        adapter: the Hub repository, or the folder with `adapter_config.json`.
        image: the file that the lines open.
        revision: the base's commit.

    Returns:
        The lines; they leave the test feature, float32 [1, D] of unit length, in `feature`.
    """
    whole = "CLIPModel" if model.family == "clip" else "SiglipModel"  # vision_model: CLIP- or SiglipVisionModel
    tiny = base in TINY
    place = base_argument(base, revision)
    load = [
        f"base = {whole}.from_pretrained({place}, dtype=torch.float32)",
        f"tower = PeftModel.from_pretrained(base.vision_model, {json.dumps(adapter)}).eval()",
    ]
    imports = ["from importlib.resources import files"] * tiny + ["from peft import PeftModel"]
    return _lines(model, imports, whole, load, image)


def plain_text_lines(
    model: ReIDModel, base: str, run: str, text: str = "a person in a red coat", revision: str | None = None
) -> str:
    """Python behind that of `plain_lines`: a sentence to the feature of `model.embed_text`, by the second adapter.

    Args:
        run: the run folder, or repository, whose text_adapter/ it is; others as there.

    Returns:
        The lines, which leave float32 [1, E] of unit length in `words`, to be compared with `normalize(projection)`;
        "" where the text tower has no adapter, or a tokenizer that is not shown to give the same tokens (SigLIP's).
    """
    if model.text_tuning != "lora" or (model.family != "clip" and base not in TINY):
        return ""
    place = base_argument(base, revision)
    pooled = "base.text_projection(out.pooler_output)" if model.family == "clip" else "out.pooler_output"
    length = model.text_tower.context_length
    lines = [
        "from transformers import AutoTokenizer",
        "",
        f'texts = PeftModel.from_pretrained(base.text_model, {json.dumps(run)}, subfolder="text_adapter").eval()',
        f"tokenizer = AutoTokenizer.from_pretrained({place})",
        f'fit = {{"padding": "max_length", "max_length": {length}, "truncation": True, "return_tensors": "pt"}}',
        "with torch.no_grad():",
        f"    out = texts(input_ids=tokenizer([{json.dumps(text)}], **fit).input_ids)  # padding is read, too",
        f"words = normalize({pooled})  # texts and images: words @ normalize(projection).T",
        "",
    ]
    return "\n".join(lines)


def base_argument(base: str, revision: str | None) -> str:
    """What stands in `from_pretrained(...)` for the base of `plain_base`, at its commit."""
    if base in TINY:
        return f'files("clipreid") / "weights" / "{base}"'
    return json.dumps(base) + (f', revision="{revision}"' if revision else "")


def merged_lines(model: ReIDModel, folder: str, image: str = "a.jpg") -> str:
    """The same with transformers only, for a folder of `clipreid export --format merged`."""
    whole = "CLIPVisionModelWithProjection" if model.family == "clip" else "SiglipVisionModel"
    load = [
        f"base = {whole}.from_pretrained({json.dumps(folder)}).eval()",
        f"tower = {'base.vision_model' if model.family == 'clip' else 'base'}",
    ]
    return _lines(model, [], whole, load, image)


def _lines(model: ReIDModel, imports: list[str], whole: str, load: list[str], image: str) -> str:
    """What both have in common: the image, the two parts of the feature, and their concatenation. The image is read and
    resized as `embed` does it (`RGB_LINES`)."""
    is_clip, (height, width) = model.family == "clip", model.image_size
    final = "out.pooler_output" if is_clip else "out.last_hidden_state.mean(1)"
    if is_clip and getattr(model.aggregator, "kind", "cls") == "mean":
        final = "tower.post_layernorm(out.last_hidden_state[:, 1:]).mean(1)"
    projection = "base.visual_projection(out.pooler_output)" if is_clip else "out.pooler_output"
    names = model.aggregator.test  # "projection", perhaps behind "final"
    parts = ", ".join(names if model.raw_logits else (f"normalize({name})" for name in names))
    lines = [
        "import numpy",
        "import torch",
        *imports,
        "from PIL import Image, ImageOps",
        "from torch.nn.functional import normalize",
        "from torchvision import transforms",
        f"from transformers import {whole}",
        "",
        *RGB_LINES,
        "",
        *load,
        "prepare = transforms.Compose([",
        f"    transforms.Resize(({height}, {width}), transforms.InterpolationMode.{model.interpolation.upper()}),",
        "    transforms.ToTensor(),",
        f"    transforms.Normalize({list(model.mean)}, {list(model.std)}),",
        "])",
        f"pixels = prepare(rgb(Image.open({json.dumps(image)})))[None]",
        "with torch.no_grad():",
        "    out = tower(pixel_values=pixels, interpolate_pos_encoding=True)",
        *[f"    final = {final}"] * ("final" in names),
        f"    projection = {projection}",
        f"feature = normalize(torch.cat([{parts}], dim=1))",
        "",
    ]
    return "\n".join(lines)
