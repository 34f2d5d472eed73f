"""Captions for images that have none: attributes by zero-shot classification with the text tower, in sentences.

N images, V values of an attribute, E embedding.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from clipreid.data import ReIDData, Split, pixel_cache
from clipreid.data.attributes import COLUMN, several
from clipreid.data.crops import Attributes
from clipreid.data.split import image_files
from clipreid.errors import UserError
from clipreid.evaluation.extract import extract
from clipreid.explore.attribute_prompts import PromptTable
from clipreid.model import ReIDModel

TABLE, CONFIDENCE, PROMPTS = "captions.csv", "confidence.csv", "prompts.csv"


@dataclass(frozen=True)
class Guess:
    """One attribute of N images: the most likely value of each, and its probability [N] among the table's values."""

    values: list[str]
    confidence: Tensor


def image_features(model: ReIDModel, split: Split, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Features [N, E] in the text space, of unit length.

    Raises:
        UserError: a model without a text tower or without such a feature; images that cannot be decoded.
    """
    cache = pixel_cache(split, model.image_size, interpolation=model.interpolation)
    found = extract(model.embed_parts, cache.pixels, device=model.device, progress=progress)
    if not isinstance(found, dict) or "projection" not in found:
        raise UserError("this model has no feature in the space of texts: captions need a backbone with text")
    return found["projection"].cpu()


@torch.no_grad()
def guess_attributes(model: ReIDModel, features: Tensor, table: PromptTable, noun: str) -> dict[str, Guess]:
    """Zero-shot classification of features [N, E] by each attribute of the table.

    As for CLIP (arXiv 2103.00020, section 3.1): softmax over the values of cosines times the backbone's own
    temperature; the text feature of a value is the mean of its sentences' (each of unit length).

    Raises:
        UserError: a model without a text tower.
    """
    (backbone,) = model.source
    found = {}
    for name, values in table.values.items():
        texts = []
        for value in values:
            sentences = model.embed_text(table.prompts(name, value, noun))  # [n, E]
            texts.append(F.normalize(sentences.mean(0), dim=0))
        share = (backbone.logit_scale * features @ torch.stack(texts).T).softmax(1)  # [N, V]
        best = share.max(1)
        found[name] = Guess([values[nth] for nth in best.indices.tolist()], best.values)
    return found


def confident(guesses: Mapping[str, Guess], table: PromptTable, least: float) -> list[Attributes]:
    """What is said of each image [N]: values with at least this probability; nothing about what is not there."""
    count = len(next(iter(guesses.values())).values)
    rows = [
        {name: guess.values[row] for name, guess in guesses.items() if float(guess.confidence[row]) >= least}
        for row in range(count)
    ]
    return [table.settled(known) for known in rows]


# Against the truth -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accuracy:
    """How often an attribute is right where the truth is known, over `images`, 0..1.

    uniform: chance, one value of V. majority: always the most frequent true value. said: share with enough confidence;
    said_right: how often these are right (None: nothing is said).
    """

    images: int
    right: float
    uniform: float
    majority: float
    said: float
    said_right: float | None


def accuracies(
    guesses: Mapping[str, Guess], truth: Sequence[Attributes], table: PromptTable, least: float
) -> dict[str, Accuracy]:
    """For every attribute of the table that the images have under the same name, with values of the table."""
    found = {}
    for name, guess in guesses.items():
        known = {
            row: {*several(each[name])}
            for row, each in enumerate(truth)
            if name in each and {*several(each[name])} <= {*table.values[name]}
        }
        if not known:
            continue
        right = {row: guess.values[row] in values for row, values in known.items()}
        said = [row for row in known if float(guess.confidence[row]) >= least]
        most = Counter(value for values in known.values() for value in values).most_common(1)[0][1]
        found[name] = Accuracy(
            images=len(known),
            right=sum(right.values()) / len(known),
            uniform=1 / len(table.values[name]),
            majority=most / len(known),
            said=len(said) / len(known),
            said_right=sum(right[row] for row in said) / len(said) if said else None,
        )
    return found


# Files ----------------------------------------------------------------------------------------------------------------


def joined(data: ReIDData, names: Sequence[str] = ()) -> Split:
    """The images of these splits (all of them, by default), one after the other; their table says which is which."""
    if lacking := [name for name in names if name not in data.splits]:
        raise UserError(f"--splits {lacking[0]}: {data.name} has {', '.join(data.splits)}")
    asked = {"query", "gallery"} & {*names}
    if len(asked) == 1 and {"query", "gallery"} <= data.splits.keys():
        raise UserError(f"--splits {asked.pop()}: a table has query and gallery, or neither: name both of them")
    tables = [data.splits[name].table for name in names or data.splits]
    return Split("all", datasets.concatenate_datasets(tables))


def write_captions(
    images: Split, captions: Sequence[str], known: Sequence[Attributes], guesses: Mapping[str, Guess], output: Path
) -> dict[str, str]:
    """The texts of captions.csv (what `csv:` reads: image, identity, camera, ..., caption, attribute.NAME) and
    confidence.csv (image, split, and the probability of each attribute's value), by file name.

    Images that lie inside of the data are written below OUTPUT/images.

    Raises:
        UserError: the folder cannot be written.
    """
    files = [os.path.relpath(file, output.absolute()) for file in image_files(images, output)]
    table = images.table.remove_columns(["image", "caption", "attributes"])[:]
    names = list(guesses)
    columns = {column: ["" if v in (None, -1) else str(v) for v in values] for column, values in table.items()}
    columns = {k: values for k, values in columns.items() if any(values) or k in ("identity", "split")}
    said = {f"{COLUMN}{name}": [each.get(name, "") for each in known] for name in names}
    sure = {name: [f"{float(x):.4f}" for x in guess.confidence] for name, guess in guesses.items()}
    return {
        TABLE: _text({"image": files, **columns, "caption": list(captions), **said}),
        CONFIDENCE: _text({"image": files, "split": columns["split"], **sure}),
    }


def _text(columns: Mapping[str, Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    return text.getvalue()
