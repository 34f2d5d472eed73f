"""Stage 1 of CLIP-ReID: learn a few prompt tokens for every identity, both encoders frozen.

    accelerate launch recipes/clipreid_stage1.py
    accelerate launch recipes/clipreid_stage1.py --data market1501:/data/Market-1501 \\
        --backbone open_clip:ViT-B-16-quickgelu/openai --output runs/market

What comes out: `identities.safetensors` in the run folder, with the prompts [I, M, W] and the text bank [I, E].
`clipreid_stage2.py` with the same --output continues from there; it also runs this stage itself when there is none.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import tyro

from clipreid.training.config import PromptConfig, RunConfig
from clipreid.training.harness import launch
from clipreid.training.run import open_run, text_bank


@dataclass(frozen=True)
class Stage1:
    run: RunConfig = field(default_factory=RunConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)


def main(config: Stage1) -> None:
    run = open_run(config.run, config.prompt)
    text_bank(run, config.prompt)
    run.log.say(f"\nrun folder: {run.folder}\nnext, with the same --seed, --preset, ... where you gave any:")
    data = [word for spec in run.config.data for word in ("--data", spec)]
    words = ["--backbone", config.run.backbone, *data, "--output", str(run.folder)]
    run.log.say(f"  accelerate launch recipes/clipreid_stage2.py {shlex.join(words)}")
    run.accelerator.end_training()


if __name__ == "__main__":
    launch(main, tyro.cli(Stage1, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
