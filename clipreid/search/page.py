"""What was found, as one HTML page in the style of the report: it fetches nothing and contains every image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

from PIL import Image

from clipreid.data import Split
from clipreid.data.images import read_image
from clipreid.errors import UserError
from clipreid.evaluation.tables import similarity_digits
from clipreid.names import shortened, with_folder
from clipreid.reports.html import document, write
from clipreid.reports.html_lists import LONGEST, crop_cell, name_cell
from clipreid.search.find import is_data, split_of_data
from clipreid.search.gallery import Gallery, Hit

GONE = '<span class="tag">the image cannot<br>be found or read</span>'


def write_page(folder: str | Path, gallery: Gallery, queries: Sequence[str | Path], found: Sequence[list[Hit]]) -> Path:
    """Writes index.html; queries: the image (a Path) or the text (str) of each query. Returns the file.

    Images that cannot be found are named only. Raises UserError where the page cannot be written.
    """
    album = Album(gallery)
    names = [with_folder(str(query)) if isinstance(query, Path) else f"“{query}”" for query in queries]
    links = "".join(
        f'<a href="#query-{i}">{escape(shortened(name, LONGEST))}</a>' for i, name in enumerate(names) if len(names) > 1
    )
    articles = [
        _article(album, f"query-{i}", name, query, hits)
        for i, (name, query, hits) in enumerate(zip(names, queries, found, strict=True))
    ]
    about = f"{len(gallery):,} images, embedded by {gallery.about['run']} ({gallery.about['backbone']})"
    file = Path(folder) / "index.html"
    page = document(f"Found in {with_folder(str(gallery.file))}", about, links, "\n".join(articles), images=True)
    write({file: page.encode(errors="replace")})  # a file's name need not be UTF-8
    return file


class Album:
    """The images of a gallery: files, or those of the data set that was embedded."""

    def __init__(self, gallery: Gallery) -> None:
        self.about = gallery.about

    def image(self, path: str) -> Image.Image | None:
        """RGB; None where it cannot be found or read."""
        try:
            if os.path.isabs(path) and os.path.isfile(path):  # other names mean something in the data set only
                return read_image(path)
            for split in self._splits():
                rows = (split.paths == path).nonzero()[0]
                if len(rows):
                    return split.image(int(rows[0]))
        except Exception:  # on a broken or enormous file Pillow's plugins raise nearly everything
            return None
        return None

    def _splits(self) -> list[Split]:
        flags = self.about.get("pattern"), self.about.get("columns"), tuple(self.about.get("unknown", ()))
        how = (self.about["split"], *flags)
        return [found for spec in self.about["sources"] if is_data(spec) and (found := _split(spec, *how))]


@cache
def _split(spec: str, name: str, pattern: str | None, columns: str | None, unknown: tuple[str, ...]) -> Split | None:
    try:
        return split_of_data(spec, name, pattern, columns, unknown)
    except UserError:  # its files are gone, too
        return None


def _article(album: Album, name: str, title: str, query: str | Path, hits: list[Hit]) -> str:
    """One query and what was found for it."""
    asked = ""
    if isinstance(query, Path):
        asked = f'<div class="asked">{crop_cell(read_image(query), "query", "query", "")}</div>'
    digits = similarity_digits((hit.similarity for hit in hits), least=3)
    results = "".join(_result(album, hit, digits) for hit in hits)
    return f"""<article id="{name}" aria-label="{escape(title)}" tabindex="-1">
<div class="head"><h4>{escape(title)}</h4></div>
<div class="list">{asked}<ol tabindex="0" aria-label="results for {escape(title)}">{results}</ol></div></article>"""


def _result(album: Album, hit: Hit, digits: int) -> str:
    known = {"identity": hit.identity, "camera": hit.camera}
    facts = [f"{name} {escape(str(value))}" for name, value in known.items() if value is not None]
    share = [] if hit.probability is None else [f"{100 * hit.probability:.1f} %"]
    told = [f"probability {text}" for text in share]
    said = ", ".join([f"rank {hit.rank}", *facts, f"similarity {hit.similarity:.{digits}f}", *told])
    shown = [f"{name} {name_cell(str(value))}" for name, value in known.items() if value is not None]
    file = f'<span title="{escape(hit.path)}">{_end(hit.path)}</span>'
    under = "<br>".join([", ".join([f"{hit.similarity:.{digits}f}", *share]), *shown, file])
    image = album.image(hit.path)
    mark = f"{hit.rank}{' · the query itself' if hit.itself else ''}"
    if image is None:
        return f'<li><span class="tag">{mark}</span>{GONE}<span class="tag under">{under}</span></li>'
    return f"<li>{crop_cell(image, said, mark, under)}</li>"


def _end(path: str) -> str:
    return escape("/".join(shortened(part, LONGEST // 2) for part in with_folder(path).split("/")))
