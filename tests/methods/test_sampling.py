"""Sampled classes: what is drawn, what the loss is, what moves, and that processes and resumed runs agree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from launch_method import launch_method
from launching import paint_street
from processes import in_processes
from safetensors.torch import load_file
from short_runs import short, short_run
from torch import Tensor

from clipreid.backbones import load_backbone
from clipreid.config import configure
from clipreid.errors import UserError
from clipreid.methods import clip_reid, get_method
from clipreid.training import launch as launching_module
from clipreid.training.checkpoint import Done, resume, save
from clipreid.training.harness import Progress
from clipreid.training.optimisers import stage_optimiser
from clipreid.training.run import Run
from clipreid.training.sampling import SampledRows, adam_rows, draw_classes, place, sample_size, seen
from clipreid.training.stage import Stage

IDENTITIES, SHARE = 8, 0.7  # 6 of 8 in a step, 4 of them of the batch


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_street(tmp_path_factory.mktemp("sampled") / "crops", train=IDENTITIES, test=2)


def settled(**given: Any) -> clip_reid.Config:
    return configure(clip_reid, backbone="tiny-clip", identities_per_batch=4, **given)[1]


# What is drawn ----------------------------------------------------------------------------------------------------


def test_the_batchs_identities_and_random_others_are_drawn() -> None:
    own = torch.tensor([3, 11, 40])
    found = [draw_classes(own, 50, 13, seed=0, epoch=0, step=step) for step in range(300)]
    for classes in found:
        assert len(classes.unique()) == 13
        assert torch.equal(classes, classes.sort().values)
        assert set(own.tolist()) <= set(classes.tolist())
    counts = torch.bincount(torch.cat(found), minlength=50)
    others = counts[[i for i in range(50) if i not in own]]
    assert others.float().mean() == pytest.approx(300 * 10 / 47)
    assert others.min() > 35
    assert others.max() < 100  # 64 on average, alike for all
    assert torch.equal(found[7], draw_classes(own, 50, 13, seed=0, epoch=0, step=7))
    for other in ({"seed": 1}, {"epoch": 1}, {"step": 8}):
        drawn = draw_classes(own, 50, 13, **{"seed": 0, "epoch": 0, "step": 7, **other})
        assert not torch.equal(found[7], drawn), other


@pytest.mark.parametrize(("share", "identities", "size"), [
    (1.0, 100, None), (0.1, 100, 10), (0.101, 100, 11), (0.01, 100, 4), (0.999, 100, None), (0.5, 4, None),
])  # fmt: skip
def test_how_many_are_drawn(share: float, identities: int, size: int | None) -> None:
    """At least the four of a batch; where it comes to all of them, nothing is sampled."""
    assert sample_size(settled(sample_classes=share), identities) == size


# The loss ---------------------------------------------------------------------------------------------------------


def made(share: float, tuning: str = "lora") -> tuple[clip_reid.Tuning, dict[str, Tensor]]:
    """A module of stage 2 with 12 identities, and a batch that samples 6 of them."""
    config = settled(sample_classes=share, tuning=tuning)
    torch.manual_seed(0)
    model = clip_reid.build(load_backbone("tiny-clip", image_size=(64, 32)), config, 12)
    for neck in model.necks.values():
        torch.nn.init.normal_(neck.classifier.weight)  # type: ignore[union-attr]
    bank = torch.randn(12, model.tower.embed_dim)
    sampled = None if share == 1 else SampledRows(model, 6 if share < 0.9 else 12)
    batch = {"pixels": torch.randn(8, 3, 64, 32), "labels": torch.tensor([9, 9, 2, 2, 7, 7, 11, 11])}
    return clip_reid.Tuning(model, bank, 9.0, config, sampled), batch


def smoothed(logits: Tensor, own: list[int]) -> Tensor:
    """Cross-entropy against 0.9 on the own class and 0.1 spread over all, term by term."""
    total = torch.zeros(())
    for row, label in zip(logits, own, strict=True):
        target = torch.full_like(row, 0.1 / len(row))
        target[label] += 0.9
        total = total - (target * row.log_softmax(0)).sum()
    return total / len(own)


def test_the_sampled_loss_is_that_of_the_sampled_identities_alone() -> None:
    """By whole logits, of which the columns of the others are taken away."""
    module, batch = made(0.5)
    classes = torch.tensor([1, 2, 5, 7, 9, 11])
    losses = module({**batch, "classes": classes})
    own = [[1, 2, 5, 7, 9, 11].index(label) for label in batch["labels"].tolist()]
    plain, _ = made(1.0)  # the same weights
    output = plain.model(batch)
    texts = 9.0 * F.normalize(output.features["projection"]) @ F.normalize(plain.bank).T
    identity = 0.25 * sum(smoothed(x[:, classes], own) for x in output.logits.values())
    torch.testing.assert_close(losses["id_loss"], identity)
    torch.testing.assert_close(losses["i2t_loss"], smoothed(texts[:, classes], own))
    torch.testing.assert_close(losses["triplet_loss"], plain(batch)["triplet_loss"])
    assert not torch.isclose(losses["id_loss"], plain(batch)["id_loss"], rtol=1e-3)
    sum(losses.values()).backward()
    identity.backward()
    for name, rows in module.sampled.rows.items():
        torch.testing.assert_close(rows.grad, plain.model.necks[name].classifier.weight.grad[classes])


def test_with_all_identities_it_is_the_plain_training() -> None:
    """Losses and weights after some steps, the optimiser's moments included."""
    (plain, batch), (sampled, _) = made(1.0), made(0.99)
    ends = []
    for module, more in ((plain, {}), (sampled, {"classes": torch.arange(12)})):
        optimiser, losses = stage_optimiser(module.model, module.config, module), []
        for _ in range(4):
            optimiser.zero_grad(set_to_none=True)
            losses.append(sum(module({**batch, **more}).values()))
            losses[-1].backward()
            optimiser.step()
        ends.append((torch.stack(losses).detach(), module.model.state_dict()))
    torch.testing.assert_close(ends[0][0], ends[1][0], atol=1e-5, rtol=1e-5)
    for name, x in ends[0][1].items():
        torch.testing.assert_close(x, ends[1][1][name], atol=1e-5, rtol=1e-3, msg=name)


