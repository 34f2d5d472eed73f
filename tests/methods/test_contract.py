"""What every method proves, over all files of `clipreid/methods/`, with no line written for one of them."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import torch
import tyro
from launch_method import launch_method
from launching import caption_street, paint_street
from processes import in_processes
from safetensors.torch import load, load_file
from short_runs import BACKBONES, data_of, init_of, short, short_flags, short_run
from tiny_models import write_tiny_folder
from torch import Tensor

import clipreid
from clipreid.config import RATES, RunConfig, check_values, choices_of, configure, range_of
from clipreid.errors import UserError
from clipreid.hub.folder import identity_state
from clipreid.hub.package import package
from clipreid.methods import get_method, method_names
from clipreid.model import ReIDModel
from clipreid.training import launch as launching_module
from clipreid.training import sets as sets_module
from clipreid.training.folder import FREE
from clipreid.training.harness import Progress
from clipreid.training.launch import run_method
from clipreid.training.run import Run
from clipreid.training.stage import Stage

METHODS = method_names()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return caption_street(paint_street(tmp_path_factory.mktemp("contract") / "crops", train=6, test=4))


@pytest.fixture(scope="module")
def inits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inits")


@dataclass
class Made:
    """A short run, the model that its process trained, and what each of its stages was seen to train."""

    folder: Path
    model: ReIDModel
    stages: dict[str, list[str]]


Make = Callable[[str, str], Made]


@pytest.fixture(scope="module")
def made(street: Path, inits: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`made(method, backbone)`: a finished short run of it, looked at meanwhile; skips where the method refuses the
    backbone."""
    runs: dict[tuple[str, str], Made | UserError] = {}

    def make(name: str, backbone: str) -> Made:
        if (name, backbone) not in runs:
            method, folder = get_method(name), tmp_path_factory.mktemp("made") / f"{name}-{backbone}"
            try:
                init = init_of(method, street, inits, backbone)
                runs[name, backbone] = watched_run(method, street, folder, init, backbone)
            except UserError as error:
                runs[name, backbone] = error
        found = runs[name, backbone]
        if isinstance(found, UserError):
            assert backbone in str(found) or "backbone" in str(found), f"refused without a reason: {found}"
            pytest.skip(f"{name} refuses {backbone}: {found}")
        return found

    return make


def watched_run(method: ModuleType, street: Path, folder: Path, init: Path | None, backbone: str) -> Made:
    models, stages = [], {}
    train, save_model = launching_module.train, launching_module.save_model

    def watched_train(stage: Stage, run: Run) -> None:
        whole = {"module": stage.module, "image": run.backbone.image, "text": run.backbone.text}
        before = {part: state_of(module) for part, module in whole.items()}
        optimised = {
            id(p) for optimiser in stage.optimisers for group in optimiser.param_groups for p in group["params"]
        }
        trainable = {id(p) for p in stage.module.parameters() if p.requires_grad}
        faults = ["an optimiser has what the module does not train"] * (not optimised <= trainable)
        train(stage, run)
        changed = [
            (f"{part}.{key}", id(parameter) in optimised)
            for part, module in whole.items()
            for key, parameter in module.named_parameters()
            if not torch.equal(parameter, before[part][key])
        ]
        faults += [f"changed {key}" for key, declared in changed if not declared]
        stages[stage.name] = faults + ["trained nothing"] * (not changed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching_module, "train", watched_train)
        patch.setattr(launching_module, "save_model", lambda model, to: (models.append(model), save_model(model, to)))
        short_run(method, street, folder, init, backbone=backbone)
    return Made(folder, models[0], stages)


