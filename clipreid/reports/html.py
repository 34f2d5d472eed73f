"""The report as one HTML page: it fetches nothing, runs no script, and contains every image.

Whatever comes from data (names of files, identities, cameras) is escaped. The page's own policy forbids scripts and
every connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipreid.disk import write_whole
from clipreid.evaluation.breakdown import CameraPairs, camera_pairs
from clipreid.evaluation.columns import UNKNOWN, code_columns, read_table
from clipreid.evaluation.metrics import Matrix
from clipreid.evaluation.protocols import Predicate, Protocol, get_protocol
from clipreid.evaluation.report import Report
from clipreid.evaluation.tables import TITLES
from clipreid.reports import figures
from clipreid.reports.examples import AttentionMaps, Examples, find_examples
from clipreid.reports.html_lists import confused_cards, queries_of
from clipreid.reports.ranked_lists import Images
from clipreid.reports.style import CSS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PRIVATE = (
    "<b>Private.</b> The crops on this page show individuals who may not know of it. Keep it as safe as the data: "
    "do not publish or pass it on without their consent or another legal ground."
)


@dataclass(frozen=True)
class Section:
    """One data set on the page."""

    name: str
    report: Report
    examples: Examples | None = None
    cameras: CameraPairs | None = None
    label: str = "result"  # what `report` is of: stage 2, ...
    others: Mapping[str, Report] = field(default_factory=dict)  # to compare with: zero-shot, ...
    facts: Sequence[tuple[str, str]] = ()  # further lines below the table, each with its name
    figures: Mapping[str, tuple[Figure, str]] = field(default_factory=dict)  # further ones: file name -> and caption


def section_of(
    name: str,
    report: Report,
    query: Images,
    gallery: Images,
    query_features: Matrix | None = None,
    gallery_features: Matrix | None = None,
    *,
    similarity: Matrix | None = None,
    protocol: str | Protocol | Predicate | None = None,
    look: AttentionMaps | None = None,
    label: str = "result",
    others: Mapping[str, Report] | None = None,
    facts: Sequence[tuple[str, str]] = (),
    further: Mapping[str, tuple[Figure, str]] | None = None,
    **how: int,
) -> Section:
    """The part of the page for one data set; arguments as for `find_examples`, `how` its numbers.

    label, others: what `report` is of, and reports to compare it with, by name.  facts, further: `facts` and
        `figures` of `Section`.
    """
    rules = get_protocol(report.protocol if protocol is None else protocol)
    features = query_features, gallery_features
    options: dict[str, Any] = {"similarity": similarity, "protocol": rules, "look": look, **how}
    examples = find_examples(report, query, gallery, *features, **options)
    q, g = code_columns(read_table(query, "query"), read_table(gallery, "gallery"))
    known = all(bool((side["camera"] != UNKNOWN).any()) for side in (q, g))
    cameras = None
    if known and not rules.draws:
        cameras = camera_pairs(query_features, gallery_features, query, gallery, rules, similarity)
    return Section(name, report, examples, cameras, label, others or {}, facts, further or {})


def write_report(folder: str | Path, sections: Sequence[Section], title: str, subtitle: str = "") -> list[Path]:
    """Writes index.html, and each figure of it as PNG; into a folder for each data set where there are several.

    Returns the files. Raises `CannotWrite` where they cannot be written.
    """
    folder = Path(folder)
    pages = {folder / "index.html": page(sections, title, subtitle).encode()}
    for i, section in enumerate(sections):
        place = folder if len(sections) == 1 else folder / f"{i + 1}-{_plain(section.name)}"
        pages |= {place / f"{name}.png": figures.to_png(f) for name, (f, _) in _figures(section).items()}
    write(pages)
    return list(pages)


def write(files: Mapping[Path, bytes]) -> None:
    """Writes files, with their folders. Raises `CannotWrite` naming the one that cannot be written."""
    for file, content in files.items():
        write_whole(file, content)


def page(sections: Sequence[Section], title: str, subtitle: str = "") -> str:
    """The whole page."""
    several = len(sections) > 1
    links = [f'<a href="#data-{i}">{escape(s.name)}</a>' for i, s in enumerate(sections) if several]
    links += [link for i, s in enumerate(sections) if not several for link in _links(s, i)]
    body = "\n".join(_section(section, f"{i}", several) for i, section in enumerate(sections))
    images = any(section.examples is not None for section in sections)
    return document(title, subtitle, "".join(links), body, images)


def document(title: str, subtitle: str, links: str, body: str, images: bool) -> str:
    """A page in the style of the report; links and body are HTML. images: whether crops are on it."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body class="clipreid">