def test_what_is_not_sampled_is_left_as_it_is() -> None:
    labels, table = torch.tensor([7, 7, 2]), torch.randn(3, 9, 2)
    assert torch.equal(place(labels, {}), labels)
    assert seen(table, {}, 1) is table
    batch = {"classes": torch.tensor([2, 5, 7])}
    assert place(labels, batch).tolist() == [2, 2, 0]
    assert torch.equal(seen(table, batch, 1), table[:, [2, 5, 7]])


# The update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_each_row_is_stepped_as_by_an_adam_of_its_own(kind: type[torch.optim.Optimizer]) -> None:
    """Which knows only the steps in which the row was sampled."""
    torch.manual_seed(0)
    settings = {"lr": 0.1, "weight_decay": 0.2}
    table = torch.randn(5, 3)
    alone = [torch.nn.Parameter(row.clone()) for row in table]
    each = [kind([row], **settings) for row in alone]
    state = {"step": torch.zeros(5), "exp_avg": torch.zeros(5, 3), "exp_avg_sq": torch.zeros(5, 3)}
    for step in range(6):
        at = torch.randperm(5)[:3]
        gradient = torch.randn(3, 3)
        before = table.clone()
        adam_rows(table, at, gradient, state, each[0].param_groups[0], kind is torch.optim.AdamW)
        for row, grad in zip(at.tolist(), gradient, strict=True):
            alone[row].grad = grad.clone()
            each[row].step()
        others = [row for row in range(5) if row not in at]
        assert torch.equal(table[others], before[others]), step
    torch.testing.assert_close(table, torch.stack(list(alone)).detach())