def crops_of(model: ReIDModel, count: int = 5) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *model.image_size), dtype=torch.uint8, generator=drawn)


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in module.named_parameters()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_gives_the_features_of_the_trained_model(name: str, backbone: str, made: Make) -> None:
    run = made(name, backbone)
    loaded, crops = clipreid.load(run.folder), crops_of(run.model)
    assert loaded.method == name
    torch.testing.assert_close(loaded.embed(crops), run.model.eval().embed(crops), atol=1e-6, rtol=0)
    first = loaded.embed(crops)
    assert torch.equal(first, loaded.embed(crops))  # embedding twice is equal
    torch.testing.assert_close(first.norm(dim=1), torch.ones(len(crops)))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_published_loads_alike_and_holds_nothing_per_identity(
    name: str, backbone: str, made: Make, tmp_path: Path
) -> None:
    run = made(name, backbone).folder
    method = get_method(name)
    files = package(run, "alice/demo")
    assert "identities.safetensors" not in files
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    ours, theirs = clipreid.load(run), clipreid.load(tmp_path)
    assert torch.equal(ours.embed(crops_of(ours)), theirs.embed(crops_of(ours)))
    own = load_file(run / "identities.safetensors")
    public = {key: x for file in files if file.endswith(".safetensors") for key, x in load(
        (tmp_path / file).read_bytes()).items()}  # fmt: skip
    for key, tensor in own.items():
        assert key not in public
        assert not any(x.shape == tensor.shape and torch.equal(x, tensor) for x in public.values()), key
    full = method.build(clipreid.load_backbone(backbone), ours.config, 6)
    assert not identity_state(full).keys() & public.keys()
    config, hints = json.loads((tmp_path / "config.json").read_text()), get_type_hints(method.Config)
    for key in config["config"]:
        assert hints[key] not in (str, Path), f"a text or path is published: {key}"
    card = (tmp_path / "README.md").read_text()
    for identity in ("0001", "0002", "0003", "0004", "0005", "0006"):
        assert not re.search(rf"(?<![\d.]){identity}(?!\d)", card)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_a_stage_changes_what_it_trains_and_nothing_else(name: str, backbone: str, made: Make) -> None:
    run = made(name, backbone)
    assert not {stage: faults for stage, faults in run.stages.items() if faults}
    assert list(run.stages) == json.loads((run.folder / "config.json").read_text())["stages"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_it_ends_bit_for_bit_as_uninterrupted(
    name: str, street: Path, inits: Path, tmp_path: Path, made: Make
) -> None:
    """Killed in the second epoch of every stage, of one run; where that has several steps, it goes on within it."""
    whole, method, run = made(name, BACKBONES[0]).folder, get_method(name), tmp_path / "run"
    init, progressed = init_of(method, street, inits, BACKBONES[0]), Progress.update

    def train(kill_in: str | None = None, **given: Any) -> None:
        def update(self: Progress, losses: dict[str, Tensor], images: int) -> None:
            progressed(self, losses, images)
            epoch = self.steps // 2  # steps of the first; the second may have others
            if self.stage == kill_in and self.step == epoch + min(2, epoch):
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Progress, "update", update)
            short_run(method, street, run, init, backbone=BACKBONES[0], checkpoint_steps=1, **given)

    within = 0
    for stage in json.loads((whole / "config.json").read_text())["stages"]:
        with pytest.raises(Killed):
            train(kill_in=stage, resume=run.exists())
        with pytest.raises(UserError, match="--resume"):
            train()
        within += len(list((run / "checkpoints").glob(f"{stage}-00001+*")))
    assert within, "no stage was resumed within an epoch"
    train(resume=True)
    assert_same_tensors(whole, run)


def assert_same_tensors(a: Path, b: Path) -> None:
    files = sorted(path.relative_to(a) for path in a.rglob("*.safetensors") if "checkpoints" not in path.parts)
    assert files
    for file in files:
        x, y = load_file(a / file), load_file(b / file)
        assert x.keys() == y.keys(), file
        for key in x:
            assert torch.equal(x[key], y[key]), (str(file), key)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(name: str, street: Path, inits: Path, tmp_path: Path, made: Make) -> None:
    one, method = made(name, BACKBONES[0]).folder, get_method(name)
    init = init_of(method, street, inits, BACKBONES[0])
    flags = [word for key, value in short(method).items() for word in (f"--{key.replace('_', '-')}", str(value))]
    flags += ["--image-size", "64", "32", "--data", data_of(street), "--threads", "1"]
    flags += ["--init", str(init)] if init else []
    in_processes(2, launch_method, name, *flags, "--output", str(tmp_path / "two"))
    found = []
    for run in (one, tmp_path / "two"):
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        found.append([line for line in lines if "loss" in line])
    assert [line["stage"] for line in found[0]] == [line["stage"] for line in found[1]]
    for alone, shared in zip(*found, strict=True):
        for key in (key for key in alone if key.endswith("loss")):
            assert alone[key] == pytest.approx(shared[key], rel=2e-4, abs=1e-5), (alone["stage"], alone["epoch"], key)