<a class="skip" href="#main">To the results</a>
<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>
{f'<nav class="bar" aria-label="Parts of this page"><div>{links}</div></nav>' if links else ""}
<main id="main" tabindex="-1">
{body}
</main>
<footer><p class="soft">{f"{PRIVATE}<br>" if images else ""}Written by clipreid.</p></footer>
</body>
</html>
"""


def fragment(report: Report) -> str:
    """What a notebook shows: the table, the facts and the figures of one report."""
    section = Section("", report)
    parts = _table(section), _facts(report), _figure_row(section, "notebook")
    return f'<div class="clipreid"><style>{CSS}</style>{"".join(parts)}</div>'


def _section(section: Section, number: str, several: bool) -> str:
    level = f"<h2>{escape(section.name)}</h2>"
    jump = f'<nav class="chips" aria-label="Parts">{" ".join(_links(section, int(number)))}</nav>' if several else ""
    parts = [_table(section), _facts(section.report, section.facts), _figure_row(section, number)]
    if section.examples is not None:
        parts += [confused_cards(section.examples, number), queries_of(section.examples, number)]
    return f'<section id="data-{number}">{level}{jump}{"".join(parts)}</section>'


def _links(section: Section, number: int) -> list[str]:
    """To the parts of one section."""
    parts = {"figures": "Figures"}
    if section.examples is not None:
        parts |= {"confused": "Confused identities", "drawn": "Queries at random", "hardest": "Hardest queries"}
    return [f'<a href="#{part}-{number}">{name}</a>' for part, name in parts.items()]


def _table(section: Section) -> str:
    """Figures in percent, one row for each model, the 95 % interval below each figure."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in TITLES.values())
    rows = [_row(name, report, "") for name, report in section.others.items()]
    rows.append(_row(section.label, section.report, ' class="main"' if rows else ""))
    head = f'<thead><tr><th scope="col">%</th>{titles}</tr></thead>'
    table = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Figures in percent">{table}</div>'


def _row(name: str, report: Report, kind: str) -> str:
    cells = []
    for metric in TITLES:
        between = report.intervals.get(metric)
        small = f"<small>{100 * between[0]:.1f} to {100 * between[1]:.1f}</small>" if between else ""
        cells.append(f"<td>{100 * report.metrics[metric]:.1f}{small}</td>")
    return f'<tr{kind}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'


def _facts(report: Report, more: Sequence[tuple[str, str]] = ()) -> str:
    counts = report.counts
    scored = f"{counts['valid_queries']:,} scored of {counts['queries']:,}"
    images = f"{counts['gallery']:,} images, {counts['gallery_identities']:,} identities"
    facts = [
        ("queries", f"{scored}, {counts['query_identities']:,} identities"),
        ("gallery", f"{images}, {counts['distractors']:,} images are distractors"),
        ("protocol", f"{report.protocol}: {report.description}"),
        *(("note", note) for note in report.notes),
        *more,
    ]
    if report.intervals:
        facts.append(("small figures", "95 % intervals: other identities drawn from the same crowd (bootstrap)"))
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in facts)}</dl>"


def _figures(section: Section) -> dict[str, tuple[Figure, str]]:
    """File name -> figure and caption (HTML)."""
    report = section.report
    found = {
        "cmc": (
            figures.plot_cmc(report, section.others, name=section.label),
            "<b>CMC curve.</b> The share of queries that have a match among the first k.",
        )
    }
    if report.histogram is not None:
        found["similarities"] = (
            figures.plot_similarities(report),
            "<b>Similarities.</b> Pairs of query and gallery image without junk, each kind as a share of its number.",
        )
    if section.cameras is not None:
        found["cameras"] = (
            figures.plot_cameras(section.cameras),
            "<b>Camera pairs.</b> mAP in percent with one camera's images as gallery; empty: no query has a match.",
        )
    return found | dict(section.figures)


def _figure_row(section: Section, number: str) -> str:
    cells = [
        f"<figure><figcaption>{caption}</figcaption>{figures.to_svg(figure, name)}</figure>"
        for name, (figure, caption) in _figures(section).items()
    ]
    left_out = []
    if section.report.histogram is None:
        left_out.append(
            "There is no histogram of similarities: the galleries are drawn at random, or the similarities "
            "came as a stream."
        )
    if section.examples is not None and section.cameras is None:
        left_out.append("Camera pairs are left out: no cameras are known, or the galleries are drawn at random.")
    said = f'<p class="soft">{" ".join(left_out)}</p>' if left_out else ""
    return f'<div class="figures" id="figures-{number}">{"".join(cells)}</div>{said}'


def _plain(name: str) -> str:
    """A name for a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[-60:]
