"""open_clip models: local weights, names and tags, and what is refused."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import randomise
from torch import nn

from clipreid.backbones import load_backbone
from clipreid.errors import UserError


@pytest.fixture
def tiny_open_clip(tmp_path: Path) -> tuple[str, Path, Any]:
    """A tiny CLIP known to open_clip, and its weights in a file."""
    import open_clip

    size = {"width": 32, "layers": 2}
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {**size, "image_size": 64, "patch_size": 8, "head_width": 8},
        "text_cfg": {**size, "heads": 4, "vocab_size": 49408, "context_length": 77},
    }
    file = tmp_path / "ViT-tiny-test.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    model = randomise(open_clip.create_model("ViT-tiny-test"))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return "ViT-tiny-test", tmp_path, model


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_open_clip_local_weights(tiny_open_clip: Any, suffix: str) -> None:
    name, folder, model = tiny_open_clip
    backbone = load_backbone(f"open_clip:{name}/{folder}/weights.{suffix}", image_size=64)
    assert not backbone.raw_logits
    assert (backbone.mean[0], backbone.image.config.activation) == (0.48145466, "quick_gelu")
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    pixels, texts = torch.randn(2, 3, 64, 64), ["a photo of a person", "hat"]
    import open_clip

    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(pixels), model.encode_image(pixels))
        ids = open_clip.tokenize(texts)
        torch.testing.assert_close(backbone.encode_text(texts), model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert not any("in_proj" in key for key in backbone.state_dict())


def test_open_clip_says_nothing_of_random_weights(tiny_open_clip: Any, caplog: pytest.LogCaptureFixture) -> None:
    """They are loaded; what else it warns of is still heard."""
    import open_clip

    name, folder, _ = tiny_open_clip
    load_backbone(f"open_clip:{name}/{folder}/weights.pt", image_size=64)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    open_clip.create_model(name)  # outside of the loader it is true
    assert "initialized randomly" in caplog.text


def test_openai_weights_in_a_plain_file(tiny_open_clip: Any) -> None:
    import open_clip

    name, folder, _ = tiny_open_clip
    spec = f"open_clip:{name}/{folder}/weights.pt"
    assert load_backbone(spec, raw_logits=True).raw_logits
    (folder / "ViT-tiny-gelu.json").write_text(json.dumps(open_clip.get_model_config(name) | {"quick_gelu": False}))
    open_clip.add_model_config(folder / "ViT-tiny-gelu.json")
    with pytest.raises(UserError, match=r"--raw-logits: .* has gelu, and OpenAI's .* take the -quickgelu model"):
        load_backbone(spec.replace(name, "ViT-tiny-gelu"), raw_logits=True)


def test_open_clip_weights_that_do_not_fit(tiny_open_clip: Any, tmp_path: Path) -> None:
    name, folder, _ = tiny_open_clip
    save_file({"visual.proj": torch.zeros(2, 2)}, folder / "other.safetensors")
    with pytest.raises(UserError, match=rf"the weights cannot be loaded .* really a checkpoint of {name}\?"):
        load_backbone(f"open_clip:{name}/{folder}/other.safetensors")
    torch.save({"state_dict": logging.getLogger("x")}, folder / "code.pt")  # would run code when unpickled
    with pytest.raises(UserError, match="the weights cannot be loaded"):
        load_backbone(f"open_clip:{name}/{folder}/code.pt")


def test_open_clip_torchscript_archive_is_refused(tiny_open_clip: Any) -> None:
    name, folder, _ = tiny_open_clip
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "ViT-B-16.pt")
    with pytest.raises(
        UserError, match=r"loaded \(a TorchScript archive, .*\): take a tag such as .*-quickgelu/openai"
    ):
        load_backbone(f"open_clip:{name}/{folder}/ViT-B-16.pt")


def write_folder(folder: Path, model: nn.Module, **changes: Any) -> None:
    """What open_clip's `push_to_hf_hub` writes: config with preprocessing, and the weights."""
    import open_clip

    folder.mkdir()
    config = {**open_clip.get_model_config("ViT-tiny-test"), **changes}
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    content["preprocess_cfg"]["interpolation"] = "bilinear"
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_folder(tiny_open_clip: Any, quick: bool) -> None:
    """Its config names the activation, mean and std."""
    import open_clip

    _, folder, model = tiny_open_clip
    write_folder(folder / "mine", model, quick_gelu=quick)
    backbone = load_backbone(f"open_clip:{folder}/mine", image_size=64)
    assert backbone.image.config.activation == backbone.text.config.activation == ("quick_gelu" if quick else "gelu")
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert backbone.interpolation == "bilinear"
    pixels, texts = torch.randn(2, 3, 64, 64), ["a photo of a person", "hat"]
    theirs: Any = open_clip.create_model(f"local-dir:{folder}/mine")
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(pixels), theirs.encode_image(pixels))
        expected = theirs.encode_text(open_clip.tokenize(texts))
        torch.testing.assert_close(backbone.encode_text(texts), expected, atol=1e-5, rtol=1e-5)


