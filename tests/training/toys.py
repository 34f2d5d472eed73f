"""A run, and stages as small as they can be, for tests of the loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from clipreid.config import RunConfig
from clipreid.data import seed_for
from clipreid.distributed import gather
from clipreid.methods import clip_reid
from clipreid.training.batches import Lazy
from clipreid.training.harness import Log
from clipreid.training.run import Run
from clipreid.training.stage import Batch, Losses, Stage
from clipreid.training.train import train

STEPS, SIZE = 3, 8  # of an epoch; images of a batch
CLIPPED: dict[str, Any] = {"name": "clipped", "clip_norm": 0.2}  # nearly every step's gradient is longer


def toy_run(folder: Path, **flags: Any) -> Run:
    """A run without data or backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    nothing: Any = None
    flags = RunConfig(output=folder, **flags)  # type: ignore[assignment]
    log = Log(folder, accelerator)
    return Run(clip_reid, flags, nothing, nothing, nothing, folder, accelerator, log, {})  # type: ignore[arg-type]


def toy_batches(run: Run, steps: int = STEPS) -> Callable[[int], Lazy]:
    """Batches of this process, drawn for all processes at once."""

    def batches(epoch: int) -> Lazy:
        def make(nth: int) -> Batch:
            drawn = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(seed_for(7, epoch, nth)))
            rank, processes = run.share
            return {"pixels": drawn.chunk(processes)[rank], "labels": torch.arange(SIZE).chunk(processes)[rank] % 2}

        return Lazy(steps, make)

    return batches


class Killed(BaseException):
    """As SIGKILL: nothing catches it."""


def dying(batches: Callable[[int], Sequence[Batch]], die: tuple[int, int]) -> Callable[[int], Lazy]:
    """The same batches; instead of the one of (epoch, step) the process is killed."""

    def killing(at: int) -> Lazy:
        found = batches(at)

        def make_one(nth: int) -> Batch:
            if (at, nth) == die:
                raise Killed
            return found[nth]

        return Lazy(len(found), make_one)

    return killing


class Toy(nn.Module):
    """A frozen layer, one that is trained, a batch norm over all processes: two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained, self.norm = nn.Linear(4, 4), nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.frozen.requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        x, labels = gather(self.trained(self.frozen(batch["pixels"]))), gather(batch["labels"])
        return {"id_loss": nn.functional.cross_entropy(self.norm(x), labels), "size_loss": 0.1 * x.square().mean()}


class Turns(nn.Module):
    """Two parts that are trained in turns: the second is judged by what the first has become."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, batch: Batch, turn: int) -> Losses:
        x = gather(self.first(batch["pixels"]))
        labels = gather(batch["labels"])
        if turn == 0:
            return {"first_loss": (x.mean(1) - labels).square().mean()}
        return {"second_loss": nn.functional.cross_entropy(self.second(x.detach()), labels)}


class Teacher(nn.Module):
    """A memory: a moving average of the trained layer, and the number of steps."""

    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).requires_grad_(False)
        self.layer.load_state_dict(toy.trained.state_dict())
        self.register_buffer("steps", torch.tensor(0))
        self.steps: Tensor

    @torch.no_grad()
    def follow(self, toy: Toy) -> None:
        for own, new in zip(self.layer.parameters(), toy.trained.parameters(), strict=True):
            own.lerp_(new, 0.1)
        self.steps += 1


def toy_stage(run: Run, **more: Any) -> Stage:
    """Adam on a `Toy` with two groups, a rate that falls within epochs, and a teacher that follows every step."""
    torch.manual_seed(3)
    toy = Toy()
    teacher = Teacher(toy)
    groups: list[dict[str, Any]] = [
        {"params": toy.trained.parameters(), "lr": 0.05},
        {"params": toy.norm.parameters(), "lr": 1.0, "base": 0.01},
    ]
    given: dict[str, Any] = {
        "name": "toy",
        "module": toy,
        "batches": toy_batches(run),
        "optimisers": (torch.optim.Adam(groups),),
        "rate": lambda at: 1 - at / 8,
        "epochs": 4,
        "memory": teacher,
        "after_step": lambda batch: teacher.follow(toy),
    }
    return Stage(**given | more)


def turns_stage(run: Run, **more: Any) -> Stage:
    """Two optimisers that take turns."""
    torch.manual_seed(4)
    turns = Turns()
    optimisers = (
        torch.optim.Adam(turns.first.parameters(), lr=0.05),
        torch.optim.SGD(turns.second.parameters(), lr=0.5, momentum=0.9),
    )
    given: dict[str, Any] = {"epochs": 2, "rate": lambda at: 1.0} | more
    return Stage(name="turns", module=turns, batches=toy_batches(run), optimisers=optimisers, **given)


def weights(stage: Stage) -> dict[str, Tensor]:
    """Everything that a stage may change, but for its optimisers."""
    memory = {} if stage.memory is None else stage.memory.state_dict()
    found = stage.module.state_dict() | {f"memory.{name}": x for name, x in memory.items()}
    return {name: x.detach().clone() for name, x in found.items()}


def train_both(folder: Path) -> None:
    """Trains two of the stages, for several processes, and writes their weights."""
    run = toy_run(folder)
    stages = (turns_stage(run), toy_stage(run), toy_stage(run, **CLIPPED))
    for stage in stages:
        train(stage, run)
    if run.main:
        found = {f"{stage.name}.{name}": x for stage in stages for name, x in weights(stage).items()}
        save_file(found, run.folder / "weights.safetensors")
    run.accelerator.end_training()


def train_compiled(folder: Path) -> None:
    """Trains a compiled stage, for several processes, and writes its weights; the graph is run as it is."""
    run, compile_it = toy_run(folder, compile=True), nn.Module.compile
    nn.Module.compile = lambda self: compile_it(self, backend="eager")  # type: ignore[method-assign, assignment]
    try:
        stage = toy_stage(run, epochs=1)
        train(stage, run)
    finally:
        nn.Module.compile = compile_it  # type: ignore[method-assign]
    if run.main:
        save_file(weights(stage), run.folder / "weights.safetensors")
    run.accelerator.end_training()
