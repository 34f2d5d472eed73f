"""Flags and settings: presets, ranges, and what of them may be seen by others."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import tyro

from clipreid.config import (
    RANGES,
    RATES,
    RUN_FLAGS,
    UNRECORDED,
    Between,
    RunConfig,
    check_values,
    choices_of,
    configure,
    is_public,
    name_of,
    none_is,
    range_by,
    range_of,
)
from clipreid.errors import UserError
from clipreid.hub.shapes import checked
from clipreid.methods import clip_reid, get_method, method_names

BIG = "open_clip:ViT-B-16-quickgelu/openai"
METHODS = [get_method(name) for name in method_names()]
PRESETS = [(method, preset) for method in METHODS for preset in method.PRESETS]
CASES = pytest.mark.parametrize(("method", "preset"), PRESETS, ids=lambda case: getattr(case, "__name__", case))


def settle(backbone: str = BIG, preset: str = "default", **given: Any) -> tuple[RunConfig, Any]:
    return configure(clip_reid, backbone=backbone, preset=preset, **given)


# Presets ----------------------------------------------------------------------------------------------------------


def test_the_paper_preset_is_what_was_published() -> None:
    """CLIP-ReID's code for ViT-B/16 and persons (arXiv 2211.13977). P and K follow the data: 16 and 4, where most
    identities have four images (tests/training/test_batches.py)."""
    published = {
        "tuning": "full", "prompt_epochs": 120, "prompt_rate": 3.5e-4, "prompt_batch": 64, "prompt_warmup": 5,
        "prompt_tokens": 4, "optimiser": "adam", "epochs": 60, "rate": 5e-6, "head_rate": 5e-6,
        "bias_rate_factor": 2.0, "weight_decay": 1e-4, "schedule": "steps", "warmup": 10, "warmup_factor": 0.1,
        "milestones": (30, 50), "smoothing": 0.1, "margin": 0.3, "weight_id": 0.25, "weight_triplet": 1.0,
        "weight_i2t": 1.0, "pad": 10, "flip": 0.5, "erase": 0.5, "least_steps": 0, "prompts": "identity",
        "aggregation": "cls", "sie": "none", "sie_coefficient": 1.0, "balance": "proportional",
        "identities_per_batch": None, "images_per_identity": None, "checkpoint_every": 1, "cameras": (), "views": (),
        "lora_rank": 8, "lora_alpha": 16.0, "triplet_features": "raw", "triplet_taps": "all", "soft_margin": False,
        "tint": 0.0, "tint_share": 1.0, "rate_factor": 1.0, "layer_decay": 1.0, "clip_norm": None,
        "sample_classes": 1.0,
        "occluders": "none", "occluder_folder": None, "occlude_probability": 0.5, "severity_least": 0.1,
        "severity_most": 0.5,
    }  # fmt: skip
    flags, config = settle(preset="paper")
    assert dataclasses.asdict(config) == published
    assert (flags.pixels, flags.positions) == ("half", "bilinear")
    assert (flags.train_interpolation, flags.test_interpolation) == ("bicubic", "bilinear")
    assert flags == dataclasses.replace(
        RunConfig(), backbone=BIG, preset="paper", pixels="half", positions="bilinear", train_interpolation="bicubic",
        test_interpolation="bilinear",
    )  # fmt: skip


def test_the_paper_preset_without_prompts_is_the_published_baseline() -> None:
    """The same model and schedule without the text term, and the identity loss with weight 1."""
    with_text, without = settle(preset="paper")[1], settle(preset="paper", prompts="none")[1]
    assert without == dataclasses.replace(with_text, prompts="none", weight_id=1.0)
    assert settle("tiny-clip", "paper", prompts="none")[1].weight_id == 1.0
    assert settle(preset="paper", prompts="none", weight_id=0.5)[1].weight_id == 0.5
    assert settle(preset="default", prompts="none")[1].weight_id == 0.25
    with pytest.raises(UserError, match=r"--prompts some: choose one of identity, none"):
        settle(preset="paper", prompts="some")


def test_the_default_preset_is_for_lora() -> None:
    flags, config = settle()
    assert (config.tuning, config.optimiser, config.schedule) == ("lora", "adamw", "cosine")
    assert (config.rate, config.head_rate) == (2e-4, 3.5e-4)
    assert (config.triplet_features, config.tint, config.tint_share) == ("unit", 0.1, 1.0)
    sizes = (config.lora_rank, config.lora_alpha, config.rate_factor, config.layer_decay)
    assert sizes == (8, None, None, None)  # by the size of the tower: tests/training/test_sizes.py
    assert flags == RunConfig(BIG)  # pixels, positions and interpolation of the backbone
    assert configure(clip_reid) == (RunConfig(), settle("tiny-clip")[1])


@CASES
def test_tiny_backbones_have_their_own_numbers(method: ModuleType, preset: str) -> None:
    (_, big), (flags, tiny) = (configure(method, preset=preset, backbone=name) for name in (BIG, "tiny-clip"))
    given = method.TINY[preset]
    assert set(method.TINY) == set(method.PRESETS)
    changed = {name for name, value in dataclasses.asdict(big).items() if getattr(tiny, name) != value}
    assert changed <= given.keys()
    for name, value in given.items():
        found = getattr(tiny if hasattr(tiny, name) else flags, name)  # irra: the size of the crops, too
        assert found == (value[tiny.tuning] if isinstance(value, dict) else value)
    assert configure(method, preset=preset, backbone="tiny-siglip2")[1] == tiny


@CASES
def test_every_preset_can_be_used(method: ModuleType, preset: str) -> None:
    """With every tuning: its names are those of flags, its values within their ranges and choices."""
    tunings = choices_of(get_type_hints(method.Config).get("tuning")) or (None,)
    for backbone in (BIG, "tiny-clip"):
        for tuning in tunings:
            flags, config = configure(method, preset=preset, backbone=backbone, **{"tuning": tuning} if tuning else {})
            assert getattr(config, "tuning", None) == tuning
            assert not any(isinstance(value, dict) for value in dataclasses.asdict(config).values())
            check_values(flags)
            check_values(config)


@pytest.mark.parametrize("backbone", [BIG, "tiny-clip"])
def test_what_is_given_takes_the_place_of_the_presets_values(backbone: str) -> None:
    given = {"prompt_epochs": 3, "prompt_rate": 0.01, "prompt_batch": 7, "head_rate": 0.02, "tuning": "head",
             "identities_per_batch": 5, "images_per_identity": 3, "milestones": (), "seed": 3, "positions": "bicubic",
             "pixels": "backbone"}  # fmt: skip
    for preset in clip_reid.PRESETS:
        flags, config = settle(backbone, preset, **given)
        found = dataclasses.asdict(flags) | dataclasses.asdict(config)
        assert {name: found[name] for name in given} == given
        others = settle(backbone, preset)
        for name, value in found.items():
            if name not in given and name != "rate":  # which is a table
                assert value == (dataclasses.asdict(others[0]) | dataclasses.asdict(others[1]))[name], name


@pytest.mark.parametrize("preset", clip_reid.PRESETS)
def test_a_table_is_looked_up_by_tuning(preset: str) -> None:
    for source, backbone in ((clip_reid.PRESETS, BIG), (clip_reid.TINY, "tiny-clip")):
        rates = source[preset]["rate"]
        for tuning, rate in rates.items():
            assert settle(backbone, preset, tuning=tuning)[1].rate == rate
        assert settle(backbone, preset)[1].rate == rates[clip_reid.PRESETS[preset].get("tuning", "lora")]
        assert settle(backbone, preset, rate=0.0123, tuning="full")[1].rate == 0.0123


def test_small_data_gets_no_more_epochs_than_were_given() -> None:
    assert settle("tiny-clip")[1].least_steps == 180
    config = settle("tiny-clip", epochs=2)[1]
    assert (config.epochs, config.least_steps) == (2, 0)
    assert settle("tiny-clip", epochs=4)[1].least_steps == 0  # also where they are those of the preset
    config = settle("tiny-clip", epochs=2, least_steps=9)[1]
    assert (config.epochs, config.least_steps) == (2, 9)


def test_presets_are_not_changed_by_a_run() -> None:
    before = repr((clip_reid.PRESETS, clip_reid.TINY))
    settle("tiny-clip", "paper", rate=0.5, epochs=1, tuning="head")
    assert repr((clip_reid.PRESETS, clip_reid.TINY)) == before


def test_unknown_presets_tunings_and_names() -> None:
    with pytest.raises(UserError, match="--preset papper: clip_reid has default, paper"):
        settle(preset="papper")
    with pytest.raises(UserError, match="--tuning dora: choose one of full, lora, head"):
        settle(tuning="dora")
    with pytest.raises(TypeError, match="epoch_count"):
        settle(epoch_count=3)
    assert name_of(clip_reid) == "clip_reid"


# Ranges and choices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_epochs": 0}, r"--prompt-epochs 0: must be at least 1"),
        ({"prompt_batch": 0}, r"--prompt-batch 0: must be at least 1"),
        ({"prompt_tokens": 0}, r"--prompt-tokens 0: must be at least 1"),
        ({"prompt_tokens": 65}, r"--prompt-tokens 65: must be at most 64"),
        ({"epochs": -1}, r"--epochs -1: must be at least 1"),
        ({"identities_per_batch": 1}, r"--identities-per-batch 1: must be at least 2"),
        ({"images_per_identity": 1}, r"--images-per-identity 1: must be at least 2"),
        ({"lora_rank": 0}, r"--lora-rank 0: must be at least 1"),
        ({"checkpoint_every": 0}, r"--checkpoint-every 0: must be at least 1"),
        ({"prompt_rate": 0.0}, r"--prompt-rate 0.0: a learning rate lies between 0 and 1"),
        ({"rate": 2.0}, r"--rate 2.0: a learning rate lies between 0 and 1"),
        ({"rate": float("nan")}, r"--rate nan: a learning rate lies between 0 and 1"),
        ({"rate": -1e-3, "tuning": "head"}, r"--rate -0.001: a learning rate"),
        ({"head_rate": 1.0}, r"--head-rate 1.0: a learning rate lies between 0 and 1"),
        ({"smoothing": 1.0}, r"--smoothing 1.0: must be at most 0.99"),
        ({"margin": float("nan")}, r"--margin nan: must be at least 0"),
        ({"weight_id": float("inf")}, r"--weight-id inf: must be at most 1000"),
        ({"flip": -0.1}, r"--flip -0.1: must be at least 0"),
        ({"milestones": (3, 0)}, r"--milestones 0: must be at least 1"),
        ({"tuning": "dora", "rate": 0.1}, r"--tuning dora: choose one of lora, full, head"),
        ({"sie": None}, r"--sie None: choose one of none, camera, view, camera\+view"),
        ({"threads": 0}, r"--threads 0: must be at least 1"),
        ({"seed": -1}, r"--seed -1: must be at least 0"),
        ({"image_size": (256, 4)}, r"--image-size 4: must be at least 8"),
        ({"stride": 0}, r"--stride 0: must be at least 1"),
        ({"train_interpolation": "nearest"}, r"--train-interpolation nearest: choose one of bicubic, bilinear"),
        ({"lora_rank": 2048}, r"--lora-rank 2048: must be at most 1024"),
        ({"lora_alpha": -16.0}, r"--lora-alpha -16.0: must be at least 0"),
        ({"sie_coefficient": 2000.0}, r"--sie-coefficient 2000.0: must be at most 1000"),
        ({"sie_coefficient": float("nan")}, r"--sie-coefficient nan: must be at least -1000"),
        ({"seed": 2**70}, r"--seed 1180591620717411303424: must be at most"),
        ({"images_per_identity": 10**11}, r"--images-per-identity 100000000000: must be at most 10000"),
        ({"output": Path("r" * 300)}, r"--output: a name in it has 300 bytes, and may have 255 \(rrr"),
        ({"init": Path("runs/a\0b")}, r"--init 'runs/a\\x00b': it holds a NUL character"),
        ({"data": ("synthetic", "folder:/x/" + "y" * 256)}, r"--data: a name in it has 256 bytes"),
        ({"data": ("folder:/x\0",)}, r"--data 'folder:/x\\x00': it holds a NUL"),
        ({"precision": "fp8"}, r"--precision fp8: choose one of no, bf16"),
    ],
)
def test_values_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    flags, config = settle(**{"tuning": "lora", "rate": 0.1} | given)
    wrong, sound = (flags, config) if set(given) <= set(RUN_FLAGS) else (config, flags)
    check_values(sound)
    with pytest.raises(UserError, match=f"^{message}"):
        check_values(wrong)


@pytest.mark.parametrize("given", [
    {"pattern": "(?P<identity>x)" * 40, "output": Path("/a" * 300), "backbone": "hf:" + "é" * 125},
    {"stride": None, "image_size": None, "train_interpolation": None, "threads": None},
    {"identities_per_batch": None, "images_per_identity": None, "milestones": (), "cameras": (-1, 0, 700)},
    {"seed": 2**63 - 1, "smoothing": 0.0, "weight_i2t": 0.0, "epochs": 1, "rate": 0.999},
])  # fmt: skip
def test_values_that_do(given: dict[str, Any]) -> None:
    for values in settle(**given):
        check_values(values)


def numeric(hint: Any) -> bool:
    """Whether values of this type are, or hold, numbers."""
    return hint in (int, float) or any(numeric(part) for part in get_args(hint))


@pytest.mark.parametrize("kind", [RunConfig, *(method.Config for method in METHODS)], ids=lambda kind: kind.__module__)
def test_every_number_has_a_range(kind: type) -> None:
    """It is what keeps a run folder of somebody else from asking for absurd sizes."""
    numbers = [name for name, hint in get_type_hints(kind).items() if numeric(hint)]
    assert numbers
    assert [name for name in numbers if range_of(kind, name) is None] == []
    for name in numbers:
        low, high = range_of(kind, name)  # type: ignore[misc]
        assert low < high


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_every_number_out_of_its_range_is_refused_by_its_flag(method: ModuleType) -> None:
    """One below and one above, for each number of a method, and once for those of a run."""
    cases = 0
    for sound in configure(method) if method is clip_reid else configure(method)[1:]:
        for name in [name for name, hint in get_type_hints(type(sound)).items() if numeric(hint)]:
            low, high = range_of(type(sound), name)  # type: ignore[misc]
            several = "tuple" in str(get_type_hints(type(sound))[name])
            for wrong in (low - 1, math.nan if high > 2**60 else high + 1):
                value = dataclasses.replace(sound, **{name: (wrong,) if several else wrong})
                with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')} "):
                    check_values(value)
                cases += 1
    assert cases > 30


def accepts(check: Callable[[], Any]) -> bool:
    try:
        check()
    except UserError:
        return False
    return True


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_training_and_loading_have_the_same_ranges(method: ModuleType) -> None:
    """What training accepts, `load` does too: at both ends of every range, and beyond them."""
    plain = get_type_hints(method.Config)
    for name, hint in get_type_hints(method.Config, include_extras=True).items():
        if not numeric(plain[name]) or get_origin(plain[name]) is tuple:
            continue
        low, high = range_by(hint, name)  # type: ignore[misc]
        inside = (0.5,) if name in RATES else (low, high)
        kind = float if float in (plain[name], *get_args(plain[name])) else int
        for value in map(kind, (*inside, 2 * high + 1, low - 1)):
            one = dataclasses.make_dataclass("One", [(name, hint)])(value)
            found = [accepts(lambda: check_values(one)), accepts(lambda: checked({name: value}, {name: hint}, "it"))]  # noqa: B023
            assert found == [value in inside] * 2, (name, value)


@dataclasses.dataclass(frozen=True)
class Own:
    """Settings as a method may have them."""

    blocks: Annotated[int, Between(1, 12)] = 2
    epochs: Annotated[int | None, none_is("as many as it takes"), Between(5, 6)] = None
    seed: int = 0
    unheard_of: int = 0
    scores: tuple[Literal["max", "mean"], ...] = ("max",)


def test_a_method_gives_ranges_of_its_own() -> None:
    assert range_of(Own, "blocks") == (1, 12)
    assert range_of(Own, "epochs") == (5, 6)  # its own goes before the common one
    assert range_of(Own, "seed") == RANGES["seed"]
    assert range_of(Own, "unheard_of") is None
    check_values(Own())
    check_values(Own(blocks=12, epochs=5, unheard_of=-7, scores=("max", "mean")))
    for wrong, message in (
        (Own(blocks=0), "--blocks 0: must be at least 1"),
        (Own(epochs=7), "--epochs 7: must be at most 6"),
        (Own(scores=("max", "min")), "--scores min: choose one of max, mean"),
    ):
        with pytest.raises(UserError, match=message):
            check_values(wrong)


def test_ranges_are_of_real_settings() -> None:
    """A renamed setting would lose its range in silence."""
    from clipreid.backbones.vision import VisionConfig

    kinds = (RunConfig, VisionConfig, *(method.Config for method in METHODS))
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)} | {"mean", "std"}
    assert set(RANGES) | set(RATES) <= known
    assert set(UNRECORDED) <= set(RUN_FLAGS)
    for method in METHODS:
        own = {field.name for field in dataclasses.fields(method.Config)}
        assert own.isdisjoint(RUN_FLAGS)  # one command line holds both
        for names in getattr(method, "STAGE_FLAGS", {}).values():
            assert set(names) <= own | set(RUN_FLAGS)


# What others may see ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hint", "words"), [
    (Literal["a", "b"], ("a", "b")), (Literal["a"] | None, ("a",)), (str, ()), (int | None, ()), (bool, ()),
    (tuple[int, ...], ()), (tuple[Literal["a", "b"], ...], ("a", "b")),
])  # fmt: skip
def test_choices(hint: Any, words: tuple[str, ...]) -> None:
    assert choices_of(hint) == words


@pytest.mark.parametrize(("hint", "public"), [
    (int, True), (float, True), (bool, True), (type(None), True), (Literal["a", 1], True), (int | None, True),
    (Literal["a"] | None, True), (tuple[int, ...], True), (tuple[int, int] | None, True), (tuple[float, float], True),
    (str, False), (str | None, False), (Path, False), (Path | None, False), (tuple[str, ...], False), (Any, False),
    (tuple[int, str], False), (int | str, False), (dict[str, int], False), (tuple, False), (list[str], False),
])  # fmt: skip
def test_numbers_and_words_of_our_own_are_public_and_nothing_else(hint: Any, public: bool) -> None:
    assert is_public(hint) is public


def test_which_flags_of_a_run_are_published() -> None:
    """No name of a file or folder, nothing that somebody typed."""
    hidden = [name for name, hint in get_type_hints(RunConfig).items() if not is_public(hint)]
    assert hidden == ["backbone", "data", "test", "output", "init", "pattern", "columns", "unknown", "noun", "push"]
    hidden = [name for name, hint in get_type_hints(clip_reid.Config).items() if not is_public(hint)]
    assert hidden == ["occluder_folder"]


# On the command line ----------------------------------------------------------------------------------------------


def test_repeatable_flags_start_empty() -> None:
    assert tyro.cli(RunConfig, args=[]).data == ()
    given = tyro.cli(RunConfig, args=["--data", "folder:/a", "--test", "synthetic", "--test", "csv:/b.csv"])
    assert given.data == ("folder:/a",)
    assert given.test == ("synthetic", "csv:/b.csv")
    for flag in ("--images-per-identity", "-K", "--pictures-per-identity"):
        config = tyro.cli(clip_reid.Config, args=["-P", "8", flag, "2"])
        assert (config.identities_per_batch, config.images_per_identity) == (8, 2)


def test_what_a_none_means_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclasses.dataclass
    class Flags:
        size: Annotated[int | None, none_is("the backbone's")] = None

    with pytest.raises(SystemExit):
        tyro.cli(Flags, args=["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: the backbone's)" in printed
    assert "default: None" not in printed


@pytest.mark.parametrize(("kind", "arguments", "said"), [
    (RunConfig, ["--precision", "fp8"], "precision"),
    (RunConfig, ["--sede", "1"], "--seed"),
    (clip_reid.Config, ["--tuning", "dora"], "lora"),
])  # fmt: skip
def test_unknown_flags_and_choices_name_the_valid_ones(
    kind: type, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tyro.cli(kind, args=arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert said in printed.err + printed.out
