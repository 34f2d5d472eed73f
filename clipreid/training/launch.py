"""What the recipes call: the command line of a method, and a whole run from its flags to its table."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import tyro

import clipreid
from clipreid.config import LOOKED_UP, RunConfig, configure, name_of
from clipreid.data import ReIDData, trained_name
from clipreid.errors import UserError, print_user_errors
from clipreid.evaluation import get_protocol
from clipreid.evaluation.floor import colour_floor
from clipreid.evaluation.results import VAL, add_metrics, evaluate_command, results_table
from clipreid.evaluation.score import ZERO_SHOT, Scored, score
from clipreid.flags import parse_flags
from clipreid.hub.files import FIGURES, read_metrics
from clipreid.hub.folder import add_identities, identity_state, save_model
from clipreid.hub.initial import inherited, load_initial
from clipreid.methods import build
from clipreid.model import ReIDModel, untrained_model
from clipreid.strength import keep_strength, set_strength
from clipreid.training.camera_means import check_camera_means, keep_camera_means
from clipreid.training.endings import end_with_launcher, explained
from clipreid.training.parts import check_norms
from clipreid.training.push import push
from clipreid.training.run import Run, open_run
from clipreid.training.stage import Stage
from clipreid.training.strength_choice import Plan, choose_strength, forget_trial, plan_trial
from clipreid.training.trackers import check_tracker
from clipreid.training.train import train

INTERRUPTED = "interrupted; --resume with the same --output continues from the last checkpoint"
SHORT = {  # other words for flags, by the name of their setting
    "run": "init", "P": "identities_per_batch", "K": "images_per_identity",
    "pictures_per_identity": "images_per_identity",
}  # fmt: skip


def launch(method: ModuleType, about: str | None, until: str | None = None) -> None:
    """A recipe: reads the command line, and trains. A `UserError` becomes one message and exit status 2.

    Args:
        method: a module of `clipreid.methods`.
        about: the recipe's docstring, for `--help`.
        until: the last stage to train; None: all of them.
    """
    with print_user_errors(INTERRUPTED):
        end_with_launcher()
        flags, config = parse(method, about, sys.argv[1:])
        run_method(method, flags, config, until, clipreid.BEGAN)


def parse(method: ModuleType, about: str | None, args: Sequence[str]) -> tuple[RunConfig, Any]:
    """The command line as flags of the run and of the method; `--help` shows the values of the preset that was named.

    With `--init RUN` the defaults of backbone, data and of what shapes the model are those of that run.

    Raises:
        UserError: a flag of one value with two of them. SystemExit: `--help`, or flags that there are not.
    """
    words = typed(args)
    known = ("preset", "backbone", *(name for name in LOOKED_UP if hasattr(method.Config, name)))
    given: dict[str, Any] = {name: words[name] for name in known if words.get(name)}
    if init := words.get("init"):
        given |= {name: value for name, value in inherited(method, Path(init)).items() if name not in words}
    if "epochs" in words:
        given["epochs"] = 1  # whatever was typed takes its place: small data gets no more than that
    try:
        flags, config = configure(method, **given)
    except UserError:  # tyro says what is wrong with the word
        flags, config = configure(method)
    parts = [("run", RunConfig, field(default=flags)), ("method", method.Config, field(default=config))]
    both = make_dataclass("Flags", parts, frozen=True)
    found: Any = parse_flags(both, args, description=about, config=(tyro.conf.OmitArgPrefixes,))
    return found.run, found.method


def typed(args: Sequence[str]) -> dict[str, str]:
    """The flags of a command line as they were typed, by the name of their setting: the last word behind each."""
    found: dict[str, str] = {}
    name = ""
    for word in args:
        if match := re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=(.*))?", word, re.DOTALL):
            name = match[1].replace("-", "_")
            name = SHORT.get(name, name)
            found[name] = match[2] or ""
        elif name:
            found[name] = word
    return found


def run_method(
    method: ModuleType, flags: RunConfig, config: Any, until: str | None = None, began: float | None = None
) -> Run:
    """Trains every stage of a method that is not finished yet, scores before and after, and saves the run folder.

    until: the last stage to train; the run is then not finished, and nothing is scored.  began: when the command did,
    by `time.monotonic`, for the account of its time; None: now.

    Raises:
        UserError: whatever `open_run` refuses, a stage that is finished already, a run folder that cannot be written,
            or publishing (`--push`).
    """
    check_tracker(flags.track)
    run = open_run(method, flags, config, whole=until is None, began=began)
    with explained(run):
        finished = _train_stages(run, until)
    if finished and run.flags.push and run.main:
        run.log.say(f"\n{push(run.folder, run.flags)}")
    return run


def _train_stages(run: Run, until: str | None) -> bool:
    """All of a run between its opening and its publishing; whether it is finished."""
    method = run.method
    if until is not None and until in run.record["stages"]:
        raise UserError(
            f"{run.folder} holds a finished {until}: continue with the recipe of the whole method, or "
            "start anew with --overwrite"
        )
    if until is None:
        with run.clock.of(ZERO_SHOT):
            measure(run, untrained_model(run.backbone, getattr(run.config, "aggregation", "cls")), ZERO_SHOT)
    model = build_model(run)
    check_camera_means(run.flags, run.data.read, model)
    plan = plan_trial(run, model) if run.flags.strength == "auto" else None  # refuses before anything is trained
    last: Stage | None = None
    for stage in method.stages(run, model, run.config):
        _train(stage, run)
        last = stage
        if until is not None and stage.name == until:
            _say_next(run, until)
            return False
    if last is None or until is not None:
        raise UserError(f"the method {name_of(method)} has no stage {until or 'at all'} with these settings")
    _finish(run, model, last, plan)
    return True


def build_model(run: Run) -> ReIDModel:
    """The model of the run's method, on its device; what is drawn is the same for the same seed."""
    torch.manual_seed(run.seed)
    model = build(run.method, run.backbone, run.config, len(run.data.names))
    if run.flags.init is not None:
        run.log.say(load_initial(model, run.flags.init, run.data.names))
    check_norms(model.train().image, run.flags.accumulate)
    model.parts = run.flags.accumulate
    return model.to(run.device)


