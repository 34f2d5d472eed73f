"""accelerate's launcher with the configs that we ship, on CPUs of one machine (gloo)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import ROOT, run_recipe
from processes import free_port

from clipreid.training import checkpoint
from clipreid.training.stage import Stage

pytestmark = pytest.mark.slow
SHORT = (
    "--image-size", 64, 32, "--prompt-epochs", 1, "--identities-per-batch", 8, "--images-per-identity", 2,
    "--threads", 1,
)  # fmt: skip
FSDP2 = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
num_processes: 2
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
mixed_precision: "no"
"""


def launcher(config: str | Path, *flags: object) -> list[str]:
    file = ROOT / "recipes" / "accelerate" / config
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *map(str, flags)]


def recipe(street: Path, output: Path, *flags: object, epochs: int = 3) -> list[str]:
    words = ("--data", f"folder:{street}", "--output", output, "--epochs", epochs, *SHORT, *flags)
    return [str(ROOT / "recipes" / "clipreid_stage2.py"), *map(str, words)]


def losses(run: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line["epoch"], line["loss"]) for line in lines if "loss" in line]


def assert_alike(run: Path, whole: Path) -> None:
    """The same losses to 1e-5 in the first epochs, and of the untrained backbone exactly the same figures."""
    one, two = losses(whole), losses(run)
    assert [line[:2] for line in one] == [line[:2] for line in two]
    assert [line[2] for line in one] == pytest.approx([line[2] for line in two], rel=1e-5, abs=1e-5)
    (before,), (after,) = (json.loads((each / "metrics.json").read_text()).values() for each in (whole, run))
    assert before["zero-shot"] == after["zero-shot"]


@pytest.fixture(scope="module")
def whole(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one process."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run_recipe("clipreid_stage2.py", *recipe(street, output)[1:])
    return output


def test_several_processes_of_one_machine_are_one(
    street: Path, whole: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [*launcher("ddp.yaml"), *recipe(street, tmp_path / "run")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert_alike(tmp_path / "run", whole)


def test_a_run_of_one_process_is_continued_by_two(
    street: Path, whole: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the second epoch of stage 2."""
    run, save = tmp_path / "run", checkpoint.save

    def save_and_stop(folder: Path, stage: Stage, done: checkpoint.Done) -> None:
        save(folder, stage, done)
        if (stage.name, done.epoch, done.step) == ("stage2", 1, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(SystemExit):
            run_recipe("clipreid_stage2.py", *recipe(street, run, "--checkpoint-steps", 1)[1:])
    command = [*launcher("ddp.yaml"), *recipe(street, run, "--resume")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "note: begun with processes 1, continued with 2: the batches are the same" in done.stdout
    assert "stage2  resumes after epoch 1 and 1 steps of the next" in done.stdout
    assert_alike(run, whole)


def test_two_machines_are_one(street: Path, whole: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Both on this host, each with one process."""
    port = free_port()
    flags = ("--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    machines = []
    for rank in (1, 0):
        command = [*launcher("multi_node.yaml", *flags, "--machine_rank", rank), *recipe(street, tmp_path / "run")]
        with open(tmp_path / f"{rank}.txt", "w", encoding="utf-8") as out:
            machines.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=out))
    assert [machine.wait(600) for machine in machines] == [0, 0], (tmp_path / "0.txt").read_text()
    assert "2 process(es)" in (tmp_path / "0.txt").read_text()
    assert_alike(tmp_path / "run", whole)


def test_fsdp2_is_refused(street: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """accelerate leaves it out on a CPU without a word; on GPUs it would split what optimisers and checkpoints hold."""
    (tmp_path / "fsdp2.yaml").write_text(FSDP2)
    command = [*launcher(tmp_path / "fsdp2.yaml"), *recipe(street, tmp_path / "run")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "error: accelerate is configured for FSDP, which splits the model over the processes" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="as prctl of Linux does it")
def test_a_launcher_that_is_told_to_end_ends_its_training(
    street: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """`accelerate launch` of one process passes no signal on; the training ends all the same, and can be continued."""
    run, out = tmp_path / "run", tmp_path / "said.txt"
    words = recipe(street, run, "--prompts", "none", epochs=2000)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", *words]
    with open(out, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)
    wait_for(lambda: list(run.glob("checkpoints/stage2-0*")), process)
    holder = json.loads((run / ".lock.json").read_text())["process"]
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    wait_for(lambda: not Path(f"/proc/{holder}").exists(), None)
    said = out.read_text()
    assert "interrupted; the last checkpoint is" in said
    assert "--resume" in said
    assert not (run / ".lock.json").exists()


def wait_for(ready: Callable[[], object], process: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_in_a_locale_without_letters(street: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Python opens text files in ASCII there; folders and log are as anywhere else."""
    told = environment | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told.pop("PYTHONIOENCODING", None)
    output = tmp_path / "Läufe" / "größe"
    done = subprocess.run(
        [sys.executable, *recipe(street, output, "--prompts", "none")],
        env=told, cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, os.fsdecode(done.stderr)
    assert [line[:2] for line in losses(output)] == [("stage2", epoch) for epoch in (1, 2, 3)]
