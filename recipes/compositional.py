"""What a model understands of a sentence beyond its single words: negation, which colour is where, left and right.

    python recipes/compositional.py                                            # tiny-clip, before any training
    python recipes/compositional.py --run tiny-clip runs/demo                  # runs, or backbones by name

For each image of the synthetic street there are a true sentence and a false one with a minimal change, made of what is
known to be on the image, as ARO (arXiv 2210.01936) and SugarCrepe (arXiv 2306.14610) do for photographs. A choice is
right where the image is more like the true sentence; by chance half of them are. Each answer ("with", "without") counts
alike, however often it is the true one, so that a model which always prefers the same one has 50 %, too. The 95 %
intervals are those of other people on the street (bootstrap over identities). Controls, marked with *, can be answered
from single words: they tell whether what the sentences are about is seen at all. Left and right are asked of each image
and of its mirror image, so that nothing else on it can tell.

Sentences are as `clipreid search --text` compares them: with the text tower that the run trained, where it did.

Reference results: docs/searching.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

import clipreid
from clipreid.config import none_is
from clipreid.data import load_data, pixel_cache
from clipreid.data.synthetic import SETS
from clipreid.data.synthetic.compositional import CONTROLS, KINDS, MIRRORED, Choice, choices_of
from clipreid.data.synthetic.street import people_seen
from clipreid.errors import UserError, print_user_errors
from clipreid.evaluation import extract, format_table
from clipreid.evaluation.compositional import accuracy_rows, right_choices
from clipreid.flags import parse_flags
from clipreid.model import ReIDModel
from clipreid.training.harness import set_threads


@dataclass(frozen=True)
class Compositional:
    run: Annotated[tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], none_is("tiny-clip")] = ()
    """Run folders, names on the Hub, or backbones by name, one or more"""
    data: str = "synthetic:captions"
    """A set of the synthetic street: synthetic | synthetic:captions | synthetic:new-cameras | synthetic:large | ..."""
    split: str = "gallery"
    """Which part of it"""
    seed: int = 0
    """Of what is put into false sentences, and of the intervals"""
    threads: Annotated[int | None, none_is("all cores")] = None
    """CPU threads"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


def asked_of(config: Compositional) -> list[Choice]:
    """The choices of all images, and of their mirror images (in the rows behind them) those of left and right."""
    seen = people_seen(config.data, config.split)
    choices = choices_of([*seen, *((person, -angle) for person, angle in seen)], config.seed)
    return [choice for choice in choices if choice.row < len(seen) or choice.kind == MIRRORED]


def rows_of(model: ReIDModel, config: Compositional) -> list[dict[str, Any]]:
    """A row for each kind of choice."""
    split, choices = load_data(config.data).splits[config.split], asked_of(config)
    sentences = list(dict.fromkeys(text for choice in choices for text in (choice.true, choice.false)))
    place = {text: nth for nth, text in enumerate(sentences)}
    texts = model.embed_text(sentences)  # first: a backbone without text is refused before anything slow
    pixels = pixel_cache(split, model.image_size, interpolation=model.interpolation).pixels  # uint8 [N, 3, H, W]

    def embed(crops: Tensor) -> dict[str, Tensor]:  # [B, 3, H, W] to [B, E] each
        both = {"seen": crops, "mirrored": crops.flip(3)}
        return {side: model.embed_parts(each)["projection"] for side, each in both.items()}

    found: Any = extract(embed, pixels, device=model.device)
    images = torch.cat([found["seen"], found["mirrored"]]).cpu()  # [2 N, E]
    rows = torch.tensor([choice.row for choice in choices])
    true, false = (texts[[place[getattr(choice, side)] for choice in choices]] for side in ("true", "false"))
    right = right_choices(images[rows], true, false)
    kinds, answers = [choice.kind for choice in choices], [choice.answer for choice in choices]
    return accuracy_rows(right, kinds, answers, split.identities[rows.numpy() % len(split)], seed=config.seed)


def main(config: Compositional) -> None:
    if config.data not in SETS or config.split not in SETS[config.data].parts:
        known = ", ".join(f"{name} ({', '.join(named.parts)})" for name, named in SETS.items())
        raise UserError(
            f"--data {config.data} --split {config.split}: true sentences are known of the synthetic street alone, of "
            f"{known}"
        )
    set_threads(config.threads)
    for run in [name for given in config.run for name in given] or ["tiny-clip"]:
        table = rows_of(clipreid.load(run).to(config.device), config)
        for row in table:
            kind = row["kind"]
            row |= {"kind": f"{kind} *" if kind in CONTROLS else kind, "what is changed": KINDS[kind]}
        print(f"{run} on {config.data} ({config.split}), chance 50%\n\n{format_table(table)}\n", flush=True)


if __name__ == "__main__":
    with print_user_errors():
        main(parse_flags(Compositional, sys.argv[1:], description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
