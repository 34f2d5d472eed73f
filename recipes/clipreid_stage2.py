"""CLIP-ReID in two stages: learn a prompt per identity, then adapt the image tower towards the learned texts.

    accelerate launch recipes/clipreid_stage2.py                      # the embedded default, offline, minutes
    accelerate launch recipes/clipreid_stage2.py --data folder:/my/crops --output runs/mine
    accelerate launch recipes/clipreid_stage2.py --data market1501:/data/Market-1501 \\
        --backbone open_clip:ViT-B-16-quickgelu/openai --output runs/market
    accelerate launch recipes/clipreid_stage2.py --data market1501:/data/Market-1501 --data msmt17:/data/MSMT17 \\
        --test ltcc:/data/LTCC_ReID                                   # on two data sets, tested on these and a third
    accelerate launch recipes/clipreid_stage2.py --prompts none       # the control: the same recipe without text
    accelerate launch recipes/clipreid_stage2.py --preset paper       # the published settings

Stage 1 runs first unless the run folder holds it already. What comes out: a run folder with `adapter/` (plain peft),
`heads.safetensors`, `metrics.json`, `log.jsonl`; load it with `clipreid.load(folder)`.

Shapes: P identities x K pictures make a batch of G pictures; E embedding, I identities; the losses are in
`clipreid/losses.py`, the loops in `clipreid/training/`.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import cast

import tyro

from clipreid.evaluation import get_protocol
from clipreid.hub import IDENTITIES, load_identities, model_record, save_identities, save_model
from clipreid.model import ModelConfig, ReIDModel, Tuning
from clipreid.side import known_numbers
from clipreid.training.config import PromptConfig, RunConfig, TuneConfig
from clipreid.training.folder import evaluate_command, results_table
from clipreid.training.harness import launch, seed_weights
from clipreid.training.push import push
from clipreid.training.run import Run, measure, open_run, text_bank
from clipreid.training.sets import VAL
from clipreid.training.stage1 import text_scale
from clipreid.training.stage2 import lora_drift, tune


@dataclass(frozen=True)
class Stage2:
    run: RunConfig = field(default_factory=RunConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


def build_model(run: Run, flags: TuneConfig) -> ReIDModel:
    """The image tower with what `--tuning` trains; its heads start the same for the same seed."""
    values, (cameras, views) = run.values, known_numbers(flags.sie, *run.sides)
    settings = ModelConfig(cast(Tuning, values.tuning), flags.aggregation, flags.lora_rank, flags.lora_alpha,
                           run.mean, run.std, values.test_interpolation, flags.sie, flags.sie_coefficient,
                           cameras, views)  # fmt: skip
    seed_weights(run.config.seed)
    return ReIDModel(run.backbone, settings, len(run.names)).to(run.accelerator.device)


def main(config: Stage2) -> None:
    run = open_run(config.run, config.prompt, config.tune)
    bank = text_bank(run, config.prompt) if config.tune.prompts == "identity" else None  # [I, E]
    model = build_model(run, config.tune)
    measure(run, model, "zero-shot")  # nothing has been trained: LoRA starts at zero, a map at the identity

    run.note("tuning")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.log.say(f"stage 2  {run.values.tuning}: {trained:,} trained parameters")
    tune(
        run.accelerator, run.log, model, run.crops(run.values.train_interpolation), run.labels, bank,
        text_scale(run.backbone), run.values, seed=run.config.seed, folder=run.folder,
        sides=run.sides if model.side is not None else (), groups=run.groups, balance=config.tune.balance,
        resume=run.config.resume,
        checkpoint_every=config.tune.checkpoint_every,
    )  # fmt: skip
    report_drift(run, model)
    if run.accelerator.is_main_process:
        save_model(model, run.folder)
        save_all_identities(run, model)
    measure(run, model, "stage2")
    run.note("finished", model=model_record(model.config))
    run.log.say(f"\n{results_table(run.folder)}\n\nrun folder: {run.folder}\nnext:")
    for line in next_commands(run):
        run.log.say(f"  {line}")
    run.accelerator.end_training()
    if run.config.push and run.accelerator.is_main_process:
        run.log.say(f"\n{push(run.folder, run.config)}")


def save_all_identities(run: Run, model: ReIDModel) -> None:
    """What belongs to single identities: prompts and text bank of stage 1, classifiers of stage 2."""
    tensors = load_identities(run.folder)[0] if (run.folder / IDENTITIES).is_file() else {}
    tensors |= {n: t for n, t in model.state_dict().items() if "classifier" in n}
    save_identities(run.folder, tensors, run.names)


def report_drift(run: Run, model: ReIDModel) -> None:
    """Logs |dW|/|W| of every adapted Linear, and warns when the adapter hardly moved."""
    drift = lora_drift(model)
    if not drift:
        return
    run.log.write("drift", run.values.epochs, **drift)
    run.log.say(f"adapter moved |dW|/|W| by {min(drift.values()):.1%} to {max(drift.values()):.1%} of the weights")
    if max(drift.values()) < 1e-3:
        run.log.say("warning: the adapter hardly moved; raise --rate or --epochs")


def next_commands(run: Run) -> list[str]:
    """What to type once the run is finished: to score it again, where it has a test, and to embed with it."""
    lines = []
    tests = [data for data in (*run.tests, *run.read.sets) if {"query", "gallery"} <= data.splits.keys()]
    for data in [data for data in tests if not data.name.endswith(VAL)][:1]:
        drawn = not get_protocol(data.protocol).captions  # ranked lists show what pictures found
        report = ["--report", str(run.folder / "report")] if drawn else []
        lines.append(evaluate_command(run.folder, [data.name], *report, *["--skip-bad"] * run.config.skip_bad))
    code = f'import clipreid; print(clipreid.load({json.dumps(str(run.folder))}).embed(["a.jpg"]))'
    return [*lines, shlex.join(["python", "-c", code])]


if __name__ == "__main__":
    launch(main, tyro.cli(Stage2, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
