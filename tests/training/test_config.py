"""Presets, and the flags that are put in their place."""

import dataclasses
from typing import Any

import pytest
import tyro

from clipreid.errors import UserError
from clipreid.training.config import PRESETS, TINY, PromptConfig, RunConfig, TuneConfig, Values, resolve

BIG = "open_clip:ViT-B-16-quickgelu/openai"


def settle(backbone: str = BIG, preset: str = "default", **flags: Any) -> Values:
    prompt = {k: v for k, v in flags.items() if k.startswith("prompt_")}
    tune = {k: v for k, v in flags.items() if not k.startswith("prompt_")}
    return resolve(preset, backbone, PromptConfig(**prompt), TuneConfig(**tune))


def test_the_paper_preset_is_what_was_published() -> None:
    """CLIP-ReID's code for ViT-B/16 and persons (arXiv 2211.13977)."""
    published = {
        "tuning": "full", "prompt_epochs": 120, "prompt_rate": 3.5e-4, "prompt_batch": 64, "prompt_warmup": 5,
        "optimiser": "adam", "epochs": 60, "head_rate": 5e-6, "bias_rate_factor": 2.0, "weight_decay": 1e-4,
        "schedule": "steps", "warmup": 10, "warmup_factor": 0.1, "milestones": (30, 50), "identities_per_batch": 16,
        "pictures_per_identity": 4, "smoothing": 0.1, "margin": 0.3, "weight_id": 0.25, "weight_triplet": 1.0,
        "weight_i2t": 1.0, "pad": 10, "flip": 0.5, "erase": 0.5, "pixels": "half", "positions": "bilinear",
        "train_interpolation": "bicubic", "test_interpolation": "bilinear", "least_steps": 0,
    }  # fmt: skip
    found = dataclasses.asdict(settle(preset="paper"))
    assert found["rate"]["full"] == 5e-6
    assert {name: value for name, value in found.items() if name != "rate"} == published
    assert PromptConfig().prompt_tokens == 4


def test_the_default_preset_is_for_lora() -> None:
    values = settle()
    assert (values.tuning, values.optimiser, values.schedule) == ("lora", "adamw", "cosine")
    assert (values.rate["lora"], values.head_rate) == (2e-4, 3.5e-4)
    assert (TuneConfig().lora_rank, TuneConfig().lora_alpha) == (8, 16.0)
    assert (values.pixels, values.positions) == ("backbone", "bicubic")
    assert values.train_interpolation == values.test_interpolation


@pytest.mark.parametrize("preset", PRESETS)
def test_tiny_backbones_have_their_own_numbers(preset: str) -> None:
    big, tiny = settle(preset=preset), settle("tiny-clip", preset)
    assert big == PRESETS[preset]
    changed = {f.name for f in dataclasses.fields(Values) if getattr(big, f.name) != getattr(tiny, f.name)}
    assert changed
    assert changed <= TINY[preset].keys()
    assert all(getattr(tiny, name) == value for name, value in TINY[preset].items())
    assert settle("tiny-siglip2", preset) == tiny
    assert tiny.tuning == big.tuning
    assert set(tiny.rate) == {"lora", "full", "head"}


def test_flags_take_the_place_of_the_presets_values() -> None:
    flags = {"prompt_epochs": 3, "prompt_rate": 0.01, "prompt_batch": 7, "tuning": "head", "epochs": 2,
             "head_rate": 0.02, "identities_per_batch": 5, "pictures_per_identity": 3}  # fmt: skip
    values = settle("tiny-clip", **flags)
    assert {name: getattr(values, name) for name in flags} == flags
    assert values.rate == settle("tiny-clip").rate
    untouched = {f.name for f in dataclasses.fields(Values)} - flags.keys()
    assert all(getattr(values, name) == getattr(settle("tiny-clip"), name) for name in untouched)


@pytest.mark.parametrize(
    ("tuning", "preset"), [(None, "default"), (None, "paper"), ("head", "paper"), ("full", "default")]
)
def test_the_rate_is_that_of_the_chosen_tuning(tuning: Any, preset: str) -> None:
    values = settle(preset=preset, rate=0.0123, tuning=tuning)
    chosen = tuning or PRESETS[preset].tuning
    assert values.rate == PRESETS[preset].rate | {chosen: 0.0123}


def test_stage_1_alone_needs_no_flags_of_stage_2() -> None:
    values = resolve("default", "tiny-clip", PromptConfig(prompt_epochs=1))
    assert values == dataclasses.replace(settle("tiny-clip"), prompt_epochs=1)


def test_presets_are_not_changed_by_a_run() -> None:
    before = {name: dataclasses.asdict(values) for name, values in PRESETS.items()}
    settle("tiny-clip", rate=0.5, epochs=1)
    assert before == {name: dataclasses.asdict(values) for name, values in PRESETS.items()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prompt_epochs": 0}, r"--prompt-epochs 0: must be at least 1"),
        ({"prompt_batch": 0}, r"--prompt-batch 0: must be at least 1"),
        ({"prompt_tokens": 0}, r"--prompt-tokens 0: must be at least 1"),
        ({"epochs": -1}, r"--epochs -1: must be at least 1"),
        ({"identities_per_batch": 1}, r"--identities-per-batch 1: must be at least 2"),
        ({"pictures_per_identity": 1}, r"--pictures-per-identity 1: must be at least 2"),
        ({"lora_rank": 0}, r"--lora-rank 0: must be at least 1"),
        ({"checkpoint_every": 0}, r"--checkpoint-every 0: must be at least 1"),
        ({"prompt_rate": 0.0}, r"--prompt-rate 0.0: a learning rate lies between 0 and 1"),
        ({"rate": 2.0}, r"--rate 2.0: a learning rate lies between 0 and 1"),
        ({"rate": float("nan")}, r"--rate nan: a learning rate lies between 0 and 1"),
        ({"rate": -1e-3, "tuning": "head"}, r"--rate -0.001: a learning rate"),
        ({"head_rate": 1.0}, r"--head-rate 1.0: a learning rate lies between 0 and 1"),
    ],
)
def test_values_that_make_no_sense(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle("tiny-clip", **flags)


def test_repeatable_flags_start_empty() -> None:
    assert tyro.cli(RunConfig, args=[]).data == ()
    given = tyro.cli(RunConfig, args=["--data", "folder:/a", "--test", "synthetic", "--test", "csv:/b.csv"])
    assert given.data == ("folder:/a",)
    assert given.test == ("synthetic", "csv:/b.csv")
    assert tyro.cli(TuneConfig, args=["-P", "8", "-K", "2"]).identities_per_batch == 8


@pytest.mark.parametrize(("kind", "arguments", "said"), [
    (RunConfig, ["--precision", "fp8"], "precision"),
    (RunConfig, ["--sede", "1"], "--seed"),
    (TuneConfig, ["--tuning", "dora"], "lora"),
])  # fmt: skip
def test_unknown_flags_and_choices_name_the_valid_ones(
    kind: type, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tyro.cli(kind, args=arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err + printed.out