def test_open_clip_folders_that_do_not_load(tiny_open_clip: Any) -> None:
    _, folder, model = tiny_open_clip
    with pytest.raises(
        UserError, match=r"open_clip_config.json is missing; .* is hf:.*; a weights file is open_clip:MOD"
    ):
        load_backbone(f"open_clip:{folder}")
    write_folder(folder / "captions", model, multimodal_cfg={})
    with pytest.raises(UserError, match=r"cannot be converted: it is a captioning model \(CoCa\); supported are plain"):
        load_backbone(f"open_clip:{folder}/captions")
    write_folder(folder / "empty", model)
    (folder / "empty" / "open_clip_model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"open_clip:/.*/empty: the weights cannot .*is there a checkpoint in /.*/empty"
    ):
        load_backbone(f"open_clip:{folder}/empty")
    for content in ("{", "{}"):
        (folder / "empty" / "open_clip_config.json").write_text(content)
        with pytest.raises(UserError, match=r"open_clip_config.json is not a config of open_clip's"):
            load_backbone(f"open_clip:{folder}/empty")


def test_open_clip_text_without_projection(tiny_open_clip: Any) -> None:
    """As SigLIP So400m i18n: the features are the tower's own."""
    import open_clip

    from clipreid.backbones.build import build
    from clipreid.backbones.openclip import convert

    config = open_clip.get_model_config("ViT-tiny-test")
    text = {**config["text_cfg"], "proj_type": "none"}
    model: Any = randomise(open_clip.create_model("ViT-tiny-test", text_cfg=text, embed_dim=32))
    backbone = build(convert(model, "odd"), "odd")
    ids = open_clip.tokenize(["a photo of a person", "hat"])
    with torch.no_grad():
        torch.testing.assert_close(backbone.text.encode(ids), model.encode_text(ids), atol=1e-5, rtol=1e-5)


def test_open_clip_refuses_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import factory

    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: pytest.fail("downloads"))
    for spec in ("EVA02-B-16/merged2b_s8b_b131k", "RN50-quickgelu/openai", "coca_ViT-B-32/laion2b_s13b_b90k"):
        with pytest.raises(UserError, match="cannot be converted"):
            load_backbone(f"open_clip:{spec}")


def test_open_clip_tag_openai_means_raw_logits(tiny_open_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    from clipreid.backbones import openclip

    monkeypatch.setattr(openclip, "check_name", lambda name, weights: None)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: tiny_open_clip[2])
    assert load_backbone("open_clip:ViT-tiny-test/openai").raw_logits
    assert not load_backbone("open_clip:ViT-tiny-test/laion2b").raw_logits


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ViT-B-16/openai", r"trained with QuickGELU.* use open_clip:ViT-B-16-quickgelu/openai"),
        (
            "ViT-B-16-quickgelu/laion2b_s34b_b88k",
            r"without QuickGELU; use open_clip:ViT-B-16/laion2b_s34b_b88k",
        ),
        ("ViT-B16/openai", r"open_clip has no model 'ViT-B16': did you mean .*ViT-B-16"),
        (
            "ViT-B-16-quickgelu/openia",
            r"'openia' is neither a tag of ViT-B-16-quickgelu nor a file; its tags: .*openai",
        ),
        ("ViT-B-16-quickgelu", r"no weights given for ViT-B-16-quickgelu; its tags: .*openai"),
        ("ViT-B-16/nowhere.pt", r"'nowhere.pt' is neither a tag of ViT-B-16 nor a file"),
    ],
)
def test_open_clip_names(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(f"open_clip:{spec}")


def test_open_clip_quickgelu_advice_is_good_for_every_published_tag() -> None:
    """Each of open_clip's (model, tag) pairs passes, or is refused with a name that passes."""
    import open_clip

    from clipreid.backbones.openclip_checks import check_name

    refused = {}
    for name, tag in open_clip.list_pretrained():
        try:
            check_name(name, tag)
        except UserError as error:
            refused[name] = str(error)
    assert "without QuickGELU, but roberta-ViT-B-32 has it; choose" in refused.pop("roberta-ViT-B-32")
    assert len(refused) > 10
    for message in refused.values():
        advice = re.search(r"use open_clip:(\S+)/(\S+)$", message)
        assert advice, message
        check_name(*advice.groups())


def test_open_clip_download_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import factory

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(factory, "download_pretrained", fail)
    with pytest.raises(UserError, match=r"weights cannot be loaded \(.*no route to host.*\): check the network"):
        load_backbone("open_clip:ViT-B-16-quickgelu/openai")


def test_open_clip_architectures_that_are_refused() -> None:
    import open_clip

    from clipreid.backbones.openclip import convert

    vision = {"width": 32, "layers": 2, "image_size": 64, "patch_size": 8, "head_width": 8}
    text = {"width": 32, "layers": 2, "heads": 4, "vocab_size": 100}
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (resnet, text, "its image tower is not a ViT that pools at the CLS token"),
        ({**vision, "pool_type": "avg"}, text, "its image tower is not a ViT that pools at the CLS token"),
        (vision, {**text, "pool_type": "first"}, "its causal text tower pools 'first'"),
    ]
    for vision_config, text_config, message in cases:
        model = open_clip.model.CLIP(24, vision_config, text_config)
        with pytest.raises(UserError, match=f"open_clip model odd cannot be converted: {message}"):
            convert(model, "odd")

    bidirectional = open_clip.model.CLIP(24, vision, {**text, "no_causal_mask": True})
    with pytest.raises(UserError, match="its bidirectional text tower pools 'argmax'"):
        convert(bidirectional, "odd")
    model.text = nn.Identity()
    with pytest.raises(UserError, match="its text tower is not CLIP's or SigLIP's"):
        convert(model, "odd")
    for activation, message in (
        (nn.ReLU(), "activation ReLU"),
        (nn.GELU("tanh"), "its blocks differ from each"),
    ):
        model.visual.transformer.resblocks[0].mlp.gelu = activation
        with pytest.raises(UserError, match=message):
            convert(model, "odd")
    timm_vision = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}
    with pytest.raises(UserError, match="its timm ViT is not SigLIP's"):
        convert(open_clip.model.CLIP(24, timm_vision, text), "odd")


