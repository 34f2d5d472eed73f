"""The page of a report: what it says, what it escapes, and that a browser shows it without a word of complaint."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import Browser, find_chromium
from PIL import Image

from clipreid.errors import UserError
from clipreid.evaluation import Report, evaluate
from clipreid.names import shortened, with_folder
from clipreid.reports.html import Section, page, section_of, write_report
from clipreid.reports.html_lists import NOT_LOOKED, name_cell

N = 6  # identities
EVIL = '<script>alert("x")</script>&\'"'
needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium here (apt-get install chromium)")


class Street:
    """Images of N identities, one of them with a name that wants to be code."""

    def __init__(self, per: int, cameras: int, named: bool = True) -> None:
        self.identity = [f"{EVIL}{i // per}" if i < per else f"p{i // per}" for i in range(N * per)]
        self.camera = [i % cameras if named else -1 for i in range(N * per)]

    def metadata(self) -> dict[str, Any]:
        return {"identity": self.identity, "camera": self.camera}

    def image(self, i: int) -> Image.Image:
        noise = np.random.default_rng(i).integers(0, 256, (40, 20, 3), dtype=np.uint8)
        return Image.fromarray(noise)


def problem(named: bool = True) -> tuple[Report, Street, Street, torch.Tensor]:
    query, gallery = Street(2, 2, named), Street(4, 3, named)
    similarity = torch.rand(2 * N, 4 * N, generator=torch.Generator().manual_seed(0)) * 0.8
    similarity += 0.3 * torch.tensor([[a == b for b in gallery.identity] for a in query.identity])
    report = evaluate(similarity=similarity, query=query, gallery=gallery)
    return report, query, gallery, similarity


def look(rows: list[int]) -> np.ndarray:
    return np.random.default_rng(0).random((len(rows), 4, 2))


def whole(name: str = "street") -> Section:
    report, query, gallery, similarity = problem()
    return section_of(
        name,
        report,
        query,
        gallery,
        similarity=similarity,
        look=look,
        queries=3,
        top=5,
        label="stage 2",
        others={"zero-shot": report},
        facts=[("features", f"squeezed {EVIL}"), ("warning", "of no use")],
    )


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for _, attrs in self.found if attribute in attrs]


def test_the_page_says_what_the_report_says() -> None:
    section = whole()
    text = page([section], "demo")
    elements = Elements(text)
    for value in section.report.metrics.values():
        assert f"<td>{100 * value:.1f}" in text
    low, high = section.report.intervals["mAP"]
    assert f"<small>{100 * low:.1f} to {100 * high:.1f}</small>" in text
    shown = section.examples
    assert shown is not None
    assert len(shown.drawn) == len(shown.hardest) == 3
    assert sum(tag == "article" for tag, _ in elements.found) == 6
    images = [a["alt"] for tag, a in elements.found if tag == "img"]
    results = [result for query in shown.all for result in query.results]
    assert len(images) == len(results) + 2 * 6 + 2 * len(shown.confused)
    assert all(images)
    for kind in ("right", "wrong", "junk"):
        assert text.count(f'<li class="{kind}">') == sum(result.kind == kind for result in results) > 0
    assert "do not publish" in elements.text
    assert "Abnar" in elements.text
    assert "Camera pairs." in elements.text
    assert f"squeezed {EVIL}" in elements.text
    assert "<dt>warning</dt><dd>of no use</dd>" in text


def test_nothing_is_fetched_and_nothing_runs() -> None:
    text = page([whole("<img src=x onerror=alert(1)>")], EVIL, EVIL)
    elements = Elements(text)
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements.found}
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    assert all(source.startswith("data:") for source in elements.having("src"))
    assert all(target.startswith(("#", "data:")) for target in elements.having("href") + elements.having("xlink:href"))
    assert not re.search(r"url\((?!#)|@import", text)
    assert EVIL in elements.text  # as text, in the heading and below the images
    assert text == page([whole("<img src=x onerror=alert(1)>")], EVIL, EVIL)  # the same every time


def test_links_lead_somewhere_and_ids_are_single() -> None:
    elements = Elements(page([whole("one"), whole("two")], "demo"))
    ids = [str(a["id"]) for tag, a in elements.found if "id" in a and tag not in ("g", "path", "clippath")]
    outside = [i for i in ids if not re.match(r"(m|p|C|D)?[0-9a-f]{10}|.*_[0-9a-f]{10}", i)]  # drawn by matplotlib
    assert len(outside) == len(set(outside))
    links = [target[1:] for target in elements.having("href") if target.startswith("#")]
    assert set(links) <= set(ids)
    assert {"data-0", "data-1"} <= set(links)


def test_what_is_missing_is_said() -> None:
    report, query, gallery, similarity = problem(named=False)
    section = section_of("street", report, query, gallery, similarity=similarity, queries=2)
    text = page([section], "demo")
    assert NOT_LOOKED in text
    assert "no cameras are known" in text
    assert section.cameras is None
    alone = page([Section("street", report)], "demo")
    assert "<article" not in alone
    assert "do not publish" not in alone  # there is nobody on it
    table = {"identity": np.repeat(np.arange(5), 4), "path": [f"{i}.jpg" for i in range(20)]}
    drawn = evaluate(similarity=torch.rand(20, 20), query=table, gallery=table, protocol="vehicleid")
    assert "galleries are drawn at random" in page([Section("draws", drawn)], "demo")


def test_files_lie_where_they_are_looked_for(tmp_path: Path) -> None:
    names = {file.relative_to(tmp_path).as_posix() for file in write_report(tmp_path / "a", [whole()], "demo")}
    assert names == {f"a/{name}" for name in ("index.html", "cmc.png", "similarities.png", "cameras.png")}
    files = write_report(tmp_path / "b", [whole("folder:/x"), whole("synthetic")], "demo")
    assert {file.parent.name for file in files} == {"b", "1-folder--x", "2-synthetic"}
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 30
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match=r"taken/index.html cannot be written \("):
        write_report(tmp_path / "taken", [whole()], "demo")


def test_a_report_shows_itself(tmp_path: Path) -> None:
    report, query, gallery, similarity = problem()
    shown = report._repr_html_()
    assert f"{100 * report.metrics['mAP']:.1f}" in shown
    assert shown.count("<svg") == 2
    assert "<html" not in shown
    text = report.to_html(tmp_path / "deep" / "page.html", title="a < b")
    assert (tmp_path / "deep" / "page.html").read_text() == text
    assert "<title>a &lt; b</title>" in text
    assert "<article" in report.to_html(query=query, gallery=gallery, similarity=similarity, queries=1)
    assert report.plot_similarities().axes[0].get_xlabel() == "similarity"


@needs_browser
def test_a_browser_shows_it_silently(tmp_path: Path) -> None:
    write_report(tmp_path, [whole()], "demo")
    with Browser(tmp_path / "profile") as tab:
        for width, dark in ((1200, False), (1200, True), (390, False)):
            tab.dress(width, 800, dark)
            tab.open(tmp_path / "index.html")
            loaded = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
            sizes = tab.run(loaded)  # rejects when an image cannot be decoded
            assert len(sizes) > 30
            assert min(sizes) > 0
            assert tab.run("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out, on a phone too
            colour = tab.run("getComputedStyle(document.body).backgroundColor")
            assert (colour == "rgb(255, 255, 255)") == (not dark)
            ink = tab.run("getComputedStyle(document.querySelector('svg text')).fill")
            assert ink == tab.run("getComputedStyle(document.body).color")  # the figures take the page's colours
            said = [
                e
                for e in tab.events
                if e.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
            ]
            requests = [e["params"] for e in tab.events if e.get("method") == "Network.requestWillBeSent"]
            asked = [request["request"]["url"] for request in requests]
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "index.html").as_uri()]


class Herd(Street):
    """Crops of all shapes, and names that differ at their end."""

    shapes = ((60, 160), (240, 100), (128, 128), (300, 60), (50, 200))

    def __init__(self, per: int, cameras: int) -> None:
        super().__init__(per, cameras)
        self.identity = [f"okavango_reserve_north_herd_individual_{i // per:04d}" for i in range(N * per)]

    def image(self, i: int) -> Image.Image:
        return super().image(i).resize(self.shapes[i % len(self.shapes)])


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    query, gallery = Herd(2, 2), Herd(4, 3)
    similarity = 0.998 + 0.001 * torch.rand(2 * N, 4 * N, generator=torch.Generator().manual_seed(0))
    report = evaluate(similarity=similarity, query=query, gallery=gallery)
    section = section_of(
        f"folder:/{'deep/' * 20}x", report, query, gallery, similarity=similarity, look=look, queries=2
    )
    folder = tmp_path_factory.mktemp("herd")
    write_report(folder, [section], "people/01")
    return folder / "index.html"


def test_names_that_are_shortened_keep_what_tells_them_apart() -> None:
    assert shortened("anna", 8) == "anna"
    assert shortened("okavango_reserve_north_herd_individual_0007", 20) == "okavang…ividual_0007"
    assert len(shortened("x" * 99, 48)) == 48
    assert name_cell("a&b") == "a&amp;b"
    long = "herd" * 20 + "_0007"
    assert name_cell(long).endswith("_0007</span>")
    assert f'title="{long}"' in name_cell(long)
    assert with_folder("/data/anna/0001.jpg") == "anna/0001.jpg"


def test_hits_in_a_cone_are_told_apart(herd: Path) -> None:
    hits = re.findall(r"<br>(0\.99\d+)</span>", herd.read_text())
    assert len(hits) > 30
    assert len(set(hits)) > len(hits) / 2


@needs_browser
@pytest.mark.parametrize("width", [390, 1400])
def test_crops_of_all_shapes_fit_and_nothing_overlaps(herd: Path, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path / "profile") as tab:
        tab.dress(width, 900)
        tab.open(herd)
        tab.run("Promise.all([...document.images].map(i => i.decode()))")
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        shape = "[...document.images].map(i => (i.width / i.height) / (i.naturalWidth / i.naturalHeight))"
        assert all(0.9 < ratio < 1.1 for ratio in tab.run(shape))
        inside = """[...document.querySelectorAll('.pairs li')].every(card => [...card.querySelectorAll('*')].every(
            e => e.getBoundingClientRect().right <= card.getBoundingClientRect().right))"""
        assert tab.run(inside)
        names = "[...document.querySelectorAll('li .under')].every(e => e.scrollWidth <= e.clientWidth + 1)"
        assert tab.run(names)  # nothing of a caption is cut
        cut = """[...document.querySelectorAll('.list ol')].filter(list => [...list.children].some(
            e => e.getBoundingClientRect().right > list.getBoundingClientRect().right + 1)).length"""
        assert (tab.run(cut) == 0) == (width > 700)  # a desk shows every hit, a phone scrolls


@needs_browser
def test_keys_alone_lead_to_every_query(tmp_path: Path) -> None:
    section = whole()
    write_report(tmp_path, [section], "demo")
    assert section.examples is not None
    with Browser(tmp_path / "profile") as tab:
        tab.dress(390, 800)
        tab.open(tmp_path / "index.html")
        visited = set()
        for _ in range(200):
            tab.press("Tab")
            where = "document.activeElement.matches('ol') && document.activeElement.closest('article').id"
            visited.add(tab.run(where))
            if tab.run("document.activeElement === document.body"):
                break
        assert visited - {False} == {f"query-0-{query.row}" for query in section.examples.all}
        tab.open(tmp_path / "index.html")
        target = f"query-0-{section.examples.hardest[0].row}"
        while tab.run("document.activeElement.getAttribute('href')") != f"#{target}":
            tab.press("Tab")
        tab.press("Enter")
        assert tab.run("document.activeElement.id") == target  # a link of the list of queries moves the focus there
        tab.press("Tab")  # the step to the previous query
        assert tab.run("document.activeElement.textContent") == "previous"