def other_values(settings: type, value: Any, name: str) -> list[Any]:
    """Values that a setting may have instead."""
    hint = get_type_hints(settings)[name]
    if words := choices_of(hint):
        return [word for word in words if word != value]
    if value is None and {int, float} & set(get_args(hint)):
        return [2, 5]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, max(1, value // 8)] if value else [1, 20]
    if isinstance(value, float):
        low, high = range_of(settings, name) or (-math.inf, math.inf)
        others = [new for new in (value * 3 if value else 0.5, value / 3, value + 0.25) if low < new < high]
        return [new for new in [*others, *[low] * (name not in RATES)] if new != value and math.isfinite(new)]
    if isinstance(value, tuple) and name == "milestones":
        return [(1,)]
    if Path in get_args(hint):
        return [Path(__file__).parent / "two_lines.txt", Path(__file__).parent / "two_cutouts"]  # a file or a folder
    return []


def another_street(folder: Path) -> Path:
    """Two more identities, for what matters with two data sets only."""
    return caption_street(paint_street(folder / "more", train=2, test=2))


def is_flag(settings: type, name: str) -> bool:
    """Whether users set it; what is suppressed comes from the data."""
    return tyro.conf.Suppress not in getattr(get_type_hints(settings, include_extras=True)[name], "__metadata__", ())


def off_at_zero(settings: type, settled: Any) -> list[str]:
    """Shares and probabilities that switch something off at 0: without it, what shapes it has no effect."""
    names = [field.name for field in dataclasses.fields(settings) if isinstance(getattr(settled, field.name), float)]
    return [name for name in names if not getattr(settled, name) and range_of(settings, name) == (0, 1)]


def watched(settings: Any, read: set[str]) -> Any:
    """The same settings, which note what they are asked for, but for copies and checks of all of them."""

    class Watched(type(settings)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if sys._getframe(1).f_globals.get("__name__") not in ("dataclasses", "clipreid.config"):
                read.add(name)
            return super().__getattribute__(name)

    return Watched(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


class Outcomes:
    """What runs of a method on a small backbone give, each trained once."""

    def __init__(self, method: ModuleType, street: Path, folder: Path) -> None:
        self.method, self.street, self.folder, self.known = method, street, folder, {}  # type: ignore[var-annotated]
        write_tiny_folder(folder / "small", context=32, clipreid={"image_size": [64, 32], "raw_logits": False})
        self.backbone = f"hf:{folder / 'small'}"  # smaller than tiny-clip: there are many runs
        self.init = init_of(method, street, folder, self.backbone)
        self.read = functools.cache(sets_module.load_data)

    def __call__(self, **given: Any) -> tuple[str, set[str]] | None:
        """The tensors of a run with these settings, hashed, and the settings that it read; None where it is refused."""
        key = json.dumps(given, sort_keys=True, default=str)
        if key not in self.known:
            try:
                self.known[key] = self._trained(self.folder / str(len(self.known)), **{"init": self.init, **given})
            except UserError:
                self.known[key] = None
        return self.known[key]

    def _trained(self, run: Path, init: Path | None, **given: Any) -> tuple[str, set[str]]:
        read: set[str] = set()
        flags, config = short_flags(self.method, self.street, run, init, backbone=self.backbone, **given)
        with pytest.MonkeyPatch.context() as patch:  # training alone is looked at
            patch.setattr(sets_module, "load_data", self.read)
            patch.setattr(launching_module, "measure", lambda *args: None)
            patch.setattr(launching_module, "results_table", lambda *args: "")
            run_method(self.method, flags, watched(config, read))
        model = clipreid.load(run)
        files = [file for file in sorted(run.rglob("*.safetensors")) if "checkpoints" not in file.parts]
        tensors = [x for file in files for _, x in sorted(load_file(file).items())]  # notes in headers are in no order
        parts = [x.contiguous().numpy().tobytes() for x in (*tensors, model.embed(crops_of(model)))]
        return hashlib.sha256(b"".join(parts)).hexdigest(), read


def contexts_of(method: ModuleType, more: tuple[str, ...], init: Path | None) -> list[dict[str, Any]]:
    """Where a setting may matter: alone, on two data sets (`more`), beside another choice of a word (`--schedule steps`
    for the milestones) or what is off at 0, and without the run that is continued, whose tower decides some."""
    hints, default = get_type_hints(method.Config), method.Config()
    words = [{key: word} for key, hint in hints.items() for word in choices_of(hint) if word != getattr(default, key)]
    shares = [{name: 0.5} for name in off_at_zero(method.Config, configure(method, **short(method))[1])]
    contexts: list[dict[str, Any]] = [{}, {"data": more}, *words, *shares]
    return contexts[:1] + [context | {"init": None} for context in contexts if init is not None] + contexts[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_setting_changes_the_output(name: str, street: Path, tmp_path: Path) -> None:
    """In one of the contexts in which it is read at all."""
    method, outcome = get_method(name), Outcomes(get_method(name), street, tmp_path)
    assert outcome() is not None
    settled = configure(method, **short(method))[1]
    contexts = contexts_of(method, (data_of(street), data_of(another_street(tmp_path))), outcome.init)

    def matters(field: str, context: dict[str, Any]) -> bool:
        base = outcome(**context) if field not in context else None
        if base is None or field not in base[1]:
            return False
        found = (outcome(**context, **{field: other}) for other in values)
        return any(each is not None and each[0] != base[0] for each in found)

    silent = []
    for field in (field.name for field in dataclasses.fields(method.Config)):
        if field in FREE or not is_flag(method.Config, field):
            continue
        values = other_values(method.Config, getattr(settled, field), field)
        assert values, f"no other value is known for {field}"
        context = next((context for context in contexts if matters(field, context)), None)
        if context is None:
            silent.append(field)
        else:
            contexts.remove(context)
            contexts.insert(min(len(contexts), bool(context)), context)  # the next one may matter there as well
    assert not silent, f"settings that change nothing: {silent}"


@pytest.mark.parametrize("name", METHODS)
def test_bad_values_are_refused(name: str) -> None:
    method = get_method(name)
    default = method.Config()
    for field in dataclasses.fields(method.Config):
        hint, value = get_type_hints(method.Config)[field.name], getattr(default, field.name)
        if choices_of(hint):
            bad: list[Any] = ["nonsense", 7]
        elif isinstance(value, bool) or hint is str or Path in (hint, *get_args(hint)):
            continue
        else:
            assert range_of(method.Config, field.name), f"{field.name} is a number without a range"
            low, high = range_of(method.Config, field.name) or (0, 0)
            bad = [low - 1, high + 1, math.nan, math.inf]
            bad = [(number,) for number in bad] if isinstance(value, tuple) else bad
        for each in bad:
            with pytest.raises(UserError, match=f"--{field.name.replace('_', '-')}"):
                check_values(dataclasses.replace(default, **{field.name: each}))


@pytest.mark.parametrize("name", METHODS)
def test_presets_name_settings_that_there_are(name: str) -> None:
    method = get_method(name)
    assert {"default", "paper"} <= method.PRESETS.keys()
    assert method.TINY.keys() == method.PRESETS.keys()
    for preset in method.PRESETS:
        for backbone in ("tiny-clip", "hf:openai/clip-vit-base-patch16"):
            flags, config = configure(method, preset=preset, backbone=backbone)
            check_values(flags)
            check_values(config)
    assert not {field.name for field in dataclasses.fields(method.Config)} & {
        field.name for field in dataclasses.fields(RunConfig)
    }
    assert method.__doc__
    assert "arXiv" in method.__doc__, "a method names its source"
    assert all(callable(getattr(method, part)) for part in ("build", "stages"))
