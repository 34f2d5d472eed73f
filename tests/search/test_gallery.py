"""Search is exact: what is found is what a full sort finds, ties by row, in whatever pieces the file is read."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from galleries import about, table, unit, write_gallery
from hypothesis import given, settings
from hypothesis import strategies as st

import clipreid.search.exact
from clipreid.errors import UserError
from clipreid.evaluation.similarity import unit_rows
from clipreid.search import Gallery
from clipreid.search.format import KEY


def full_sort(queries: np.ndarray, gallery: np.ndarray, top: int, part: slice = slice(None)) -> tuple:
    """Similarities in exact arithmetic, rounded once, and a stable sort of all of them."""
    found = []
    for q in unit_rows(torch.from_numpy(queries).float(), "queries")[: len(queries)].double().numpy():
        x = gallery[:, part].astype(np.float64)
        s = np.array([math.fsum((row * q).tolist()) for row in x])
        if part != slice(None):
            s /= np.array([math.sqrt(math.fsum((row * row).tolist())) for row in x])
        order = np.argsort(-s, kind="stable")[:top]
        found.append((s[order], order))
    return np.array([s for s, _ in found]), np.array([rows for _, rows in found])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """Galleries of few distinct vectors, with ties and with such as only float64 tells apart; cut anywhere."""
    width, kinds, n = draw(st.integers(2, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = unit(rng.standard_normal((kinds, width)))
    gallery = shapes[rng.integers(0, kinds, n)]
    nudged = rng.random(n) < draw(st.sampled_from([0, 0.3, 1]))
    towards = rng.choice(np.float32([-2, 2]), gallery.shape)  # each number to its neighbour, up or down
    gallery[nudged] = np.nextafter(gallery[nudged], towards[nudged])
    queries = rng.standard_normal((draw(st.integers(1, 5)), width))
    if draw(st.booleans()):
        queries[0] = shapes[0]
    if draw(st.booleans()):  # the worst order: every row beats all before it
        gallery = gallery[np.argsort(gallery @ unit(queries)[0], kind="stable")]
    groups = draw(st.lists(st.integers(0, 25), max_size=6).filter(lambda g: sum(g) < n))
    return queries.astype(np.float32), gallery, groups, draw(st.integers(1, n))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_best_are_those_of_a_full_sort(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    queries, gallery, groups, top = case
    file = write_gallery(tmp_path_factory.mktemp("g") / "g.parquet", gallery, groups)
    opened = Gallery.open(file)
    similarity, rows = opened.nearest(queries, top)
    true, order = full_sort(queries, gallery, top)
    np.testing.assert_allclose(similarity, true, rtol=0, atol=1e-14)
    assert (np.diff(similarity) <= 0).all()
    for q in range(len(queries)):  # sums in another order may part what the true values join, by 1e-16, and only that
        swapped = rows[q] != order[q]
        assert (abs(true[q][swapped] - similarity[q][swapped]) < 1e-14).all()
        assert len(set(rows[q].tolist())) == top
    alone = [opened.nearest(queries[q : q + 1], top) for q in range(len(queries))]
    assert (np.concatenate([rows for _, rows in alone]) == rows).all()
    assert (np.concatenate([s for s, _ in alone]) == similarity).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 5))
def test_equal_images_are_found_in_the_order_of_their_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    gallery = np.repeat(unit(rng.standard_normal((1, 33))), n, axis=0)
    file = write_gallery(tmp_path_factory.mktemp("g") / "g.parquet", gallery, [n // groups] * (groups - 1))
    similarity, rows = Gallery.open(file).nearest(rng.standard_normal((2, 33)), n)
    assert (rows == np.arange(n)).all()
    assert (similarity == similarity[:, :1]).all()


def test_pieces_threads_and_low_precision_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gallery, queries = unit(rng.standard_normal((5000, 64))), rng.standard_normal((70, 64))
    one = Gallery.open(write_gallery(tmp_path / "one.parquet", gallery)).nearest(queries, 20)
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("medium")
    try:
        other = Gallery.open(write_gallery(tmp_path / "many.parquet", gallery, [100] * 33)).nearest(queries, 20)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    monkeypatch.setattr("clipreid.search.gallery.QUERIES", 3)
    monkeypatch.setattr(clipreid.search.exact, "PAIRS", 7)
    again = Gallery.open(tmp_path / "many.parquet").nearest(queries, 20)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))


def test_a_part_is_compared_by_cosine(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    gallery = unit(rng.standard_normal((300, 24)) * rng.uniform(0.1, 4, (300, 1)) ** np.arange(24))
    queries = rng.standard_normal((4, 9))
    file = write_gallery(tmp_path / "g.parquet", gallery, [77], projection=9)
    similarity, rows = Gallery.open(file).nearest(queries, 30, part="projection")
    true, order = full_sort(queries, gallery, 30, slice(15, 24))
    assert (rows == order).all()
    np.testing.assert_allclose(similarity, true, rtol=0, atol=1e-14)


def test_camera_filters(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    gallery, query = unit(rng.standard_normal((40, 8))), rng.standard_normal((1, 8))
    cameras = [None if row % 4 == 0 else row % 4 for row in range(40)]
    opened = Gallery.open(write_gallery(tmp_path / "g.parquet", gallery, [9, 1, 20], cameras))
    order = opened.nearest(query, 40)[1][0].tolist()
    assert [h.row for h in opened.search(query, 40, cameras=[2])[0]] == [r for r in order if r % 4 == 2]
    assert [h.row for h in opened.search(query, 40, not_cameras=[1, 3])[0]] == [r for r in order if r % 4 in (0, 2)]
    assert [h.row for h in opened.search(query, 3, cameras=[1, 3])[0]] == [r for r in order if r % 2][:3]
    hit = opened.search(query, 1, cameras=[3])[0][0]
    known = (f"/crops/{hit.row}.jpg", f"anna {hit.row % 3}", 3)
    assert (hit.rank, hit.path, hit.identity, hit.camera) == (1, *known)
    assert len(opened.search(query, 5, not_cameras=[9])[0]) == 5  # leaves nothing out
    assert opened.without_effect([9, 1]) == [9]
    with pytest.raises(UserError, match=r"no camera 9 in .*: there are 1, 2, 3"):
        opened.search(query, cameras=[9])
    with pytest.raises(UserError, match=r"no image of .* passes the camera filter"):
        opened.search(query, cameras=[1], not_cameras=[1])
    unknown = Gallery.open(write_gallery(tmp_path / "u.parquet", gallery))
    with pytest.raises(UserError, match="has no cameras: embed with --pattern"):
        unknown.search(query, cameras=[1])


def test_the_file_is_mapped_and_any_parquet_reader_reads_it(tmp_path: Path) -> None:
    gallery = unit(np.random.default_rng(3).standard_normal((500, 48)))
    file = write_gallery(tmp_path / "g.parquet", gallery, [123, 200], [1] * 500)
    opened = Gallery.open(file)
    assert None not in opened._offsets
    mapped = torch.cat([block.clone() for _, block in opened.blocks()])
    assert (mapped.numpy() == gallery).all()
    column = pq.read_table(file).column("feature").combine_chunks()
    assert (column.flatten().to_numpy().reshape(500, 48) == gallery).all()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "NONE", "use_dictionary": False, "data_page_size": 1024},
        {"compression": "NONE", "use_dictionary": False, "data_page_size": 1024, "data_page_version": "2.0"},
    ],
)
def test_what_another_program_wrote_anew_is_found_all_the_same(tmp_path: Path, how: dict) -> None:
    gallery = unit(np.random.default_rng(4).standard_normal((700, 32)))
    file = write_gallery(tmp_path / "g.parquet", gallery, [300])
    queries = np.random.default_rng(5).standard_normal((3, 32))
    kept = pq.read_table(file).slice(100, 500)
    pq.write_table(kept, tmp_path / "other.parquet", **how)
    other = Gallery.open(tmp_path / "other.parquet")
    assert other._offsets == [None]
    _, rows = other.nearest(queries, 10)
    whole = Gallery.open(file).nearest(queries, 700)[1]
    expected = [[row - 100 for row in each if 100 <= row < 600][:10] for each in whole.tolist()]
    assert rows.tolist() == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of this process from /proc")
def test_of_a_mapped_gallery_little_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, group = 64, 1 << 20  # bytes of a row group: 64 MB in all
    features = np.tile(unit(np.eye(1, 512)), (rows * group // 2048, 1))
    opened = Gallery.open(write_gallery(tmp_path / "g.parquet", features, [group // 2048] * (rows - 1)))
    seen, add = [], clipreid.search.exact.Nearest.add

    def look(self: clipreid.search.exact.Nearest, block: torch.Tensor, numbers: np.ndarray) -> None:
        add(self, block, numbers)
        seen.append(resident())

    monkeypatch.setattr(clipreid.search.exact.Nearest, "add", look)
    before = resident()
    opened.nearest(np.eye(1, 512), 1)
    assert len(seen) == rows
    assert max(seen) - before < 8 * group


def resident() -> int:
    """Bytes of mapped files in this process's memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) * 1024


