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
from clipreid.backbones import Backbone, ImageBackbone, check_fits, check_processes, is_image_only, load_backbone
from clipreid.data import Mixture, Pixels, ReIDData, mixed_pk_indices, process_slice, relabel, trained_name
from clipreid.errors import UserError
from clipreid.evaluation.score import ZERO_SHOT, score
from clipreid.hub import CONFIG, IDENTITIES, backbone_record, load_identities, save_identities
from clipreid.hub.files import read_metrics, write_json
from clipreid.model import ReIDModel
from clipreid.side import check_cls, known_numbers
from clipreid.training.config import PromptConfig, RunConfig, TuneConfig, Values, resolve
from clipreid.training.folder import add_metrics, choose_folder, claim
from clipreid.training.harness import Log, make_accelerator, set_threads, start_tracking
from clipreid.training.push import check_push, origin, prepare_push
from clipreid.training.sets import VAL, check_batch, decode, read_sets, shared_people
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
    read: Mixture  # every --data, as it was read
    mixture: Mixture  # the same, without the pictures left out (--skip-bad)
    labels: Tensor  # [N] long, 0..I-1
    names: list[str]  # [I] what the identities are called in the data; "SET/IDENTITY" with several sets
    record: dict[str, Any]  # config.json
    tests: list[ReIDData]  # what is scored
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def crops(self, interpolation: str) -> Pixels:
        """The training pictures, uint8 [N, 3, H, W], memory-mapped; decoded once.

        Raises:
            UserError: they have changed since the run was opened.
        """
        mixture, pixels, _ = decode(self.read, self.backbone.image_size, interpolation, self.config.skip_bad)
        if not np.array_equal(mixture.identities, self.mixture.identities):
            raise UserError("the training pictures changed while the run was being prepared: start it again")
        return pixels

    @property
    def groups(self) -> Tensor:
        """The data set of each training picture, [N] long, 0 where there is one."""
        return torch.from_numpy(self.mixture.groups)

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Cameras [N] and views [N] of the training pictures, -1 = unknown; no number twice in several sets."""
        return torch.from_numpy(self.mixture.cameras), torch.from_numpy(self.mixture.views)

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
    _check_text(config.backbone, tune)
    check_push(config, tune is not None)
    config, read, tests = read_sets(config)
    backbone, values = _open_backbone(config, values, tune)
    if tune:
        check_fits(backbone, values.tuning, tune.aggregation)
    if tune and tune.sie != "none":
        check_cls(tune.sie, backbone.family, config.backbone)
        known_numbers(tune.sie, read.cameras, read.views)  # refuses what nobody knows
    values = _fit_batch(values, tune, read)
    config, accelerator = _open_folder(config)
    assert config.output is not None
    values = _share_batch(values, tune, accelerator.num_processes)
    check_processes(backbone, values.tuning, accelerator.num_processes)
    mixture, _, bad = decode(read, backbone.image_size, values.train_interpolation, config.skip_bad)
    labels, names = relabel(mixture.identities)
    values, shares = _count_batches(config, values, tune, mixture, labels)
    half = values.pixels == "half"
    run = Run(
        config=config, values=values, folder=config.output, accelerator=accelerator,
        log=Log(config.output, accelerator), backbone=backbone, read=read, mixture=mixture, labels=labels, names=names,
        record={}, tests=tests, mean=HALF if half else backbone.mean, std=HALF if half else backbone.std,
    )  # fmt: skip
    run.record = _record(run, prompts, tune)
    claim(run.folder, run.record, config, tune is not None, accelerator)
    prepare_push(config, accelerator.is_main_process)
    start_tracking(accelerator, config, asdict(values))
    _introduce(run, shares, bad)
    return run


def _check_text(backbone: str, tune: TuneConfig | None) -> None:
    """Refuses to learn prompts for a backbone without text."""
    if is_image_only(backbone) and (tune is None or tune.prompts != "none"):
        raise UserError(
            f"--backbone {backbone} has no text tower to learn prompts with: train it with --prompts none "
            "(recipes/clipreid_stage2.py), or take a backbone with text (tiny-clip, open_clip:..., hf:...)"
        )


def _open_backbone(config: RunConfig, values: Values, tune: TuneConfig | None) -> tuple[Backbone, Values]:
    """The backbone, and the values with its interpolation where the preset leaves that to it."""
    backbone = load_backbone(
        config.backbone, image_size=config.image_size, positions=values.positions,  # type: ignore[arg-type]
        stride=config.stride, gradient_checkpointing=bool(tune and tune.gradient_checkpointing),
    )  # fmt: skip
    if values.pixels == "backbone":
        values = replace(values, train_interpolation=backbone.interpolation, test_interpolation=backbone.interpolation)
    return backbone, values


def _fit_batch(values: Values, tune: TuneConfig | None, mixture: Mixture) -> Values:
    """K follows the data where most identities have fewer pictures (but at least 2), P then keeps the batch full.

    Raises:
        UserError: such batches cannot be drawn from the data.
    """
    counts = np.unique(mixture.identities, return_counts=True)[1]
    P, K = values.identities_per_batch, values.pictures_per_identity
    if tune is None or tune.pictures_per_identity is None:
        K = int(min(K, max(2, np.median(counts))))
    if tune is None or tune.identities_per_batch is None:
        P = min(values.identities_per_batch * values.pictures_per_identity // K, max(P, len(counts)))
    # stage 1 draws no such batches: there only what any data must have
    check_batch(mixture, P if tune else len(mixture.sets) + 1, K, tune.balance if tune else "proportional")
    return replace(values, identities_per_batch=P, pictures_per_identity=K)


def _open_folder(config: RunConfig) -> tuple[RunConfig, Accelerator]:
    """The processes, and the flags with the run folder that all of them agree on."""
    folder = choose_folder(config.output)
    accelerator = make_accelerator(config)
    if accelerator.num_processes > 1 and config.output is None:  # all processes take the main one's number
        folder = Path(broadcast_object_list([str(folder)])[0])
    return replace(config, output=folder), accelerator


def _share_batch(values: Values, tune: TuneConfig | None, processes: int) -> Values:
    """P that the processes can share: the next smaller one, or a refusal where it was asked for."""
    P = values.identities_per_batch
    if tune is None or not P % processes:
        return values
    if tune.identities_per_batch is not None:
        process_slice(torch.zeros(1, P), 0, processes, K=1)  # refuses it
    return replace(values, identities_per_batch=P // processes * processes)


def _count_batches(
    config: RunConfig, values: Values, tune: TuneConfig | None, mixture: Mixture, labels: Tensor
) -> tuple[Values, list[int] | None]:
    """The values with the epochs that small data needs, and each set's share of a batch."""
    if tune is None:
        return values, None
    P, K = values.identities_per_batch, values.pictures_per_identity
    shares = check_batch(mixture, P, K, tune.balance)  # again: pictures may have been left out
    if tune.epochs is None and values.least_steps:
        steps = len(mixed_pk_indices(labels, mixture.groups, P, K, config.seed, 0, tune.balance))
        values = replace(values, epochs=max(values.epochs, -(-values.least_steps // steps)))
    return values, shares


def _introduce(run: Run, shares: list[int] | None, bad: list[tuple[str, str]]) -> None:
    """Says what is trained on, with what, and where."""
    run.log.say(run.mixture.summary(shares))
    for note in shared_people(run.mixture, run.tests):
        run.log.say(f"  note: {note}")
    if bad:
        path, reason = bad[0]
        run.log.say(f"  note: {len(bad)} training pictures left out (--skip-bad), such as {path}: {reason}")
    if run.config.preset == "paper" and not run.backbone.raw_logits:
        run.log.say("  note: image-text logits are cosine x the backbone's scale; the published raw dot products need "
                    "weights known to be OpenAI's (a tag or Hub name)")  # fmt: skip
    height, width = run.backbone.image_size
    run.log.say(
        f"{run.config.backbone}: crops {height}x{width}, preset {run.config.preset}, "
        f"{run.accelerator.num_processes} process(es), {torch.get_num_threads()} threads, {run.accelerator.device}; "
        f"run folder {run.folder}"
    )


def _record(run: Run, prompts: PromptConfig, tune: TuneConfig | None) -> dict[str, Any]:
    """`config.json`: what was asked, what it resolved to, and what it was run on."""
    config, values, backbone = run.config, run.values, run.backbone
    size = list(backbone.image_size)
    stage1 = {
        "backbone": config.backbone, "data": list(config.data), "preset": config.preset, "seed": config.seed,
        "noun": run.mixture.noun, "image_size": size, "stride": backbone.image.stride, "pictures": len(run.labels),
        "identities": len(run.names), "epochs": values.prompt_epochs, "rate": values.prompt_rate,
        "batch": values.prompt_batch, "tokens": prompts.prompt_tokens,
    }  # fmt: skip
    flags = {k: v for k, v in asdict(config).items() if k not in ("resume", "overwrite", "output", "push", "private")}
    source = backbone_record(backbone, values.positions)
    record = {"clipreid": clipreid.__version__, "status": "new", "backbone": source, "stage1": stage1,
              "flags": flags, "values": asdict(values), "offsets": run.mixture.offsets}  # fmt: skip
    if tune:
        record["stage2"] = asdict(tune)
    if isinstance(backbone, ImageBackbone):
        record["pooling"] = backbone.image.pooling
    record |= origin(config, run.mixture.sets, run.tests)
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
    crops = run.crops(run.values.test_interpolation)
    features = image_features(run.backbone, crops, (run.mean, run.std), run.accelerator)
    labels = run.labels.to(device)
    learned = learn_prompts(
        run.accelerator, run.log, run.backbone, features, labels, run.values, noun=run.mixture.nouns(run.names),
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

    `zero-shot` counts the better of the projection alone and stage 2's concatenation, and says which; it is taken
    without side information, whose embedding is random before training. Later, cameras and views are passed on for
    the data set that was trained on; another one's cameras are unknown, and take the mean embedding.
    """
    if name == "zero-shot" and model.side is not None:
        with model.without_side():
            return measure(run, model, name)
    before, entries = read_metrics(run.folder), {}
    for data in run.tests:
        if run.config.resume and name in before.get(data.name, {}):
            continue
        known = trained_name(data.name.removesuffix(VAL), run.config.data)
        found = score(
            data, model.embed_parts, model.image_size, model.config.interpolation,
            accelerator=run.accelerator, skip_bad=run.config.skip_bad, embed_text=model.embed_text,
            sides=run.mixture.offsets[known] if model.side is not None and known else None,
        )  # fmt: skip
        feature = found.best(ZERO_SHOT) if name == "zero-shot" else found.feature
        entries[data.name] = found.entry(feature)
        notes = list(found.reports[feature].notes)
        if found.bad:
            notes.append(f"{found.bad} test pictures left out (--skip-bad)")
        for note in notes if name == "zero-shot" else ():
            run.log.say(f"{data.name}  note: {note}")
    if run.accelerator.is_main_process:
        add_metrics(run.folder, name, entries)
    run.accelerator.wait_for_everyone()
