"""The pictures of the report's page: ranked lists, where the model looked, identities that are confused."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from clipreid.evaluation.shown import Confused, Kind, Result, Shown, ShownQuery, facts_of
from clipreid.evaluation.thumbnails import data_address, looked, thumbnail

MARKS: dict[Kind, str] = {"right": "✓", "wrong": "✗", "junk": "∅"}
SAID: dict[Kind, str] = {"right": "same identity", "wrong": "another identity", "junk": "junk, does not count"}
LOOKED = (
    "<b>Where the model looked:</b> beside each query, attention rollout over all blocks (Abnar and Zuidema, 2020), up "
    "to the token that becomes the feature. Brightness is scaled for each picture. It shows where information came "
    "from, not why two pictures were held to be alike."
)
NOT_LOOKED = "Where the model looked is not shown: an image tower that is wrapped as it is does not tell its attention."


def queries_of(shown: Shown, number: str) -> str:
    """Both groups of queries, with links to each."""
    legend = " ".join(f'<span class="{kind}"><b class="mark">{MARKS[kind]}</b> {SAID[kind]}</span>' for kind in MARKS)
    parts = []
    tables = dict(shown.query.metadata()), dict(shown.gallery.metadata())
    steps = [f"query-{number}-{query.row}" for query in shown.all]
    for part, title, about, queries in (
        ("drawn", "Queries drawn at random", "A fair sample of what the figures stand for.", shown.drawn),
        ("hardest", "Hardest queries", "Those with the lowest average precision (AP) among the others.", shown.hardest),
    ):
        chips = "".join(f'<li><a href="#query-{number}-{q.row}">{_title(tables[0], q)} · {_ap(q)}</a></li>'
                        for q in queries)  # fmt: skip
        articles = "".join(_article(shown, tables, query, number, steps) for query in queries)
        none = '<p class="soft">There are no others.</p>' if not queries else ""
        parts.append(f'<section id="{part}-{number}"><h3>{title}</h3><p class="soft">{about}</p>'
                     f'<p class="soft legend">{legend}</p>{none}'
                     f'<ul class="chips" aria-label="{title}">{chips}</ul>{articles}</section>')  # fmt: skip
    if shown.all:
        parts.insert(0, f'<p class="soft">{LOOKED if shown.can_look else NOT_LOOKED}</p>')
    return "".join(parts)


def _title(table: Mapping[str, Any], query: ShownQuery) -> str:
    return escape(facts_of(table, query.row)["identity"])


def _ap(query: ShownQuery) -> str:
    return f"AP {100 * query.ap:.0f}%"


def _article(shown: Shown, tables: tuple[dict[str, Any], dict[str, Any]], query: ShownQuery, number: str,
             steps: list[str]) -> str:  # fmt: skip
    """One query: its crop, where the model looked, and what was found."""
    picture, name = shown.query.picture(query.row), f"query-{number}-{query.row}"
    facts = facts_of(tables[0], query.row)
    crops = [crop_cell(thumbnail(picture), f"query: {_facts(facts)}", "query", "")]
    if query.look is not None:
        glow = data_address(looked(picture, query.look))
        crops.append(crop_cell(glow, "where the model looked at this query", "looked at", ""))
    results = "".join(_result(shown, tables[1], result) for result in query.results)
    if query.hidden:
        results += f'<li class="junk"><span class="tag">and {query.hidden} more<br>junk pictures</span></li>'
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


def _result(shown: Shown, table: Mapping[str, Any], result: Result) -> str:
    facts = facts_of(table, result.row)
    mark = f'<b class="mark">{MARKS[result.kind]}</b> {"junk" if result.rank is None else result.rank}'
    place = "junk" if result.rank is None else f"rank {result.rank}"
    said = f"{place}, {SAID[result.kind]}: {_facts(facts)}"
    under = "<br>".join([escape(facts["identity"]), *_facts(facts, "identity").split(", "), f"{result.similarity:.2f}"])
    crop = crop_cell(thumbnail(shown.gallery.picture(result.row)), said, mark, under)
    return f'<li class="{result.kind}">{crop}</li>'


def crop_cell(address: str, said: str, above: str, under: str) -> str:
    """One picture with what stands above and under it; all texts are HTML."""
    below = f'<span class="tag under">{under}</span>' if under else ""
    return (f'<div><span class="tag">{above}</span><div class="crop"><img src="{address}" alt="{said}" '
            f'decoding="async"></div>{below}</div>')  # fmt: skip


def _facts(facts: Mapping[str, str], *without: str) -> str:
    """identity 7, camera 2: escaped."""
    return ", ".join(f"{name} {escape(value)}" for name, value in facts.items() if name not in without)


def confused_cards(shown: Shown, number: str) -> str:
    """Pairs of identities, each with the two pictures that were most alike."""
    about = (
        "Two identities are confused in a query of either one where a picture of the other stands before the first "
        "match. Shown are the two pictures most alike."
    )
    cards = "".join(_card(shown, pair) for pair in shown.confused)
    body = f'<ul class="pairs">{cards}</ul>' if cards else "<p>None: every scored query has a match at rank 1.</p>"
    return (f'<section id="confused-{number}"><h3>Most confused identities</h3><p class="soft">{about}</p>{body}'
            "</section>")  # fmt: skip


def _card(shown: Shown, pair: Confused) -> str:
    sides = (shown.query, pair.example[0], "query"), (shown.gallery, pair.example[1], "gallery")
    crops = []
    for split, row, what in sides:
        facts = facts_of(dict(split.metadata()), row)
        crops.append(
            crop_cell(thumbnail(split.picture(row)), f"{what}: {_facts(facts)}", escape(facts["identity"]), what)
        )
    noun = "query" if pair.total == 1 else "queries"
    return (f'<li><div class="two wrong">{"".join(crops)}</div><p class="tag under">'
            f"{pair.queries} of their {pair.total} {noun}</p></li>")  # fmt: skip
