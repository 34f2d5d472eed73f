"""SIGKILL at 20 random moments over all methods and their stages: each is resumed, and ends as the uninterrupted run.

`pytest -m slow tests/methods/test_chaos.py -s` prints where the kills hit; CHAOS_SEED=7 draws others, CHAOS_KILLS=100
more.
"""

import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chaos import run_to
from launching import caption_street, paint_street
from short_runs import init_of
from test_contract import assert_same_tensors

from clipreid.hub.files import CHECKPOINTS, CONFIG
from clipreid.methods import get_method, method_names

SEED = int(os.environ.get("CHAOS_SEED", "2026"))
KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
TIMED = {"images_per_second", "step_ms", "mfu"}


def child(*args: Any) -> int:
    """`run_to` in a process that has imported everything already; its exit code."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["clipreid.training.launch", *(f"clipreid.methods.{name}" for name in method_names())]
    )
    process = context.Process(target=run_to, args=args)
    process.start()
    process.join(300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def figures(run: Path) -> dict[str, Any]:
    """metrics.json, and the last line of the log for each epoch: a killed process may have said it before."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    epochs = {(line["stage"], line["epoch"]): line for line in lines if "epoch" in line}
    said = {place: {key: line[key] for key in line.keys() - TIMED} for place, line in epochs.items()}
    return {"metrics": json.loads((run / "metrics.json").read_text("utf-8")), **said}


def where(line: str) -> str:
    """A line of the log of events, for people."""
    _, event, *rest = line.split(" ")
    if event == "step":
        return f"step of {rest[0]}"
    path = rest[0]
    return (
        f"checkpoint of {path.split(CHECKPOINTS + '/')[-1].split('-')[0]}"
        if f"{CHECKPOINTS}/" in path
        else "run folder"
    )


@pytest.mark.slow
def test_whatever_the_moment_of_the_kill_the_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    draw, methods = random.Random(SEED), method_names()
    street, hits = caption_street(paint_street(tmp_path / "street", train=6, test=4)), Counter[str]()
    print(f"\nchaos: seed {SEED}, {KILLS} kills")
    for nth, name in enumerate(methods):
        init = init_of(get_method(name), street, tmp_path, "tiny-clip")
        given = (name, str(street), None if init is None else str(init))
        whole, log = tmp_path / f"{name}-whole", tmp_path / f"{name}.log"
        assert child(name, given[1], str(whole), given[2], 0, 0.0, str(log)) == 0
        events = len(log.read_text("utf-8").splitlines())
        for kill in range(KILLS // len(methods) + (nth < KILLS % len(methods))):
            run, log = tmp_path / f"{name}-{kill}", tmp_path / f"{name}-{kill}.log"
            event, delay = draw.randint(1, events), draw.choice([0.0, draw.uniform(0, 0.1)])
            code = child(name, given[1], str(run), given[2], event, delay, str(log))
            assert code in (-signal.SIGKILL, 0), f"{name}, event {event}: exit code {code}"  # 0: it was done before
            place = where(log.read_text("utf-8").splitlines()[-1])
            hits[place] += 1
            print(f"chaos: {name}, event {event} of {events} and {1000 * delay:.0f} ms: {place}")
            if not json.loads((run / CONFIG).read_text("utf-8") if (run / CONFIG).exists() else "{}").get("finished"):
                assert child(name, given[1], str(run), given[2], 0, 0.0, str(log)) == 0, f"{name}, event {event}"
            assert_same_tensors(whole, run)
            one, two = figures(whole), figures(run)
            assert one == two, [
                (place, one.get(place), two.get(place)) for place in one if one[place] != two.get(place)
            ]
    print("chaos: " + ", ".join(f"{count} x {place}" for place, count in hits.most_common()))
    assert sum(hits.values()) == KILLS