def _train(stage: Stage, run: Run) -> None:
    """One stage, noted in config.json before and after."""
    if stage.name not in run.record["stages"]:
        run.note(training=stage.name)
    trained = sum(p.numel() for p in stage.module.parameters() if p.requires_grad)
    run.log.say(f"{stage.name}  {trained:,} trained parameters")
    with run.clock.of(stage.name):
        train(stage, run)
    if run.main and stage.identities is not None:
        add_identities(run.folder, stage.identities(), run.data.names)
    run.note(stages=list(dict.fromkeys([*run.record["stages"], stage.name])), training=None)


def _finish(run: Run, model: ReIDModel, last: Stage, plan: Plan | None) -> None:
    """Saves and scores the trained model, and says what to do with it; `plan` says how its strength is chosen."""
    if plan is not None:
        with run.clock.of("strength"):
            found = choose_strength(run, plan, build_model)
        run.note(strength=found)
        keep_strength(set_strength(model, found["chosen"]))
    if run.main:
        save_model(model, run.folder)
        add_identities(run.folder, identity_state(model), run.data.names)
    with run.clock.of("scoring"):
        measure(run, model, last.name)
    keep_camera_means(run, model)
    run.note(finished=True)
    forget_trial(run)
    run.log.say(f"\n{results_table(run.folder)}\n")
    if run.log.warned:
        run.log.say("Look at these before the model is used, they say what to change:")
        for text in run.log.warned:
            run.log.say(f"  warning: {text}")
        run.log.say("")
    _say_time(run)
    run.log.say(f"run folder: {run.folder}\nnext:")
    for line in next_commands(run):
        run.log.say(f"  {line}")
    run.log.track(run.accelerator.end_training)


def _say_time(run: Run) -> None:
    """Where the time of this command went, also in log.jsonl."""
    run.log.write("time", 0, resumed=run.flags.resume, **{k: round(v, 3) for k, v in run.clock.seconds().items()})
    run.log.say(f"time{' of this command alone' * run.flags.resume}  {run.clock.told()}")


