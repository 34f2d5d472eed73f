"""A run: its data, backbone, folder and settings, opened in parts and checked before anything slow happens."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

import clipreid
from clipreid.backbones import Backbone, ImageBackbone, load_backbone
from clipreid.backbones.record import backbone_record
from clipreid.config import UNRECORDED, RunConfig, check_values, name_of
from clipreid.data import Pixels
from clipreid.data.shape import median_shape
from clipreid.errors import UserError
from clipreid.hub.checks import method_settings
from clipreid.hub.files import CONFIG, write_json
from clipreid.training.clock import Clock
from clipreid.training.crop import about_crops, check_whole_patches, fit_crop
from clipreid.training.folder import check_output, choose_folder, claim
from clipreid.training.harness import Log, make_accelerator, set_threads, slow_half, start_tracking
from clipreid.training.lock import RunLock, lock_folder
from clipreid.training.machine import check_compiles
from clipreid.training.parts import check_parts
from clipreid.training.push import check_push, origin, prepare_push
from clipreid.training.sets import RunData, check_batch, check_opened, decode, read_sets, shared_people
from clipreid.training.sizes import about_size
from clipreid.training.unchanged import content_of, environment_of, machine_of

HALF = (0.5, 0.5, 0.5)


@dataclass
class Run:
    """Everything that is known before training starts. N training images, I identities."""

    method: ModuleType  # of clipreid.methods
    flags: RunConfig
    config: Any  # the method's, resolved
    data: RunData
    backbone: Backbone
    folder: Path
    accelerator: Accelerator
    log: Log
    record: dict[str, Any]  # config.json
    lock: RunLock | None = None  # of the folder
    clock: Clock = field(default_factory=Clock)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.accelerator.is_main_process

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def share(self) -> tuple[int, int]:
        """(rank, processes)."""
        return self.accelerator.process_index, self.accelerator.num_processes

    @property
    def seed(self) -> int:
        return self.flags.seed

    def crops(self, training: bool = True) -> Pixels:
        """The training images as uint8 [N, 3, H, W], memory-mapped, resized as for training or as for test.

        Raises:
            UserError: they have changed since the run was opened.
        """
        interpolation = self.flags.train_interpolation if training else self.flags.test_interpolation
        assert interpolation is not None  # set by `open_backbone`
        return self.data.crops(self.backbone.image_size, interpolation, self.flags.skip_bad)

    def note(self, **more: Any) -> None:
        """Writes `config.json` with these values changed."""
        self.record |= more
        if self.main:
            write_json(self.folder / CONFIG, self.record)
        self.accelerator.wait_for_everyone()


def open_run(
    method: ModuleType, flags: RunConfig, config: Any, *, whole: bool = True, began: float | None = None
) -> Run:
    """Checks everything that can be wrong before anything slow happens.

    Args:
        method: a module of `clipreid.methods`.
        flags, config: as `clipreid.config.configure` gives them.
        whole: False where only the first stages are to be trained.
        began: when the command did, by `time.monotonic`; None: now.

    Raises:
        UserError: data, backbone, values, or a run folder that holds something else.
    """
    clock = Clock(began)
    check_values(flags)
    check_values(config)
    set_threads(flags.threads)
    check_output(flags)
    check_push(flags, whole)
    with clock.of("data"):
        flags, read, tests = read_sets(with_data(method, flags))
    shape = median_shape(read.splits)
    flags = fit_crop(flags, shape)
    flags, backbone = open_backbone(flags)
    check_whole_patches(flags.image_size, flags.stride, backbone)
    check_parts(method, flags, config)
    fit = getattr(method, "fit", lambda config, *_: config)
    fit(config, RunData(read, read, tests, []), backbone, flags, 1)  # refuses what cannot be, before images are decoded
    flags, accelerator = open_folder(flags)
    if flags.compile:
        check_compiles(accelerator.device)
    with clock.of("data"):
        data = open_data(flags, read, tests, backbone)
    config = fit(config, data, backbone, flags, accelerator.num_processes)
    check_parts(method, flags, config, accelerator.num_processes)
    assert flags.output is not None
    log = Log(flags.output, accelerator)
    run = Run(method, flags, config, data, backbone, flags.output, accelerator, log, {}, clock=clock)
    run.record = make_record(run)
    method_settings(
        run.record["config"], method.Config, "these settings:"
    )  # what `load` would refuse of the trained run
    run.lock = lock_folder(run.folder, accelerator)
    with ExitStack() as stack:
        stack.callback(run.lock.release)
        for note in claim(run.folder, run.record, flags, data.names, getattr(method, "STAGE_FLAGS", {}), accelerator):
            log.say(note)
            log.write("resume", 0, note=note)
        prepare_push(flags, run.main)
        start_tracking(accelerator, flags, {**run.record["run"], **asdict(config)})
        _introduce(run, shape)
        stack.pop_all()  # held from here on by the run
    return run


def with_data(method: ModuleType, flags: RunConfig) -> RunConfig:
    """The flags with the data that a method wants where none are given (`DATA` and `TEST` in its file)."""
    if flags.data or not hasattr(method, "DATA"):
        return flags
    return replace(flags, data=method.DATA, test=flags.test or method.TEST)


def open_backbone(flags: RunConfig) -> tuple[RunConfig, Backbone]:
    """The backbone as the run uses it, and the flags with its crop interpolation where they leave that to it.

    Its mean, std and interpolation are from here on those of the run.
    """
    backbone = load_backbone(
        flags.backbone,
        image_size=flags.image_size,
        positions=flags.positions,
        stride=flags.stride,
        gradient_checkpointing=flags.gradient_checkpointing,
        raw_logits=flags.raw_logits,
    )
    own: Any = backbone.interpolation
    flags = replace(
        flags,
        train_interpolation=flags.train_interpolation or own,
        test_interpolation=flags.test_interpolation or own,
    )
    if flags.pixels == "half":
        backbone.mean = backbone.std = HALF
    backbone.interpolation = flags.test_interpolation or own
    return flags, backbone


def open_folder(flags: RunConfig) -> tuple[RunConfig, Accelerator]:
    """The processes, and the flags with the run folder that all of them agree on."""
    folder = choose_folder(flags.output)
    accelerator = make_accelerator(flags, folder)
    if accelerator.num_processes > 1 and flags.output is None:  # all processes take the main one's number
        folder = Path(broadcast_object_list([str(folder)])[0])
    return replace(flags, output=folder), accelerator


def open_data(flags: RunConfig, read: Any, tests: list[Any], backbone: Backbone) -> RunData:
    """The data with its usable training images; they and those of the tests are decoded once."""
    assert flags.train_interpolation is not None
    assert flags.test_interpolation is not None
    mixture, _, bad, digest = decode(read, backbone.image_size, flags.train_interpolation, flags.skip_bad)
    both = flags.train_interpolation, flags.test_interpolation
    notes = check_opened(read, tests, backbone.image_size, both, flags.skip_bad)
    return RunData(read, mixture, tests, bad, notes, digest)


def _introduce(run: Run, shape: float | None) -> None:
    """Says what is trained on, with what, and where; shape: height / width of the training images."""
    config, data, say = run.config, run.data, run.log.say
    shares = None
    if getattr(config, "identities_per_batch", None):
        shares = check_batch(data.mixture, config.identities_per_batch, config.images_per_identity, config.balance)
    say(data.mixture.summary(shares))
    for note in [*shared_people(data.mixture, data.tests), *data.notes]:
        say(f"  note: {note}")
    if data.bad:
        path, reason = data.bad[0]
        say(f"  note: {len(data.bad)} training images left out (--skip-bad), such as {path}: {reason}")
    if run.flags.preset == "paper" and run.backbone.text is not None and not run.backbone.raw_logits:
        say(
            "  note: image-text logits are cosine x the backbone's scale; the published raw dot products need weights "
            "known to be OpenAI's (a tag or Hub name; of a plain file or folder say so with --raw-logits)"
        )
    if warning := slow_half(run.flags.precision, run.device):
        run.log.warn(warning)
    if size := about_size(config):
        say(f"  note: {size}")
    height, width = run.backbone.image_size
    for note in about_crops(run.backbone, run.flags.stride, shape):
        say(f"  note: {note}")
    say(
        f"{run.flags.backbone}: crops {height}x{width}, preset {run.flags.preset}, {run.processes} process(es), "
        f"{torch.get_num_threads()} threads, {run.device}; run folder {run.folder}"
    )


def make_record(run: Run) -> dict[str, Any]:
    """`config.json`: the method and its settings, what was asked for, what it ran on, the stages finished so far."""
    flags = {name: value for name, value in asdict(run.flags).items() if name not in UNRECORDED}
    data = {
        "names": list(run.flags.data),
        "noun": run.data.mixture.noun,
        "images": len(run.data.labels),
        "identities": len(run.data.names),
    }
    record = {
        "clipreid": clipreid.__version__,
        "method": name_of(run.method),
        "config": asdict(run.config),
        "run": flags,
        "stages": [],
        "finished": False,
        "backbone": backbone_record(run.backbone, run.flags.positions),
        "data": data,
        "offsets": run.data.mixture.offsets,
        "content": content_of(run.data),
        "machine": machine_of(run.processes, run.device),
        "environment": environment_of(run.device),
    }
    if isinstance(run.backbone, ImageBackbone):
        record["pooling"] = run.backbone.image.pooling
    record |= origin(run.flags, run.data.mixture.sets, run.data.tests)
    return json.loads(json.dumps(record, default=str))


def refuse_text_free(backbone: Backbone) -> None:
    """Refuses to learn prompts for a backbone without text, with `UserError`."""
    if backbone.text is None:
        raise UserError(
            f"--backbone {backbone.name} has no text tower to learn prompts with: train it with --prompts none "
            "(recipes/clipreid_stage2.py), or take a backbone with text (tiny-clip, open_clip:..., hf:...)"
        )
