"""Which figures of `metrics.json` may stand side by side: never those of unlike test sets."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clipreid.data import Split
from clipreid.data.fingerprint import pair_fingerprint
from clipreid.evaluation.matrix import columns_of, commands, matrix_table, read_rows
from clipreid.evaluation.results import add_metrics, results_table
from clipreid.evaluation.side_by_side import alike, parted, place, remark_of, sorted_out
from clipreid.evaluation.tables import similarity_digits
from clipreid.hub.files import read_metrics

SPEC = "folder:/home/me/crops"
CAMERAS, NONE = "0123456789abcdef", "fedcba9876543210"


def entry(
    mAP: float = 0.5, protocol: str = "no-cameras", fingerprint: str | None = NONE, **more: Any
) -> dict[str, Any]:
    figures = {"mAP": mAP, "mINP": 0.2, "rank1": 0.5, "rank5": 0.6, "rank10": 0.7}
    found = figures | {"protocol": protocol, "counts": {"queries": 30, "gallery": 90}} | more
    return found if fingerprint is None else found | {"fingerprint": fingerprint}


def test_figures_of_another_protocol_replace_nothing(tmp_path: Path) -> None:
    for model in ("zero-shot", "stage2"):
        assert add_metrics(tmp_path, model, {SPEC: entry()}) == {SPEC: SPEC}
    with_cameras = entry(0.6, "cross-camera", CAMERAS, pattern="identity/cam")
    assert add_metrics(tmp_path, "zero-shot", {SPEC: with_cameras}) == {SPEC: f"{SPEC} (cross-camera)"}
    found = read_metrics(tmp_path)
    assert {name: set(models) for name, models in found.items()} == {
        SPEC: {"zero-shot", "stage2"},
        f"{SPEC} (cross-camera)": {"zero-shot"},
    }
    assert found[SPEC]["zero-shot"]["mAP"] == 0.5
    lines = results_table(tmp_path, [SPEC]).splitlines()
    assert [line.split()[:3] for line in lines[2:6]][2] == ["crops", "(cross-camera)", "zero-shot"]
    assert any("protocol" in line for line in lines[:1])
    assert "crops: 30 queries, 90 gallery images, fingerprint fedcba98" in lines
    cameras = "crops (cross-camera): 30 queries, 90 gallery images, pattern 'identity/cam', fingerprint 01234567"
    assert cameras in lines
    assert "not to be compared" in lines[-1]


def test_changed_labels_have_a_row_of_their_own_and_the_same_ones_replace(tmp_path: Path) -> None:
    add_metrics(tmp_path, "stage2", {SPEC: entry(0.5)})
    add_metrics(tmp_path, "stage2", {SPEC: entry(0.7, fingerprint=CAMERAS)})
    add_metrics(tmp_path, "stage2", {SPEC: entry(0.6)})
    found = read_metrics(tmp_path)
    assert {name: models["stage2"]["mAP"] for name, models in found.items()} == {
        SPEC: 0.6,
        f"{SPEC} (no-cameras, 01234567)": 0.7,
    }


def test_a_file_of_an_earlier_version_is_sorted_out(tmp_path: Path) -> None:
    mixed = {SPEC: {"zero-shot": entry(0.6, "cross-camera", None), "stage2": entry(0.7, "no-cameras", None)}}
    (tmp_path / "metrics.json").write_text(json.dumps(mixed))
    found = read_metrics(tmp_path)
    assert {name: list(models) for name, models in found.items()} == {
        SPEC: ["zero-shot"],
        f"{SPEC} (no-cameras)": ["stage2"],
    }
    plain = {SPEC: {"zero-shot": {"mAP": 0.1}, "stage2": {"mAP": 0.2}}}  # nothing is known: nothing is doubted
    for models in plain.values():
        for each in models.values():
            each.update(mINP=0.1, rank1=0.1, rank5=0.1, rank10=0.1)
    (tmp_path / "metrics.json").write_text(json.dumps(plain))
    assert read_metrics(tmp_path) == plain


ENTRIES = st.builds(
    entry,
    st.floats(0, 1),
    st.sampled_from(["no-cameras", "cross-camera", "market1501", "my own"]),
    st.sampled_from([NONE, CAMERAS, "a" * 16]),
)


@settings(deadline=None)  # it writes files
@given(st.lists(st.tuples(st.sampled_from(["zero-shot", "stage2"]), ENTRIES), max_size=8), st.booleans())
def test_below_one_name_everything_is_alike_and_nothing_else_is_lost(
    added: list[tuple[str, dict[str, Any]]], val: bool
) -> None:
    from tempfile import TemporaryDirectory

    name = SPEC + " (val)" * val
    with TemporaryDirectory() as scratch:
        for model, each in added:
            add_metrics(Path(scratch), model, {name: each})
        found = read_metrics(Path(scratch))
    for below in found.values():
        assert all(alike(a, b) for a, b in combinations(below.values(), 2))
    assert {parted(below)[0] for below in found} <= {SPEC}
    last = {(model, each["protocol"], each["fingerprint"]): each["mAP"] for model, each in added}
    kept = {(m, e["protocol"], e["fingerprint"]): e["mAP"] for models in found.values() for m, e in models.items()}
    assert kept == last


def test_remarks_are_ours_and_brackets_in_names_are_not() -> None:
    assert parted(f"{SPEC} (val)") == (SPEC, " (val)")
    assert parted(f"{SPEC} (2)") == (f"{SPEC} (2)", "")
    assert parted(f"{SPEC} (2) (cross-camera, 01234567)") == (f"{SPEC} (2)", " (cross-camera, 01234567)")
    assert [remark_of(SPEC + r) for r in ("", " (val)", " (cuhk03, 01234567)", " (2)")] == ["", "val", "cuhk03", ""]


def test_columns_of_several_runs_are_alike_too(tmp_path: Path) -> None:
    for name, each in (("one", entry(0.5)), ("two", entry(0.9, "cross-camera", CAMERAS, pattern="identity/cam"))):
        folder = tmp_path / name
        folder.mkdir()
        config = {"clipreid": "1", "method": "clip_reid", "backbone": {"name": "tiny-clip"}, "run": {"data": [SPEC]}}
        (folder / "config.json").write_text(json.dumps(config))
        add_metrics(folder, "stage2", {SPEC: each})
    rows, _ = read_rows([tmp_path / "one", tmp_path / "two"])
    assert columns_of(rows) == [SPEC, f"{SPEC} (cross-camera)"]
    assert all(row.in_domain(column) for row, column in zip(rows, columns_of(rows), strict=True))
    table = matrix_table(rows)
    assert [line.split()[-2:] for line in table.splitlines() if "stage2" in line] == [["50.0*", "-"], ["-", "90.0*"]]
    fill = commands(rows)
    assert any("--protocol cross-camera --pattern identity/cam" in line for line in fill)


def test_a_fingerprint_is_that_of_images_and_labels_wherever_they_lie() -> None:
    def split(folder: str, camera: int, names: str = "ab") -> Split:
        image = [{"path": f"{folder}/{name}.png"} for name in names]
        return Split.from_columns("test", image, list(names), [camera] * len(names))

    same = pair_fingerprint(split("/a", 1), split("/a", 2))
    assert same == pair_fingerprint(split("/b", 1, "ba"), split("/b", 2))
    others = [
        (split("/a", 2), split("/a", 1)),
        (split("/a", -1), split("/a", -1)),
        (split("/a", 1, "abc"), split("/a", 2)),
    ]
    assert same not in [pair_fingerprint(*pair) for pair in others]
    dressed = Split.from_columns(
        "test", [{"path": "/a/a.png"}, {"path": "/a/b.png"}], ["a", "b"], [1, 1], clothes=["x", ""]
    )
    assert pair_fingerprint(dressed, split("/a", 2)) != same


def test_similarities_in_a_cone_are_told_apart() -> None:
    assert similarity_digits([0.9, 0.4, 0.1]) == 2
    assert similarity_digits([0.99812, 0.99815, 0.99847, 0.9995]) == 5
    assert similarity_digits([1.0, 1.0]) == 2
    assert similarity_digits([]) == 2
    assert similarity_digits([1.0, 1.0 - 1e-9], least=4) == 6


def test_figures_with_copies_counted_are_others() -> None:
    junk, counted = entry(0.5, copies="junk"), entry(0.9, copies="counted")
    assert alike(junk, entry(0.6, copies="junk"))
    assert alike(junk, entry(0.6))
    assert not alike(junk, counted)
    assert place(SPEC, counted, {SPEC: {"zero-shot": junk}}) != SPEC


def test_the_name_and_the_matrix_say_that_copies_were_counted(tmp_path: Path) -> None:
    config = {"clipreid": "1", "method": "clip_reid", "backbone": {"name": "tiny-clip"}, "run": {"data": [SPEC]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    counted = f"{SPEC} (no-cameras, copies counted)"
    assert add_metrics(tmp_path, "stage2", {SPEC: entry(0.9, copies="counted")}) == {SPEC: counted}  # the first of all
    for model in ("zero-shot", "stage2"):
        assert add_metrics(tmp_path, model, {SPEC: entry(0.5, copies="junk")}) == {SPEC: SPEC}
    assert add_metrics(tmp_path, "stage2", {SPEC: entry(0.8, copies="counted")}) == {SPEC: counted}
    found = read_metrics(tmp_path)
    assert {name: sorted(models) for name, models in found.items()} == {
        SPEC: ["stage2", "zero-shot"],
        counted: ["stage2"],
    }
    assert parted(counted) == (SPEC, " (no-cameras, copies counted)")
    assert remark_of(counted) == "no-cameras"
    others = entry(0.7, copies="counted", fingerprint=CAMERAS)
    assert add_metrics(tmp_path, "stage2", {SPEC: others}) == {SPEC: counted[:-1] + ", 01234567)"}
    assert read_metrics(tmp_path) == found | {counted[:-1] + ", 01234567)": {"stage2": others}}
    tagged = {f"{SPEC} (no-cameras, 01234567)": {"stage2": entry(0.9, copies="counted")}}
    assert list(sorted_out(tagged)) == [counted]  # and no name that nothing is below
    rows, _ = read_rows([tmp_path])
    assert rows[-1].figures[SPEC]["mAP"] == 0.5
    assert rows[-1].figures[counted]["mAP"] == 0.8
    assert any("--protocol no-cameras --count-copies" in line for line in commands(rows))
