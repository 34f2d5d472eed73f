"""`--strength auto`: how much of what training changed is kept, chosen on training images that a training has not seen.

The method is trained once more without half of the cameras and a third of the identities (`clipreid.data.folds`). The
identities left out are then found at the other cameras and among the cameras left out, at several strengths; the one
with the best mean of the two becomes part of the run's weights. This takes about as long as the training itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np

from clipreid.data import Mixture, ReIDData
from clipreid.data.folds import camera_fold
from clipreid.errors import UserError
from clipreid.evaluation.score import score
from clipreid.hub.files import TRIAL
from clipreid.model import ReIDModel
from clipreid.strength import set_strength
from clipreid.training.harness import Log
from clipreid.training.run import Run, open_backbone
from clipreid.training.sets import RunData
from clipreid.training.train import train

STRENGTHS = (1.0, 0.75, 0.5, 0.25)  # of equal ones the first
CAMERAS = 4  # the fewest of a data set: two to train on, two to be new
Plan = tuple[RunData, list[ReIDData]]  # what is trained on, and what is measured


def plan_trial(run: Run, model: ReIDModel) -> Plan | None:
    """What is trained on to choose the strength, and what is measured; None where there are too few cameras.

    Raises:
        UserError: the model has token hooks, whose strength cannot become part of the weights, or starts from a run
            that has seen what is to be left out.
    """
    if run.flags.init is not None:
        raise UserError(
            "--strength auto: the run of --init has seen the images that would be left out, and the choice would "
            "flatter; give --strength at evaluation"
        )
    if model.hooks:
        raise UserError(
            f"--strength auto: what works inside the tower ({', '.join(model.hooks)}) cannot be weakened for good; "
            "leave it out (--sie none), or give --strength at evaluation"
        )
    sets: list[ReIDData] = []
    tests: list[ReIDData] = []
    for data in run.data.mixture.sets:
        cameras = np.unique(data.splits["train"].cameras)
        cameras = cameras[cameras >= 0]
        if len(cameras) < CAMERAS:
            run.log.say(
                f"--strength auto: {data.name} has {len(cameras)} cameras, {CAMERAS} are needed; it decides nothing"
            )
            sets.append(data)
            continue
        kept, left_out = camera_fold(data, cameras[1::2].tolist())
        sets.append(kept)
        tests += [test for test in left_out.values() if _has_matches(test)]
    mixture = Mixture(tuple(sets))
    trained = RunData(mixture, mixture, [], [])
    if not tests or len(trained.names) < max(2, run.processes):
        run.log.say("--strength auto: off, the strength stays 1")
        return None
    return trained, tests


def _has_matches(test: ReIDData) -> bool:
    """Whether some identity was seen by two cameras: there is one query for each identity and camera."""
    query = test.splits["query"]
    return len(query) > len(set(query.identities))


def choose_strength(run: Run, plan: Plan, build_model: Callable[[Run], ReIDModel]) -> dict[str, float]:
    """The strength for a run of this method and these data, and the mean mAP (0..1) at each that was tried.

    plan: of `plan_trial`.  build_model: gives the untrained model of a run.

    Returns:
        {"chosen": 0.75, "mAP_100": ..., "mAP_75": ...}, by percent of the strength.

    Raises:
        UserError: as training does.
    """
    data, tests = plan
    run.log.say(
        f"--strength auto: the same training without half of the cameras and a third of the identities "
        f"({len(data.names)} identities, {len(data.labels):,} images), to measure the strength on what it has not seen"
    )
    tried = _tried(run, data, build_model)
    found: dict[float, float] = {}
    for strength in STRENGTHS:
        set_strength(tried, strength)
        scored = [score(test, tried, accelerator=run.accelerator, skip_bad=run.flags.skip_bad) for test in tests]
        each = [one.reports[one.feature].metrics["mAP"] for one in scored]
        found[strength] = fmean(each)
        told = ", ".join(f"{test.name} {mAP:.1%}" for test, mAP in zip(tests, each, strict=True))
        run.log.say(f"strength {strength:4g}  mAP {found[strength]:.1%} ({told})")
    chosen = max(found, key=lambda strength: found[strength])
    run.log.say(f"strength {chosen:g} is chosen, and becomes part of the weights")
    return {"chosen": chosen} | {f"mAP_{100 * strength:.0f}": round(mAP, 5) for strength, mAP in found.items()}


def _tried(run: Run, data: RunData, build_model: Callable[[Run], ReIDModel]) -> ReIDModel:
    """A model trained as the run's, on other data; continued like the run itself where it was interrupted."""
    config, folder = run.config, run.folder / TRIAL
    if hasattr(config, "identities_per_batch"):
        most = min(config.identities_per_batch, len(data.names))
        config = replace(config, identities_per_batch=most - most % run.processes)
    if run.main:
        folder.mkdir(exist_ok=True)
    run.accelerator.wait_for_everyone()
    log, (_, backbone) = Log(folder, run.accelerator, "trial/"), open_backbone(run.flags)  # the run's own is trained
    trial = replace(run, data=data, config=config, backbone=backbone, folder=folder, log=log, record={"stages": []})
    model = build_model(trial)
    for stage in run.method.stages(trial, model, config):
        train(stage, trial)
    return model.eval()


def forget_trial(run: Run) -> None:
    """Removes what the trial left, once its outcome is in config.json."""
    if run.main:
        shutil.rmtree(run.folder / TRIAL, ignore_errors=True)
    run.accelerator.wait_for_everyone()
