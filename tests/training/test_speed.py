"""How fast a run is: where its time went, step time and MFU, traces, batches in parts, compiled stages."""

import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import in_processes
from safetensors.torch import load_file
from test_train import assert_equal, lines
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import STEPS, Toy, toy_run, toy_stage, train_compiled, weights

from clipreid.backbones import Backbone, load_backbone
from clipreid.config import RunConfig, configure
from clipreid.errors import UserError
from clipreid.hub.files import OWNED
from clipreid.methods import clip_reid, dpl, dpm, saga
from clipreid.prompts import IdentityPrompts
from clipreid.training import launch as launch_module
from clipreid.training import machine
from clipreid.training import speed as speed_module
from clipreid.training.clock import Clock
from clipreid.training.launch import _say_time
from clipreid.training.machine import check_compiles, half_slowdown, matrix_rate
from clipreid.training.parts import check_norms, check_parts
from clipreid.training.run import Run
from clipreid.training.speed import flop_counter
from clipreid.training.train import _prepare, train

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return toy_run(tmp_path / "run")


# Where the time went ----------------------------------------------------------------------------------------------


def test_parts_of_a_run_add_up_to_all_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in no part is other; a part within a part is not counted twice; an error ends its part."""
    now = SimpleNamespace(value=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: now.value)

    def wait(seconds: float) -> None:
        now.value += seconds

    def fail(seconds: float) -> None:
        wait(seconds)
        raise KeyError

    clock = Clock(98.0)  # the imports
    with clock.of("data"):
        wait(1)
    wait(2)
    with clock.of("stage2"):
        wait(4)
        with clock.of("data"):
            wait(8)
        with pytest.raises(KeyError), clock.of("scoring"):
            fail(16)
        wait(32)
    assert clock.seconds() == {"data": 9, "stage2": 36, "scoring": 16, "other": 4}
    wait(35)
    assert sum(clock.seconds().values()) == now.value - 98 == 100
    assert clock.told() == "100.0 s: data 9.0 s (9%), stage2 36.0 s (36%), scoring 16.0 s (16%), other 39.0 s (39%)"


@pytest.mark.parametrize("resume", [False, True])
def test_the_end_of_a_run_says_where_its_time_went(
    resume: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_run(tmp_path, resume=resume)
    with run.clock.of("toy"):
        train(toy_stage(run, epochs=1), run)
    _say_time(run)
    (line,) = [line for line in lines(run) if line["stage"] == "time"]
    assert line["resumed"] == resume
    assert line["toy"] > 0
    assert list(line) == ["stage", "step", "resumed", "toy", "other"]
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("time of this command alone  " if resume else "time  ")
    assert "s: toy " in said


# Step time and MFU ------------------------------------------------------------------------------------------------


def test_the_rate_of_matrix_products_is_the_best_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow product among them, as on a machine that others use, changes nothing; nor is it asked for twice."""
    spent = iter([9.0, 0.004, 0.002, 5.0, 0.003, *[0.004] * 50])
    monkeypatch.setattr(machine, "_seconds_of", lambda a, b: next(spent))
    matrix_rate.cache_clear()
    try:
        before = torch.get_rng_state()
        assert matrix_rate(CPU, torch.float32) == pytest.approx(2 * 512**3 / 0.002)
        left = len(list(spent))
        assert matrix_rate(CPU, torch.float32) == pytest.approx(2 * 512**3 / 0.002)
        assert left >= 50 - machine.TRIES
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        matrix_rate.cache_clear()
    monkeypatch.setattr(
        machine, "matrix_rate", lambda device, dtype: {torch.float32: 30.0, torch.bfloat16: 20.0}[dtype]
    )
    assert half_slowdown() == 1.5


