"""The images of the report's page: ranked lists, where the model looked, identities that are confused."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from PIL import Image

from clipreid.evaluation.tables import similarity_digits
from clipreid.names import shortened
from clipreid.reports.examples import Confused, ExampleQuery, Examples, Kind, Result, facts_of
from clipreid.reports.thumbnails import overlay_attention, shown_size, thumbnail

MARKS: dict[Kind, str] = {"right": "✓", "wrong": "✗", "junk": "∅"}
SAID: dict[Kind, str] = {"right": "same identity", "wrong": "another identity", "junk": "junk, does not count"}
LONGEST = 48  # characters of a name in a caption
LOOKED = (
    "<b>Where the model looked:</b> beside each query, attention rollout over all blocks (Abnar and Zuidema, 2020), up "
    "to the token that becomes the feature. Brightness is scaled for each image. It shows where information came "
    "from, not why two images were judged to be similar."
)
NOT_LOOKED = "Where the model looked is not shown: a wrapped image tower does not give its attention."


def queries_of(examples: Examples, number: str) -> str:
    """Both groups of queries, with links to each."""
    legend = " ".join(f'<span class="{kind}"><b class="mark">{MARKS[kind]}</b> {SAID[kind]}</span>' for kind in MARKS)
    parts = []
    tables = dict(examples.query.metadata()), dict(examples.gallery.metadata())
    steps = [f"query-{number}-{query.row}" for query in examples.all]
    for part, title, about, queries in (
        ("drawn", "Queries drawn at random", "A fair sample of what the figures stand for.", examples.drawn),
        (
            "hardest",
            "Hardest queries",
            "Those with the lowest average precision (AP) of the others.",
            examples.hardest,
        ),
    ):
        chips = "".join(
            f'<li><a href="#query-{number}-{q.row}">{_title(tables[0], q)} · {_ap(q)}</a></li>' for q in queries
        )
        articles = "".join(_article(examples, tables, query, number, steps) for query in queries)
        none = '<p class="soft">There are no others.</p>' if not queries else ""
        head = f'<h3>{title}</h3><p class="soft">{about}</p><p class="soft legend">{legend}</p>{none}'
        links = f'<ul class="chips" aria-label="{title}">{chips}</ul>'
        parts.append(f'<section id="{part}-{number}">{head}{links}{articles}</section>')
    if examples.all:
        parts.insert(0, f'<p class="soft">{LOOKED if examples.has_attention else NOT_LOOKED}</p>')
    return "".join(parts)


def _title(table: Mapping[str, Any], query: ExampleQuery) -> str:
    return escape(facts_of(table, query.row)["identity"])


def _ap(query: ExampleQuery) -> str:
    return f"AP {100 * query.ap:.0f}%"


def _article(
    examples: Examples,
    tables: tuple[dict[str, Any], dict[str, Any]],
    query: ExampleQuery,
    number: str,
    steps: list[str],
) -> str:
    """One query: its crop, where the model looked, and what was found."""
    image, name = examples.query.image(query.row), f"query-{number}-{query.row}"
    facts = facts_of(tables[0], query.row)
    crops = [crop_cell(image, f"query: {_facts(facts)}", "query", "")]
    if query.look is not None:
        glow = overlay_attention(image, query.look)
        crops.append(crop_cell(glow, "where the model looked at this query", "looked at", ""))
    digits = similarity_digits(result.similarity for result in query.results)
    results = "".join(_result(examples, tables[1], result, digits) for result in query.results)
    if query.hidden:
        results += f'<li class="junk"><span class="tag">and {query.hidden} more<br>junk images</span></li>'
    at = steps.index(name)
    around = [(steps[at - 1], "previous")] * (at > 0) + [(s, "next") for s in steps[at + 1 : at + 2]]
    step = " · ".join(f'<a href="#{target}">{word}</a>' for target, word in around)
    first = f"first match at rank {query.first_rank:.4g}"
    good = "good" if query.first_rank == 1 else "bad"
    return f"""<article id="{name}" aria-label="query {_facts(facts)}" tabindex="-1">
<div class="head"><h4>{_title(tables[0], query)}</h4><span class="soft">{_facts(facts, "identity")}</span>
<span>{_ap(query)}</span><span class="{good}">{first}</span><span class="step">{step}</span></div>
<div class="list"><div class="asked">{"".join(crops)}</div>
<ol tabindex="0" aria-label="results for {_facts(facts)}">{results}</ol></div></article>"""


def _result(examples: Examples, table: Mapping[str, Any], result: Result, digits: int) -> str:
    facts = facts_of(table, result.row)
    mark = f'<b class="mark">{MARKS[result.kind]}</b> {"junk" if result.rank is None else result.rank}'
    place = "junk" if result.rank is None else f"rank {result.rank}"
    said = f"{place}, {SAID[result.kind]}: {_facts(facts)}"
    more = _facts(facts, "identity").split(", ")
    under = "<br>".join([name_cell(facts["identity"]), *filter(None, more), f"{result.similarity:.{digits}f}"])
    crop = crop_cell(examples.gallery.image(result.row), said, mark, under)
    return f'<li class="{result.kind}">{crop}</li>'


def crop_cell(image: Image.Image, said: str, above: str, under: str) -> str:
    """One image in its own shape, with what stands above and under it; all texts are HTML."""
    below = f'<span class="tag under">{under}</span>' if under else ""
    width, height = shown_size(image)
    shown = f'<img src="{thumbnail(image)}" alt="{said}" width="{width}" height="{height}" decoding="async">'
    return f'<div><span class="tag">{above}</span><div class="crop">{shown}</div>{below}</div>'


def name_cell(name: str) -> str:
    """The name of an individual in a caption, whole when the mouse rests on it; HTML."""
    short = shortened(name, LONGEST)
    return f'<span title="{escape(name)}">{escape(short)}</span>' if short != name else escape(name)


def _facts(facts: Mapping[str, str], *without: str) -> str:
    """identity 7, camera 2: escaped."""
    return ", ".join(f"{name} {escape(value)}" for name, value in facts.items() if name not in without)


def confused_cards(examples: Examples, number: str) -> str:
    """Pairs of identities, each with the two images that were most alike."""
    about = (
        "Two identities are confused in a query of either one where an image of the other stands before the first "
        "match. Shown are the two images most alike."
    )
    cards = "".join(_card(examples, pair) for pair in examples.confused)
    body = f'<ul class="pairs">{cards}</ul>' if cards else "<p>None: every scored query has a match at rank 1.</p>"
    head = f'<h3>Most confused identities</h3><p class="soft">{about}</p>'
    return f'<section id="confused-{number}">{head}{body}</section>'


def _card(examples: Examples, pair: Confused) -> str:
    sides = (examples.query, pair.example[0], "query"), (examples.gallery, pair.example[1], "gallery")
    crops = []
    for split, row, what in sides:
        facts = facts_of(dict(split.metadata()), row)
        crops.append(crop_cell(split.image(row), f"{what}: {_facts(facts)}", what, name_cell(facts["identity"])))
    noun = "query" if pair.total == 1 else "queries"
    count = f'<p class="tag under">{pair.queries} of their {pair.total} {noun}</p>'
    return f'<li><div class="two wrong">{"".join(crops)}</div>{count}</li>'