def test_open_clip_extra_weights_are_refused(tiny_open_clip: Any) -> None:
    """Layer scale has weights that our blocks lack: never dropped silently."""
    import open_clip

    from clipreid.backbones.build import build
    from clipreid.backbones.openclip import convert

    vision = {
        "width": 32,
        "layers": 2,
        "image_size": 64,
        "patch_size": 8,
        "head_width": 8,
        "ls_init_value": 0.1,
    }
    model = open_clip.model.CLIP(24, vision, {"width": 32, "layers": 2, "heads": 4, "vocab_size": 100})
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0, 0, 0), "std": (1, 1, 1)})
    with pytest.raises(UserError, match=r"odd, image tower: weights not understood: encoder.layers.0.ls_1.gamma"):
        build(convert(model, "odd"), "odd")


def test_the_lengths_of_open_clips_tokens() -> None:
    from clipreid.backbones.text import TextConfig
    from clipreid.backbones.tokenizer import OpenClipTokenizer, unread

    tokenizer = OpenClipTokenizer("ViT-B-32", TextConfig())
    texts = ["a red hat", "!", "", "a red hat, " * 30]
    assert tokenizer.lengths(texts) == [5, 3, 2, 122]
    said = unread(tokenizer, texts)
    assert said is not None
    read = int(re.findall(r"\) (\d+) of 330 characters", said)[0])
    assert torch.equal(*tokenizer([texts[-1], texts[-1][:read]]))
    assert unread(tokenizer, texts[:3]) is None

    class Row:  # SigLIP's: text, EOS, pads
        eos_token_id = 1
        tokenizer = property(lambda self: self)

        def __call__(self, texts: list[str], context_length: int = 64) -> torch.Tensor:
            rows = [[*range(5, 5 + len(text)), 1][:context_length] for text in texts]
            return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    siglip = OpenClipTokenizer("any", TextConfig(causal=False, context_length=16))
    siglip._tokenizer = Row()
    assert siglip.lengths(["abc", "", "a" * 3000]) == [4, 1, 2048]


def test_open_clip_tokenizer_that_needs_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    from clipreid.backbones.text import TextConfig
    from clipreid.backbones.tokenizer import OpenClipTokenizer

    def fail(name: str) -> Any:
        raise OSError("We couldn't connect to the Hub\nmore")

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    tokenizer = OpenClipTokenizer("ViT-B-16-SigLIP2-256", TextConfig(causal=False))
    with pytest.raises(UserError, match=r"tokenizer of open_clip model ViT-B-16-SigLIP2-256 is not at hand \(We coul"):
        tokenizer(["a"])
    assert tokenizer.eot(torch.zeros(2, 64, dtype=torch.long)).tolist() == [63, 63]