def test_steps_are_timed_and_compared_with_what_the_device_can_do(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The arithmetic that was done, forward and backward, without that of weights that are not trained."""
    monkeypatch.setattr(speed_module, "matrix_rate", lambda device, dtype: 1e6)
    train(toy_stage(run, epochs=2), run)
    frozen, trained = 2 * 8 * 4 * 4, 2 * 8 * 4 * 3  # forward only; forward, and the gradient of the weights
    least = (frozen + 2 * trained) / 1e6
    for line in lines(run):
        assert line["mfu"] == pytest.approx(1000 * least / line["step_ms"])
        assert line["step_ms"] == pytest.approx(1000 * 8 / line["images_per_second"])
    said = capsys.readouterr().out
    assert said.count(" ms/step  MFU ") == 2


def test_stages_without_images_have_no_mfu(run: Run) -> None:
    def batches(epoch: int) -> list[dict[str, Tensor]]:
        return [{"features": torch.randn(8, 4), "labels": torch.arange(8) % 2} for _ in range(STEPS)]

    stage = toy_stage(run, batches=batches, epochs=1)
    stage.module.forward = lambda batch: Toy.forward(stage.module, batch | {"pixels": batch["features"]})  # type: ignore
    train(stage, run)
    assert "mfu" not in lines(run)[0]
    assert "step_ms" in lines(run)[0]


# Traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "traced_steps"), [(1, 2), (3, 3)])
def test_a_trace_of_a_few_steps_changes_nothing(
    epochs: int, traced_steps: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a stage that is too short to warm up: 3 steps, and 9."""
    plain, traced = toy_run(tmp_path / "plain"), toy_run(tmp_path / "traced", profile=True)
    stages = [toy_stage(run, epochs=epochs) for run in (plain, traced)]
    for stage, run in zip(stages, (plain, traced), strict=True):
        capsys.readouterr()
        train(stage, run)
    assert_equal(weights(stages[0]), weights(stages[1]))
    trace = json.loads((traced.folder / "profile" / "toy.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("ProfilerStep") for name in set(names)) == traced_steps
    assert "aten::addmm" in names
    (line,) = [line for line in lines(traced) if line["stage"] == "profile"]
    assert line["of"] == "toy"
    assert 1 <= len(line["operators"]) <= 10
    assert {"operator", "calls", "ms", "share"} == line["operators"][0].keys()
    said = capsys.readouterr().out
    assert f"toy  per step, of {traced_steps}:\noperator" in said
    assert f"trace: {traced.folder / 'profile' / 'toy.json'}" in said
    assert "profile" in OWNED  # removed by --overwrite
    assert not (plain.folder / "profile").exists()


# Batches in parts -------------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """The most bytes of tensors that were made in this block and lived at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and (kept := x.untyped_storage()) not in self.known:
                self.known.add(kept)
                self.now += kept.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(kept, self.free, kept.nbytes())
        return found

    def free(self, count: int) -> None:
        self.now -= count


def tuning_of(tiny_folder: Callable[[str], Path], family: str = "clip", **given: Any) -> clip_reid.Tuning:
    """Stage 2 of CLIP-ReID on a small random tower, with adapters that do something."""
    backbone = load_backbone(f"hf:{tiny_folder(family)}")
    _, config = configure(clip_reid, backbone=backbone.name, **given)
    torch.manual_seed(0)
    model = clip_reid.build(backbone, config, 4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    bank = torch.randn(4, backbone.image.embed_dim)
    return clip_reid.Tuning(model, bank, clip_reid.text_scale(backbone), config).train()


def batch_of(module: clip_reid.Tuning, images: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels, none = torch.arange(images) // 2, torch.zeros(images, dtype=torch.long)
    pixels = torch.randn(images, 3, *module.model.image_size, generator=generator)
    return {"pixels": pixels, "labels": labels, "cameras": none, "views": none, "rows": labels}


class Noise(nn.Module):
    """A hook that draws random numbers, as dropout does: both forward passes of a part must draw the same."""

    reads, strength = (), 1.0

    def reset_parameters(self) -> None:
        self.drawn: list[Tensor] = []

    def before(self, layer: int, x: Tensor, about: Any) -> Tensor:
        if layer != 1:
            return x
        self.drawn.append(torch.rand(len(x), 1, 1))
        return x * (1 + self.drawn[-1])

    def after(self, layer: int, x: Tensor, about: Any) -> Tensor:
        return x


def step_of(module: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Losses, gradients and peak memory of a step."""
    module.zero_grad()
    with Live() as live:
        losses = module(batch)
        torch.stack(list(losses.values())).sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {name: x.detach() for name, x in losses.items()}, found, live.peak


@pytest.mark.parametrize(("tuning", "family"), [("lora", "clip"), ("full", "clip"), ("lora", "siglip")])
def test_batches_in_parts_have_the_same_losses_and_gradients_and_need_less_memory(
    tuning: str, family: str, tiny_folder: Callable[[str], Path]
) -> None:
    """Mining and batch statistics see the whole batch: 8 images in 3 parts of 3, 3 and 2."""
    module = tuning_of(tiny_folder, family, tuning=tuning)
    batch = batch_of(module)
    losses, gradients, peak = step_of(module, batch)
    statistics = {name: x.clone() for name, x in module.named_buffers() if "running" in name}
    assert statistics
    for neck in module.model.necks.values():
        neck.norm.reset_running_stats()
    module.model.parts = 3
    found, parts, less = step_of(module, batch)
    assert losses.keys() == found.keys()
    for name in losses:
        torch.testing.assert_close(found[name], losses[name], rtol=1e-6, atol=0)
    assert gradients.keys() == parts.keys()
    whole = torch.cat([x.flatten() for x in gradients.values()])
    other = torch.cat([x.flatten() for x in parts.values()])
    assert float((other - whole).norm() / whole.norm()) < 1e-6
    for name, x in module.named_buffers():
        if "running" in name:
            torch.testing.assert_close(x, statistics[name], rtol=1e-6, atol=1e-8)
    assert less < 0.7 * peak


def test_both_passes_of_a_part_draw_the_same_random_numbers(tiny_folder: Callable[[str], Path]) -> None:
    module = tuning_of(tiny_folder)
    noise = Noise()
    noise.reset_parameters()
    module.model.hooks["noise"], module.model.parts = noise, 2
    step_of(module, batch_of(module))
    first, second, *again = noise.drawn
    assert not torch.equal(first, second)
    assert len(again) == 2  # the backward pass begins with the last part
    assert torch.equal(again[0], second)
    assert torch.equal(again[1], first)


def test_a_run_embeds_in_the_parts_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(parts=1, image=nn.Linear(2, 2))
    model.train = model.to = lambda *_: model
    monkeypatch.setattr(launch_module, "build", lambda *_: model)
    run: Any = SimpleNamespace(
        seed=0, method=clip_reid, backbone=None, config=None, device=CPU, data=SimpleNamespace(names=["a"]),
        flags=RunConfig(accumulate=4),
    )  # fmt: skip
    assert launch_module.build_model(run).parts == 4
    model.image = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match="--accumulate 4: the image tower has batch norms"):
        launch_module.build_model(run)
    check_norms(model.image.eval(), 4)  # frozen: they keep their statistics


@pytest.mark.parametrize(
    ("method", "given", "works"),
    [
        (clip_reid, {}, True),
        (saga, {"mode": "joint"}, True),
        (saga, {"mode": "frozen"}, False),
        (dpl, {"fusion": "none"}, True),
        (dpl, {"fusion": "gated"}, False),
        (dpm, {}, False),
        (SimpleNamespace(__name__="clipreid.methods.new"), {}, False),
    ],
)
def test_methods_that_look_at_several_images_at_once_are_refused(
    method: Any, given: dict[str, Any], works: bool
) -> None:
    config = configure(method, **given)[1] if hasattr(method, "Config") else None
    check_parts(method, RunConfig(), config)
    if works:
        check_parts(method, RunConfig(accumulate=4), config)
    else:
        with pytest.raises(UserError, match=r"--accumulate 4: \w+ does not embed its images one by one"):
            check_parts(method, RunConfig(accumulate=4), config)


def test_there_are_no_more_parts_than_images() -> None:
    _, config = configure(clip_reid, identities_per_batch=4, images_per_identity=4)
    check_parts(clip_reid, RunConfig(accumulate=8), config, 2)
    with pytest.raises(UserError, match="--accumulate 9: a batch has 8 images in each process"):
        check_parts(clip_reid, RunConfig(accumulate=9), config, 2)


# What is not computed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, 3),
        ({"tuning": "full"}, 4),
        ({"tuning": "head"}, 4),
        ({"preset": "paper"}, 4),
        ({"tuning": "full", "bias_rate_factor": 2.0}, 5),  # no preset has both decay of matrices alone and this
    ],
)
def test_an_optimiser_has_at_most_four_groups(
    given: dict[str, Any], most: int, tiny_folder: Callable[[str], Path]
) -> None:
    """Few large groups are few kernels; every trained parameter is in one of them."""
    module = tuning_of(tiny_folder, **given)
    optimiser = clip_reid.stage_optimiser(module.model, module.config)
    assert len(optimiser.param_groups) <= most
    inside = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(inside) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert [group["lr"] for group in optimiser.param_groups] == [group["base"] for group in optimiser.param_groups]


def test_frozen_weights_and_blocks_are_not_differentiated(tiny_folder: Callable[[str], Path]) -> None:
    """LoRA: what lies below the lowest adapter has no graph, and of frozen matrices there is no gradient."""
    module = tuning_of(tiny_folder)
    seen: list[bool] = []
    tower: Any = module.model.tower
    tower.encoder.layers[0].register_forward_pre_hook(lambda block, args: seen.append(args[0].requires_grad))
    batch, counter = batch_of(module), flop_counter()
    with counter:
        torch.stack(list(module(batch).values())).sum().backward()
    assert seen == [False]
    assert all((p.grad is not None) == p.requires_grad for p in module.parameters())
    full = tuning_of(tiny_folder, tuning="full")
    more = flop_counter()
    with more:
        torch.stack(list(full(batch).values())).sum().backward()
    assert "aten.convolution_backward" not in products(counter)  # of the patches
    assert "aten.convolution_backward" in products(more)


def products(counter: Any) -> dict[str, int]:
    """The operations of matrix products and convolutions; attention, whose backward pass is dearer, is left out."""
    found = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    return {name: count for name, count in found.items() if "attention" not in name}


def test_stage_1_differentiates_the_prompts_alone(tiny_folder: Callable[[str], Path]) -> None:
    """Through the frozen text tower, but not its weights: the backward pass costs as much as the forward pass."""
    backbone: Backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    prompts = IdentityPrompts(backbone, 4, ["person"] * 4, 2)
    module = clip_reid.PromptLearning(prompts, None)
    labels = torch.arange(8) // 2
    batch = {"features": torch.randn(8, backbone.image.embed_dim), "labels": labels}
    passes = [flop_counter() for _ in range(2)]
    with passes[0]:
        loss = torch.stack(list(module(batch).values())).sum()
    with passes[1]:
        loss.backward()
    assert backbone.text is not None
    assert all(p.grad is None and not p.requires_grad for p in backbone.text.parameters())
    assert [name for name, p in module.named_parameters() if p.grad is not None] == ["prompts.context"]
    forward, backward = (sum(products(counter).values()) for counter in passes)
    assert backward <= 1.2 * forward  # with gradients of the weights it would be twice as much


# Compiled stages --------------------------------------------------------------------------------------------------


def test_stage_2_compiles_without_a_graph_break(tiny_folder: Callable[[str], Path]) -> None:
    """Losses and gradients are those of the uncompiled step, and the names in checkpoints stay as they are."""
    module = tuning_of(tiny_folder)
    batch, names = batch_of(module), list(module.state_dict())
    losses, gradients, _ = step_of(module, batch)
    module.compile(fullgraph=True, backend="eager")
    module.zero_grad()
    found = module(batch)
    torch.stack(list(found.values())).sum().backward()
    for name in losses:
        torch.testing.assert_close(found[name].detach(), losses[name], rtol=1e-5, atol=1e-6)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    assert list(module.state_dict()) == names


def test_stages_are_compiled_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place, so that names stay; not those on cached features. The log says how many graph breaks there were."""
    plain, run = toy_run(tmp_path / "plain"), toy_run(tmp_path / "run", compile=True)
    compiled: list[str] = []
    compile_it = nn.Module.compile

    def compiling(self: nn.Module) -> None:
        compiled.append(type(self).__name__)
        compile_it(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compiling)
    stages = [toy_stage(plain), toy_stage(run)]
    train(stages[0], plain)
    capsys.readouterr()
    train(stages[1], run)
    assert compiled == ["Toy"]
    assert "toy  compiled, graph breaks: 0\n" in capsys.readouterr().out
    whole, other = weights(stages[0]), weights(stages[1])
    assert whole.keys() == other.keys()
    for name in whole:
        torch.testing.assert_close(other[name], whole[name], rtol=1e-4, atol=1e-5)
    assert "mfu" not in lines(run)[0]  # the counter does not see into compiled code
    _prepare(toy_stage(run, shared=True), run)
    assert compiled == ["Toy"]


def test_two_processes_compile_as_one(tmp_path: Path) -> None:
    """The gather between them is part of the graph."""
    in_processes(2, train_compiled, tmp_path / "two")
    run = toy_run(tmp_path / "one")
    stage = toy_stage(run, epochs=1)
    train(stage, run)
    found = load_file(tmp_path / "two" / "weights.safetensors")
    for name, expected in weights(stage).items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)


def test_a_machine_that_cannot_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **more: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(
        UserError, match=r"--compile: torch.compile does not work here \(No working C\+\+ compiler found\)"
    ):
        check_compiles(CPU)
