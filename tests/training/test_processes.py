"""Several processes of one run: continued on another number of them, one that dies, and the launchers."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from group import die_in_step, interrupt, score_folder
from launching import paint_street
from processes import in_processes, members
from safetensors.torch import load_file
from toys import train_both

from clipreid.config import RunConfig
from clipreid.errors import UserError
from clipreid.training.harness import make_accelerator


def figures(run: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line["epoch"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_continued_on_another_number_of_processes_it_ends_as_it_would_have(
    before: int, after: int, tmp_path: Path
) -> None:
    """To 1e-5: interrupted within an epoch, the same batches of all processes together follow."""
    in_processes(1, train_both, tmp_path / "whole")
    in_processes(before, interrupt, tmp_path / "run", (2, 2))
    in_processes(after, train_both, tmp_path / "run")
    whole, found = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "run"))
    assert whole.keys() == found.keys()
    for name in whole:
        torch.testing.assert_close(found[name], whole[name], atol=1e-5, rtol=1e-5)
    one, two = figures(tmp_path / "whole"), figures(tmp_path / "run")
    assert [line[:2] for line in one] == [line[:2] for line in two]
    assert [line[2] for line in one] == pytest.approx([line[2] for line in two], abs=1e-5)


def test_a_process_that_is_killed_ends_the_others_with_a_message_within_a_minute(tmp_path: Path) -> None:
    """kill -9 of rank 1, which nobody tells rank 0 about; the message stands in its stderr, with what to do."""
    start, (first, second) = time.monotonic(), members(2, die_in_step, tmp_path / "run", 4)
    second.join(200)
    assert second.exitcode == -signal.SIGKILL
    begun = time.monotonic()
    first.join(60)
    assert first.exitcode == 2, f"after {time.monotonic() - begun:.0f} s, started {begun - start:.0f} s before"
    said = (tmp_path / "run" / "stderr.txt").read_text()
    assert "error: another of the 2 processes of this run has ended, or cannot be reached any more" in said
    assert f"the last checkpoint is {tmp_path / 'run' / 'checkpoints' / 'toy-00001'}" in said
    assert f"--output {tmp_path / 'run'} --resume" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_what_splits_the_model_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=r"splits the model over the processes; .*recipes/accelerate/ddp\.yaml"):
        make_accelerator(RunConfig())


def test_two_processes_score_exactly_as_one(tmp_path: Path) -> None:
    street = paint_street(tmp_path / "street", train=2, test=5)
    for count in (1, 2):
        in_processes(count, score_folder, street, tmp_path / f"{count}.json")
    one, two = ((tmp_path / f"{count}.json").read_text() for count in (1, 2))
    assert json.loads(one)["concat"]["mAP"] < 1  # not perfect: nothing would differ
    assert one == two