def _say_next(run: Run, stage: str) -> None:
    """After a recipe that trains a part of the method: what continues it."""
    _say_time(run)
    run.log.say(f"\n{stage} is finished. Run folder: {run.folder}\nnext, with the same flags and the same --output:")
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    output = [] if "output" in typed(words) else ["--output", str(run.folder)]
    run.log.say(f"  accelerate launch {run.method.RECIPE} {shlex.join([*words, *output])}")
    run.log.track(run.accelerator.end_training)


def measure(run: Run, model: ReIDModel, name: str) -> None:
    """Scores `model` on every test set of the run, and adds the figures to `metrics.json` under `name`.

    `zero-shot` counts the better of the projection alone and the test feature, and says which. Cameras and views are
    passed on for the data set that was trained on; another one's cameras are unknown, and take the mean embedding.
    """
    model.to(run.device)
    before, entries = read_metrics(run.folder), {}
    for data in run.data.tests:
        if run.flags.resume and name in before.get(data.name, {}):
            continue
        known = trained_name(data.name.removesuffix(VAL), run.flags.data)
        found = score(
            data,
            model,
            accelerator=run.accelerator,
            skip_bad=run.flags.skip_bad,
            offsets=run.data.mixture.offsets[known] if known else None,
        )
        feature = found.best() if name == ZERO_SHOT else found.feature
        entries[data.name] = found.entry(feature)
        run.log.send(name, 0, {f"{data.name}/{key}": entries[data.name][key] for key in FIGURES})
        zero_shot = before.get(data.name, {}).get(ZERO_SHOT, {})
        said = [] if name == ZERO_SHOT else zero_shot.get("notes", [])
        notes = [f"note: {note}" for note in found.reports[feature].notes if note not in said]
        warned: list[str] = []
        if name == ZERO_SHOT:
            notes += [f"note: {found.bad} test images left out (--skip-bad)"] * bool(found.bad)
        else:
            more, warned = doubts(run, data, found, entries[data.name], zero_shot)
            notes += more
        for note in notes:
            run.log.say(f"{data.name}  {note}")
        for text in warned:
            run.log.warn(text, data.name)
    if run.main:
        add_metrics(run.folder, name, entries)
    run.accelerator.wait_for_everyone()


def doubts(
    run: Run, data: ReIDData, found: Scored, entry: dict[str, Any], zero_shot: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """How a trained model's features are spread, and warnings: what makes its training doubtful, and what to change.

    entry: what metrics.json keeps of it; the mAP of colour stripes is added as "floor".
    """
    if (state := found.health()) is None:
        return [], []
    floor = colour_floor(data, skip_bad=run.flags.skip_bad)
    entry["floor"] = round(floor.reports[floor.feature].metrics["mAP"], 5)
    run.log.write("health", 0, data=data.name, **state.to_dict())
    warned = state.warnings()
    for what, figure in (("the untrained backbone", zero_shot.get("mAP")), ("stripes of colour", entry["floor"])):
        if figure is not None and entry["mAP"] <= figure:
            warned.append(
                f"no better than {what} (mAP {100 * entry['mAP']:.1f} against {100 * figure:.1f}): training did not "
                "help here; look at the labels and crops (clipreid data check DATA --sheet sheet.png), then lower "
                "--rate, or keep less of the training (--strength auto)"
            )
    return [f"features: {state}"], warned


def next_commands(run: Run) -> list[str]:
    """What to type once the run is finished: to score it again, where it has a test, and to embed with it."""
    lines = []
    tests = [data for data in (*run.data.tests, *run.data.read.sets) if {"query", "gallery"} <= data.splits.keys()]
    for data in [data for data in tests if not data.name.endswith(VAL)][:1]:
        drawn = not get_protocol(data.protocol).captions  # ranked lists show what images found
        report = ["--report", str(run.folder / "report")] if drawn else []
        lines.append(evaluate_command(run.folder, [data.name], *report, *["--skip-bad"] * run.flags.skip_bad))
    code = f'import clipreid; print(clipreid.load({json.dumps(str(run.folder))}).embed(["a.jpg"]))'
    return [*lines, shlex.join(["python", "-c", code])]
