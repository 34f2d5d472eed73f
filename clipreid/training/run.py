"""A run: its folder, data, backbone and settings, opened once and used by both recipes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

import clipreid
from clipreid.backbones import Backbone, load_backbone
from clipreid.data import ReIDData, check_trainable, load_data, pixel_cache, pk_indices, process_slice, relabel
from clipreid.data.cache import PixelCache
from clipreid.errors import UserError
from clipreid.evaluation.score import ZERO_SHOT, score
from clipreid.hub import (
    CONFIG,
    IDENTITIES,
    backbone_record,
    load_identities,
    save_identities,
)
from clipreid.model import ReIDModel
from clipreid.training.config import PromptConfig, RunConfig, TuneConfig, Values, resolve
from clipreid.training.folder import add_metrics, choose_folder, claim, read_metrics, write_json
from clipreid.training.harness import Log, make_accelerator, set_threads, start_tracking
from clipreid.training.stage1 import image_features, learn_prompts, separability, text_scale

HALF = (0.5, 0.5, 0.5)


@dataclass
class Run:
    """Everything that is known before training starts. N training pictures, I identities."""

    config: RunConfig
    values: Values
    folder: Path
    accelerator: Accelerator
    log: Log
    backbone: Backbone
    data: ReIDData
    labels: Tensor  # [N] long, 0..I-1
    names: list[str]  # [I] what the identities are called in the data
    record: dict[str, Any]  # config.json
    tests: list[ReIDData]  # every --test
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def crops(self, interpolation: str) -> PixelCache:
        """The training pictures, uint8 [N, 3, H, W], memory-mapped; decoded once."""
        return pixel_cache(self.data.splits["train"], self.backbone.image_size, interpolation=interpolation,
                           skip_bad=self.config.skip_bad)  # fmt: skip

    def note(self, status: str, **more: Any) -> None:
        """Writes `config.json` with a new status: running, prompts learned, tuning, finished."""
        self.record |= {"status": status, **more}
        if self.accelerator.is_main_process:
            write_json(self.folder / CONFIG, self.record)
        self.accelerator.wait_for_everyone()


def open_run(config: RunConfig, prompts: PromptConfig, tune: TuneConfig | None = None) -> Run:
    """Checks everything that can be wrong before anything slow happens.

    Args:
        config, prompts, tune: the flags; without `tune` this is a run of stage 1 alone.

    Raises:
        UserError: data, backbone, values, or a run folder that holds something else.
    """
    set_threads(config.threads)
    values = resolve(config.preset, config.backbone, prompts, tune)
    specs = config.data or ("synthetic",)
    if len(specs) > 1:
        raise UserError(
            f"--data was given {len(specs)} times: one data set can be trained on; use --test for the others"
        )
    data = load_data(specs[0], pattern=config.pattern, noun=config.noun)
    further = config.test or (("synthetic:new-cameras",) if specs[0] == "synthetic" else ())
    config = replace(config, data=specs, test=further)
    tests = [load_data(spec) for spec in further]
    for test in tests:
        if not {"query", "gallery"} <= test.splits.keys():
            raise UserError(f"--test {test.name} has no query and gallery, only {', '.join(test.splits)}")
    if config.validate and "val" not in data.splits:
        raise UserError(f"--validate: {data.name} has no val split, only {', '.join(data.splits)}")
    backbone = load_backbone(
        config.backbone, image_size=config.image_size, positions=values.positions,  # type: ignore[arg-type]
        stride=config.stride, gradient_checkpointing=bool(tune and tune.gradient_checkpointing),
    )  # fmt: skip
    if "train" not in data.splits:
        check_trainable(data, 2, 2)
    split = data.splits["train"]
    values = _fit_batch(values, tune, split.identities)
    check_trainable(data, values.identities_per_batch if tune else 2, values.pictures_per_identity)
    folder = choose_folder(config.output)
    accelerator = make_accelerator(config)
    if tune and values.identities_per_batch % accelerator.num_processes:
        if tune.identities_per_batch is not None:
            process_slice(torch.zeros(1, values.identities_per_batch), 0, accelerator.num_processes, K=1)  # refuses it
        whole = values.identities_per_batch // accelerator.num_processes * accelerator.num_processes
        values = replace(values, identities_per_batch=whole)
    if accelerator.num_processes > 1 and config.output is None:  # all processes take the main one's number
        folder = Path(broadcast_object_list([str(folder)])[0])
    config = replace(config, output=folder)
    half = values.pixels == "half"
    mean, std = (HALF, HALF) if half else (backbone.mean, backbone.std)
    cache = pixel_cache(split, backbone.image_size, interpolation=values.train_interpolation, skip_bad=config.skip_bad)
    data = replace(data, splits={**data.splits, "train": split.select(cache.kept) if cache.bad else split})
    labels, names = relabel(data.splits["train"].identities)
    if len(names) < values.identities_per_batch and tune:
        check_trainable(data, values.identities_per_batch, values.pictures_per_identity)
    if tune and tune.epochs is None and values.least_steps:
        steps = len(pk_indices(labels, values.identities_per_batch, values.pictures_per_identity, config.seed, 0))
        values = replace(values, epochs=max(values.epochs, -(-values.least_steps // steps)))
    run = Run(
        config,
        values,
        folder,
        accelerator,
        Log(folder, accelerator),
        backbone,
        data,
        labels,
        names,
        {},
        tests,
        mean,
        std,
    )
    run.record = _record(run, prompts, tune)
    claim(folder, run.record, config, tune is not None, accelerator)
    start_tracking(accelerator, config, asdict(values))
    run.log.say(data.summary())
    if cache.bad:
        path, reason = cache.bad[0]
        run.log.say(f"  note: {len(cache.bad)} training pictures left out (--skip-bad), such as {path}: {reason}")
    height, width = backbone.image_size
    run.log.say(
        f"{config.backbone}: crops {height}x{width}, preset {config.preset}, {accelerator.num_processes} process(es), "
        f"{torch.get_num_threads()} threads, {accelerator.device}; run folder {folder}"
    )
    return run


def _fit_batch(values: Values, tune: TuneConfig | None, identities: np.ndarray) -> Values:
    """K follows the data where most identities have fewer pictures (but at least 2), P then keeps the batch full."""
    counts = np.unique(identities, return_counts=True)[1]
    P, K = values.identities_per_batch, values.pictures_per_identity
    if tune is None or tune.pictures_per_identity is None:
        K = int(min(K, max(2, np.median(counts))))
    if tune is None or tune.identities_per_batch is None:
        P = min(values.identities_per_batch * values.pictures_per_identity // K, max(P, len(counts)))
    return replace(values, identities_per_batch=P, pictures_per_identity=K)


def _record(run: Run, prompts: PromptConfig, tune: TuneConfig | None) -> dict[str, Any]:
    """`config.json`: what was asked, what it resolved to, and what it was run on."""
    config, values, backbone = run.config, run.values, run.backbone
    size = list(backbone.image_size)
    stage1 = {
        "backbone": config.backbone, "data": list(config.data), "preset": config.preset, "seed": config.seed,
        "noun": run.data.noun, "image_size": size, "stride": backbone.image.stride, "pictures": len(run.labels),
        "identities": len(run.names), "epochs": values.prompt_epochs, "rate": values.prompt_rate,
        "batch": values.prompt_batch, "tokens": prompts.prompt_tokens,
    }  # fmt: skip
    flags = {k: v for k, v in asdict(config).items() if k not in ("resume", "overwrite", "output")}
    source = backbone_record(backbone, values.positions)
    record = {"clipreid": clipreid.__version__, "status": "new", "backbone": source, "stage1": stage1,
              "flags": flags, "values": asdict(values)}  # fmt: skip
    if tune:
        record["stage2"] = asdict(tune)
    return json.loads(json.dumps(record, default=str))


def text_bank(run: Run, prompts: PromptConfig) -> Tensor:
    """Stage 1: the text bank [I, E]; learned now, or taken from the run folder where it is finished."""
    if run.record["status"] in ("prompts", "tuning"):
        tensors, names = load_identities(run.folder)
        if names != run.names:
            raise UserError(
                f"{run.folder / IDENTITIES} is of other identities than the training data: start anew with --overwrite"
            )
        run.log.say(f"stage 1  text bank of {len(names)} identities taken from {run.folder}")
        return tensors["text_bank"]
    run.note("running")
    device = run.accelerator.device
    run.backbone.to(device)
    crops = run.crops(run.values.test_interpolation).pixels
    features = image_features(run.backbone, crops, (run.mean, run.std), run.accelerator)
    labels = run.labels.to(device)
    learned = learn_prompts(
        run.accelerator, run.log, run.backbone, features, labels, run.values, noun=run.data.noun,
        tokens=prompts.prompt_tokens, seed=run.config.seed, folder=run.folder, resume=run.config.resume,
    )  # fmt: skip
    bank = learned.bank()
    found = separability(features, bank, labels, text_scale(run.backbone))
    run.log.write("stage 1", run.values.prompt_epochs, **found)
    run.log.say(
        f"stage 1  text finds its own pictures {found['text_to_image']:.1%}, "
        f"picture finds its own text {found['image_to_text']:.1%}"
    )
    if run.accelerator.is_main_process:
        save_identities(run.folder, {"prompts": learned.context, "text_bank": bank}, run.names)
    run.note("prompts", separability=found)
    return bank.cpu()


def measure(run: Run, model: ReIDModel, name: str) -> None:
    """Scores `model` on every test set of the run, and adds the figures to `metrics.json`.

    `zero-shot` counts the better of the projection alone and stage 2's concatenation, and says which.
    """
    before, entries = read_metrics(run.folder), {}
    for data in _tests(run):
        if run.config.resume and name in before.get(data.name, {}):
            continue
        found = score(
            data, model.embed_parts, model.image_size, model.config.interpolation,
            accelerator=run.accelerator, skip_bad=run.config.skip_bad,
        )  # fmt: skip
        feature = found.best(ZERO_SHOT) if name == "zero-shot" else "concat"
        entries[data.name] = found.entry(feature)
        notes = list(found.reports[feature].notes)
        if found.bad:
            notes.append(f"{found.bad} test pictures left out (--skip-bad)")
        for note in notes if name == "zero-shot" else ():
            run.log.say(f"{data.name}  note: {note}")
    if run.accelerator.is_main_process:
        add_metrics(run.folder, name, entries)
    run.accelerator.wait_for_everyone()


def _tests(run: Run) -> list[ReIDData]:
    """What is scored: the run's own test split and every --test; or its val split alone."""
    if not run.config.validate:
        own = [run.data] if "query" in run.data.splits else []
        return own + run.tests
    val = run.data.splits["val"]
    return [replace(run.data, name=f"{run.data.name} (val)", splits={"query": val, "gallery": val})]