def run_of(street: Path, folder: Path, method: Any = clip_reid, **given: Any) -> Run:
    """A short run that samples, without its scoring."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching_module, "measure", lambda *args: None)
        patch.setattr(launching_module, "results_table", lambda *args: "")
        return short_run(method, street, folder, sample_classes=SHARE, **given)


def test_rows_that_are_not_sampled_do_not_move(street: Path, tmp_path: Path) -> None:
    """Also where they have moments of an earlier step; and checkpoints hold tables and moments."""
    stages: list[Stage] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching_module, "train", lambda stage, run: stages.append(stage))
        run_of(street, tmp_path / "run", prompts="none", weight_decay=0.5)
    (stage,) = stages
    (optimiser,), module, batches = stage.optimisers, stage.module, stage.batches(0)
    assert isinstance(module, clip_reid.Tuning)
    sampled, necks = module.sampled, module.model.necks
    assert sampled is not None
    counts, moved = torch.zeros(IDENTITIES), 0
    for nth in range(len(batches)):
        before = {name: neck.classifier.weight.detach().clone() for name, neck in necks.items()}  # type: ignore
        sum(module(batches[nth]).values()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        classes = batches[nth]["classes"]
        assert len(classes) == 6
        counts[classes] += 1
        others = torch.tensor([i for i in range(IDENTITIES) if i not in classes])
        moved += int((counts[others] > 0).any())
        for name, old in before.items():
            table: Tensor = necks[name].classifier.weight  # type: ignore
            assert not table.requires_grad
            assert torch.equal(table[others], old[others])
            assert (table[classes] != old[classes]).all(dim=1).all()
            assert torch.equal(optimiser.state[sampled.rows[name]]["step"], counts)
    assert moved, "no identity was left out after a step in which it was sampled"
    save(tmp_path, stage, Done(1))
    ends = {name: neck.classifier.weight.detach().clone() for name, neck in necks.items()}  # type: ignore
    for neck in necks.values():
        torch.nn.init.zeros_(neck.classifier.weight)  # type: ignore
    optimiser.state.clear()
    assert resume(tmp_path, stage, print).epoch == 1
    for name, end in ends.items():
        assert torch.equal(necks[name].classifier.weight, end)  # type: ignore
        assert torch.equal(optimiser.state[sampled.rows[name]]["step"], counts)


# Whole runs -------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_interrupted_and_resumed_it_ends_bit_for_bit_as_uninterrupted(street: Path, tmp_path: Path) -> None:
    progressed = Progress.update

    def update(self: Progress, losses: dict[str, Tensor], images: int) -> None:
        progressed(self, losses, images)
        if self.stage == "stage2" and self.step > self.steps // 2:
            raise Killed

    run_of(street, tmp_path / "whole", prompts="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "update", update)
        with pytest.raises(Killed):
            run_of(street, tmp_path / "cut", prompts="none")
    run_of(street, tmp_path / "cut", prompts="none", resume=True)
    for file in ("identities.safetensors", "heads.safetensors", "adapter/adapter_model.safetensors"):
        one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "cut"))
        assert one.keys() == other.keys()
        assert all(torch.equal(x, other[name]) for name, x in one.items()), file
    kept = load_file(tmp_path / "whole/identities.safetensors")
    assert kept.keys() == {f"necks.{name}.classifier.weight" for name in ("final", "projection")}
    for name, x in kept.items():
        assert x.std() > 0.002, name  # they began at 0.001


def test_two_processes_are_one(street: Path, tmp_path: Path) -> None:
    given = {**short(clip_reid), "prompt_epochs": 1, "sample_classes": SHARE}
    run_of(street, tmp_path / "one", prompt_epochs=1)
    flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    flags += ["--image-size", "64", "32", "--data", f"folder:{street}", "--threads", "1"]
    in_processes(2, launch_method, "clip_reid", *flags, "--output", str(tmp_path / "two"))
    found = []
    for run in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        found.append([line for line in lines if line["stage"] == "stage2"])
    assert len(found[0]) == len(found[1]) == 2
    for alone, shared in zip(*found, strict=True):
        for key in (key for key in alone if key.endswith(("loss", "norm"))):
            assert alone[key] == pytest.approx(shared[key], rel=2e-4, abs=1e-5), key
    one, two = (load_file(tmp_path / run / "identities.safetensors") for run in ("one", "two"))
    for name in (name for name in one if "classifier" in name):
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "given"), [
    ("dpl", {}), ("dpm", {}), ("dpm", {"alternate": False, "prompts": "none"}), ("saga", {"mode": "joint"}),
])  # fmt: skip
def test_methods_that_go_on_from_clip_reid_sample_too(
    name: str, given: dict[str, Any], street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss over identities has 6 of the 8."""
    seen_by, plain = [], clip_reid.id_loss

    def watched(logits: Tensor, *more: Any) -> Tensor:
        seen_by.append(logits.shape[1])
        return plain(logits, *more)

    for module in (clip_reid, get_method(name)):
        monkeypatch.setattr(module, "id_loss", watched)
    run_of(street, tmp_path / "run", get_method(name), **{"epochs": 1, "prompt_epochs": 1, **given})
    assert set(seen_by) == {6}


def test_saga_on_a_frozen_tower_refuses() -> None:
    saga, nothing = get_method("saga"), Path("nowhere")
    flags, config = configure(saga, init=nothing, sample_classes=0.5)
    backbone: Any = load_backbone("tiny-clip")
    with pytest.raises(UserError, match="--sample-classes: --mode frozen compares all identities"):
        saga.fit(config, None, backbone, flags, 1)