def test_one_large_row_group_of_another_program_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipreid.search.gallery.CHUNK", 500)
    features = unit(np.random.default_rng(9).standard_normal((20_000, 128)))
    file = write_gallery(tmp_path / "g.parquet", features, [])
    pq.write_table(pq.read_table(file), tmp_path / "other.parquet", row_group_size=20_000)
    before = pa.total_allocated_bytes()
    for mapped, each in ((True, file), (False, tmp_path / "other.parquet")):
        opened, start, most = Gallery.open(each), 0, 0
        assert (opened._offsets != [None]) == mapped
        for first, block in opened.blocks():
            assert first == start
            assert len(block) <= 500
            assert (block.numpy() == features[start : start + len(block)]).all()
            start, most = start + len(block), max(most, pa.total_allocated_bytes() - before)
        assert start == 20_000
        assert most < features.nbytes / 2


def test_mistakes_are_named(tmp_path: Path) -> None:
    gallery = Gallery.open(write_gallery(tmp_path / "g.parquet", unit(np.eye(6, 8))))
    query = np.ones((1, 8))
    for top in (0, 7):
        with pytest.raises(UserError, match=rf"--top {top}: give 1 to 6"):
            gallery.search(query, top)
    assert len(gallery.search(query)[0]) == 6  # the default is no more than there are
    assert gallery.nearest(query)[1].shape == (1, 6)
    with pytest.raises(UserError, match="query 1 is all zeros"):
        gallery.search(np.array([[1.0] * 8, [0.0] * 8]))
    with pytest.raises(UserError, match=r"the queries are \[1, 5\], this gallery needs \[Q, 8\]"):
        gallery.search(np.ones((1, 5)))
    with pytest.raises(UserError, match=r"no part 'middle' in .*: there are final, projection"):
        gallery.search(query, 1, part="middle")
    with pytest.raises(UserError, match="the queries: NaN or infinity"):
        gallery.search(query * np.nan, 1)


