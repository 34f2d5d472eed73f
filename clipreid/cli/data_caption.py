"""`clipreid data caption`: the flags and what is printed; the work is in `clipreid.explore.captioning`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from clipreid.cli.scoring import Asked, check_numbers
from clipreid.errors import UserError

if TYPE_CHECKING:
    from clipreid.data.crops import Attributes
    from clipreid.explore.captioning import Accuracy


@dataclass(frozen=True)
class Caption:
    """Write captions for images that have none: attributes, guessed by the text tower, in sentences.

    Each attribute is chosen by zero-shot classification among the values of a table of prompts. What comes out is a
    table that every command reads as csv:DIR/captions.csv, confidence.csv with the probability of each value, and
    prompts.csv, the table of prompts: edit it, and give it with --prompts. Captions that the data has are replaced.
    Where the data know their true attributes (by the same names), it says how often each is right.
    """

    data: Annotated[Positional[str], arg(metavar="NAME[:ROOT]")]
    """market1501:ROOT, folder:ROOT, csv:FILE.csv, hub:OWNER/NAME, hub:FOLDER, synthetic, ..."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to make; read it with --data csv:DIR/captions.csv"""
    model: Annotated[str, arg(metavar="RUN")] = "tiny-clip"
    """A backbone with text (tiny-clip, hf:..., open_clip:...), or a run, whose tower and texts guess"""
    prompts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Table of prompts, CSV or JSON: attribute, value, prompt, words (default: our own, for people and vehicles)"""
    least_confidence: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Values that are less likely are not said, and count as unknown, 0..1"""
    splits: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="SPLIT", help_behavior_hint="(default: all)")] = ()
    """train, val, query, gallery; repeatable. The others are left out"""
    noun: Annotated[str | None, arg(metavar="WORD", help_behavior_hint="")] = None
    """What the individuals are (default: from the data)"""
    pattern: Annotated[str | None, arg(metavar="REGEX", help_behavior_hint="")] = None
    """For file names of folder data: groups identity, camera, view"""
    columns: Annotated[str | None, arg(metavar="FIELD=COLUMN,...", help_behavior_hint="")] = None
    """For csv:, hub: and coco: data whose columns have other names, such as identity=name,camera=place"""
    unknown: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="VALUE", help_behavior_hint="")] = ()
    """For folder:, tables and yolo: a further identity that means "unknown"; repeatable, or several with commas"""
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """CPU threads (default: all cores)"""

    def __call__(self) -> None:
        caption(self)


def caption(flags: Caption) -> None:
    """`clipreid data caption`.

    Raises:
        UserError: data, prompts, a model or a folder that cannot be used.
    """
    from clipreid.data import load_data
    from clipreid.disk import check_place, write_whole
    from clipreid.explore.attribute_prompts import prompts_for, read_prompts
    from clipreid.explore.captioning import (
        PROMPTS,
        TABLE,
        accuracies,
        confident,
        guess_attributes,
        image_features,
        joined,
        write_captions,
    )
    from clipreid.training.harness import set_threads

    check_numbers(flags, least_confidence=(0, 1))
    check_place("--output", flags.output)
    if flags.output.is_dir() and any(flags.output.iterdir()):
        raise UserError(f"--output {flags.output} is there already and not empty: name a new folder")
    set_threads(flags.threads)
    how = {"pattern": flags.pattern, "columns": flags.columns, "noun": flags.noun, "unknown": flags.unknown}
    data = load_data(flags.data, **how)  # type: ignore[arg-type]
    print(f"{data.summary()}\n", flush=True)
    table = prompts_for(data.noun) if flags.prompts is None else read_prompts(flags.prompts)
    images = joined(data, flags.splits)
    model = Asked.find(flags.model).load()
    features = image_features(model, images, _progress if sys.stderr.isatty() else None)
    guesses = guess_attributes(model, features, table, data.noun)
    known = confident(guesses, table, flags.least_confidence)
    captions = [table.caption(each, data.noun) for each in known]
    found = accuracies(guesses, images.attributes, table, flags.least_confidence)
    files = write_captions(images, captions, known, guesses, flags.output)
    for name, text in {**files, PROMPTS: table.to_csv()}.items():
        write_whole(flags.output / name, text)
    print(_said(captions, known, list(table.values)))
    if found:
        print(f"\n{_against_truth(found)}\n")
    else:
        print("note      the data know no attribute of the table, so nobody knows how often these are right")
    protocol = load_data(f"csv:{flags.output / TABLE}", noun=data.noun).protocol
    more = "" if protocol == data.protocol else f" --protocol {data.protocol}"
    print(f"written   {flags.output}; read it with --data csv:{flags.output / TABLE}{more}")


def _said(captions: Sequence[str], known: Sequence[Attributes], names: Sequence[str]) -> str:
    """How much is said, and an example."""
    silent, example = sum(not each for each in captions), next((each for each in captions if each), "")
    unknown = ", ".join(f"{name} {sum(name not in each for each in known):,d}" for name in names)
    lines = [f"captions  {len(captions):,d} images, {silent:,d} of them without a caption: nothing was likely enough"]
    lines += [f"unknown   {unknown}"] + [f"such as   {example}"] * bool(example)
    return "\n".join(lines)


def _against_truth(found: dict[str, Accuracy]) -> str:
    """A line for each attribute whose truth is known."""
    from clipreid.evaluation import format_table

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}%"

    rows: list[dict[str, object]] = [
        {
            "attribute": name,
            "images": each.images,
            "right": share(each.right),
            "chance": share(each.uniform),
            "most frequent": share(each.majority),
            "said": share(each.said),
            "right of these": share(each.said_right),
        }
        for name, each in found.items()
    ]
    return format_table(rows)


def _progress(done: int, total: int) -> None:
    end = "\r" if done < total else "\r\033[K"  # the finished line is wiped
    print(f"  {done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)
