"""Tables of prompts: the sentences that stand for the values of attributes, and how values become a caption.

A table has four columns. `attribute` and `value`. `prompt`: a sentence that is true of an image with that value, with
{noun} for what the individual is; several rows of a value are several sentences, whose text features are averaged
(CLIP, arXiv 2103.00020, section 3.1.4). `words`: what a caption says of the value ("": nothing), once for each value;
{NAME} in it is replaced by the words of another attribute, which then is not said by itself and is unknown where those
words are not used (the colour of no hat). A row with an empty value says what stands in the caption when the attribute
is unknown.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipreid.data.tables import csv_table
from clipreid.disk import parse_json
from clipreid.errors import UserError

COLUMNS = ("attribute", "value", "prompt", "words")
PLACE = re.compile(r"\{(\w+)\}")
COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
PEOPLE_NOUNS = ("person", "pedestrian", "man", "woman", "people")
VEHICLE_NOUNS = ("vehicle", "car", "truck", "bus", "motorcycle")


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    attribute: str
    value: str
    prompt: str
    words: str


@dataclass(frozen=True)
class PromptTable:
    """The rows of a table, checked. Raises `UserError` for what cannot be asked or said."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if len(values) < 2:
                raise UserError(f"prompts: {name} has one value ({', '.join(values)}), and two are needed to choose")
        for row in self.rows:
            for word in PLACE.findall(row.words):
                if word not in self.values:
                    known = ", ".join(self.values)
                    raise UserError(f"prompts: {{{word}}} in the words of {row.attribute} is no attribute of {known}")
                if any(PLACE.search(other.words) for other in self.rows if other.attribute == word):
                    raise UserError(f"prompts: the words of {word} stand in those of {row.attribute}: no {{}} in them")
            if row.value and not row.prompt:
                raise UserError(f"prompts: {row.attribute}={row.value} has an empty prompt")

    @property
    def values(self) -> dict[str, list[str]]:
        """Attribute -> its values, in the order of the table."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.value:
                found.setdefault(row.attribute, [])
                found[row.attribute] += [row.value] * (row.value not in found[row.attribute])
        return found

    def prompts(self, attribute: str, value: str, noun: str) -> list[str]:
        """The sentences of a value."""
        mine = [row.prompt for row in self.rows if (row.attribute, row.value) == (attribute, value)]
        return [prompt.replace("{noun}", noun) for prompt in mine]

    def words(self, attribute: str, value: str) -> str:
        """What a caption says of a value, with places for other attributes; of several rows the first."""
        found = (row.words for row in self.rows if (row.attribute, row.value) == (attribute, value))
        return next(found, "")

    def settled(self, known: Mapping[str, str]) -> dict[str, str]:
        """What is known, without what the words of another attribute say that there is not (the colour of no hat)."""
        found = dict(known)
        for inner, hosts in self._hosts().items():
            if not any(inner in PLACE.findall(self.words(host, known.get(host, ""))) for host in hosts):
                found.pop(inner, None)
        return found

    def caption(self, known: Mapping[str, str], noun: str) -> str:
        """A sentence with what is known, "a photo of a NOUN with ..."; "" where nothing is."""
        known, hosted, parts = self.settled(known), self._hosts(), []
        for name in (name for name in self.values if name not in hosted):
            words = self.words(name, known.get(name, ""))
            inner = {place: self.words(place, known[place]) for place in PLACE.findall(words) if place in known}
            if name in known or any(inner.values()):
                text = PLACE.sub(lambda match, inner=inner: inner.get(match[1], ""), words)  # type: ignore[misc]
                parts.append(re.sub(r"\ba (?=[aeiou])", "an ", " ".join(text.split())))
        parts = [part for part in parts if part]
        if not parts:
            return ""
        listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
        return f"a photo of {'an' if noun[:1] in 'aeiou' else 'a'} {noun} with {listed}"

    def _hosts(self) -> dict[str, set[str]]:
        """Attribute -> those in whose words it stands."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            for place in PLACE.findall(row.words):
                found.setdefault(place, set()).add(row.attribute)
        return found

    def to_csv(self) -> str:
        """The table as a file that `read_prompts` reads."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *((row.attribute, row.value, row.prompt, row.words) for row in self.rows)])
        return text.getvalue()


def read_prompts(file: Path) -> PromptTable:
    """A table from CSV, or from JSON (a list of objects with the same names).

    Raises:
        UserError: no such file, columns that are missing, or what `PromptTable` refuses.
    """
    if file.suffix.lower() == ".json":
        try:
            found = parse_json(file.read_text(encoding="utf-8"))
            if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
                raise ValueError("it is no list of objects")
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read as a table of prompts ({error})") from error
        lines: Sequence[Mapping[str, Any]] = found
    else:
        lines = [line.cells for line in csv_table(file).lines]
    rows = []
    for nth, line in enumerate(lines, start=1):
        if lacking := [column for column in COLUMNS if column not in line]:
            raise UserError(f"{file}, row {nth} has no {lacking[0]}: the columns are {', '.join(COLUMNS)}")
        rows.append(Row(*(str(line[column] or "").strip() for column in COLUMNS)))
    return PromptTable(tuple(rows))


def prompts_for(noun: str) -> PromptTable:
    """Our own table for people or vehicles. Raises `UserError` for what is neither."""
    if noun in PEOPLE_NOUNS:
        return people()
    if noun in VEHICLE_NOUNS:
        return vehicles()
    raise UserError(
        f"there is no table of prompts for {noun!r}: write one and name it with --prompts FILE.csv (columns "
        f"{', '.join(COLUMNS)}; what is written beside the captions shows one), or say --noun person or vehicle"
    )


def people() -> PromptTable:
    """Clothes, colours, hair, hats and bags: the attributes of the synthetic street, by its names."""
    tops = ("t-shirt", "sweater", "hoodie", "jacket", "coat")
    bottoms, hats = ("trousers", "shorts", "skirt"), ("cap", "beanie", "brimmed hat")
    bags, patterns = ("backpack", "handbag", "shoulder bag"), ("striped", "checked", "spotted")
    hairs = ("black", "brown", "blond", "red", "grey")
    photo, rows = "a photo of a {noun}", list[Row]()

    def add(attribute: str, value: str, words: str, *prompts: str) -> None:
        rows.extend(Row(attribute, value, f"{photo} {prompt}" if prompt else "", words) for prompt in prompts)

    for top in tops:
        add("top", top, f"a {{top_colour}} {{pattern}} {top}", f"wearing a {top}")
    add("top", "", "{top_colour} {pattern} clothes above the waist", "")
    for colour in COLOURS:
        add("top_colour", colour, colour, *(f"wearing a {colour} {top}" for top in tops))
    add("pattern", "plain", "", *(f"wearing a plain {top}" for top in tops))
    for pattern in patterns:
        add("pattern", pattern, pattern, *(f"wearing a {pattern} {top}" for top in tops))
    for bottom in bottoms:
        article = "a " if bottom == "skirt" else ""
        add("bottom", bottom, f"{article}{{bottom_colour}} {bottom}", f"wearing {article}{bottom}")
    add("bottom", "", "{bottom_colour} clothes below the waist", "")
    for colour in COLOURS:
        add("bottom_colour", colour, colour, f"wearing {colour} trousers", f"wearing {colour} shorts",
            f"wearing a {colour} skirt")  # fmt: skip
    for colour in COLOURS:
        add("shoes_colour", colour, f"{colour} shoes", f"wearing {colour} shoes")
    for hair in ("short", "long"):
        add("hair", hair, f"{hair} {{hair_colour}} hair", *(f"with {hair} {colour} hair" for colour in hairs))
    add("hair", "ponytail", "a {hair_colour} ponytail", *(f"with a {colour} ponytail" for colour in hairs))
    add("hair", "bald", "a bald head", "with a bald head")
    add("hair", "", "{hair_colour} hair", "")
    for colour in hairs:
        add("hair_colour", colour, colour, *(f"with {hair}" for hair in (
            f"short {colour} hair", f"long {colour} hair", f"a {colour} ponytail")))  # fmt: skip
    add("hat", "none", "", "without a hat")
    for hat in hats:
        add("hat", hat, f"a {{hat_colour}} {hat}", f"wearing a {hat}")
    for colour in COLOURS:
        add("hat_colour", colour, colour, *(f"wearing a {colour} {hat}" for hat in hats))
    add("bag", "none", "", "without a bag")
    for bag in bags:
        add("bag", bag, f"a {{bag_colour}} {bag}", f"carrying a {bag}")
    for colour in COLOURS:
        add("bag_colour", colour, colour, *(f"carrying a {colour} {bag}" for bag in bags))
    return PromptTable(tuple(rows))


def vehicles() -> PromptTable:
    """Colour and type of a vehicle."""
    kinds = ("car", "suv", "van", "pickup truck", "truck", "bus", "motorcycle", "bicycle")
    colours = (*COLOURS, "silver")
    rows = [Row("type", kind, f"a photo of a {kind}", f"the shape of a {kind}") for kind in kinds]
    rows += [Row("colour", colour, f"a photo of a {colour} {kind}", f"a {colour} body") for colour in colours
             for kind in ("{noun}", "car", "van", "truck", "motorcycle")]  # fmt: skip
    return PromptTable(tuple(rows))