def test_files_that_are_no_gallery_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    with pytest.raises(UserError, match="is no file: make a gallery with `clipreid embed"):
        Gallery.open(file)
    with pytest.raises(UserError, match="is a folder: name the file that `clipreid embed` wrote"):
        Gallery.open(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is no parquet file, or damaged"):
        Gallery.open(file)
    pq.write_table(pa.table({"path": ["a"], "feature": [[1.0]]}), file)
    with pytest.raises(UserError, match="is parquet, but no gallery"):
        Gallery.open(file)
    later = table(unit(np.eye(3))).replace_schema_metadata({KEY: '{"gallery": 99}'})
    pq.write_table(later, file)
    with pytest.raises(UserError, match="version 99 of this format, here are 1 and 2"):
        Gallery.open(file)
    pq.write_table(table(unit(np.eye(3))).drop_columns(["camera"]), file)
    with pytest.raises(UserError, match="is parquet, but no gallery"):
        Gallery.open(file)
    write_gallery(file, np.empty((0, 4)))
    with pytest.raises(UserError, match="holds no images"):
        Gallery.open(file)


def test_damage_is_noticed(tmp_path: Path) -> None:
    whole = write_gallery(tmp_path / "g.parquet", unit(np.random.default_rng(6).standard_normal((200, 16))), [90])
    data = whole.read_bytes()
    file = Path(shutil.copy(whole, tmp_path / "damaged.parquet"))
    file.write_bytes(data[:-200])
    with pytest.raises(UserError, match="is no parquet file, or damaged"):
        Gallery.open(file)
    offset = Gallery.open(whole)._offsets[1]
    assert offset is not None
    flipped = bytearray(data)
    flipped[offset + 1000] ^= 4
    file.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged"):
        Gallery.open(file)


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    gallery = unit(np.random.default_rng(7).standard_normal((50, 8)))
    gallery[33, 2] = np.nan
    opened = Gallery.open(write_gallery(tmp_path / "g.parquet", gallery, [20]))
    with pytest.raises(UserError, match="is damaged: features of rows 20 to 49 are not finite"):
        opened.search(np.ones((1, 8)), 3)


def test_about_is_what_was_written(tmp_path: Path) -> None:
    file = write_gallery(tmp_path / "g.parquet", unit(np.eye(3)))
    assert Gallery.open(file).about == about(3)


# Camera centring ------------------------------------------------------------------------------------------------


def test_centred_search_is_that_of_centred_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    known = [1, 1, 2, 7, 2] * 12 + [9, 9, 9]
    cameras = np.array([*known, -1])
    features = unit(rng.standard_normal((len(cameras), 6)) + 2 * (cameras[:, None] == 2))
    gallery = Gallery.open(write_gallery(tmp_path / "g.parquet", features, [20, 30], [*known, None]))
    means = gallery.camera_means()
    assert means.cameras.tolist() == [1, 2, 7]  # of camera 9 there are too few images
    assert means.images == 60
    expected = np.stack([features[cameras == camera].mean(0) for camera in (1, 2, 7)])
    np.testing.assert_allclose(means.means["concat"], expected, atol=1e-6)
    of = {1: expected[0], 2: expected[1], 7: expected[2]}
    centred = unit(features - np.stack([of.get(camera, expected.mean(0)) for camera in cameras.tolist()]))
    queries = unit(rng.standard_normal((3, 6)))
    for asked in ([7, -1, 5], None):
        own = np.stack([of.get(camera, expected.mean(0)) for camera in asked or [-1] * 3])
        similarity, rows = gallery.nearest(queries, top=len(cameras), means=means, query_cameras=asked)
        truth = unit(queries - own) @ centred.T
        np.testing.assert_allclose(similarity, -np.sort(-truth, axis=1), atol=1e-5)
        assert (rows[:, 0] == truth.argmax(1)).all()
    only = gallery.nearest(queries, top=3, cameras=[7], means=means)[1]
    assert (cameras[only] == 7).all()
    with pytest.raises(ValueError, match="means centre whole features"):
        gallery.nearest(queries[:, :1], part="projection", means=means)
    with pytest.raises(ValueError, match="need 3 query cameras"):
        gallery.nearest(queries, means=means, query_cameras=[1])
