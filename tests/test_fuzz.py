"""What others wrote, damaged at random: it is read, or refused with a `UserError`; images that cannot be decoded get a
reason. Nothing else may come out. 200 cases in the quick suite, 400 other ones
with `-m slow`, and `CLIPREID_FUZZ=2500 pytest -m slow tests/test_fuzz.py` draws 10,000 anew (half an hour)."""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipreid.data import load_data
from clipreid.data.cache import decode
from clipreid.data.images import check_images
from clipreid.errors import UserError
from clipreid.evaluation.folds import folds_table
from clipreid.evaluation.matrix import matrix_table, read_rows
from clipreid.hub import check_run
from clipreid.hub.calibrated import read_calibration
from clipreid.hub.files import CALIBRATION, CONFIG, METRICS, read_metrics
from clipreid.reports.training_curves import draw_curves, read_losses
from clipreid.search import Gallery

sys.path.insert(0, str(Path(__file__).parent / "search"))
from galleries import unit, write_gallery

QUICK = 50  # cases of each kind
FIGURES = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), 0.5)
RUN: dict[str, Any] = {  # the files of a run folder, as training, evaluate and calibrate leave them
    CONFIG: {
        "clipreid": "0.2.0", "method": "clip_reid", "finished": True, "stages": ["stage1", "stage2"], "training": None,
        "config": {"tuning": "lora", "lora_rank": 4, "rate": 1e-4, "cameras": [0, 1], "milestones": [3]},
        "backbone": {
            "name": "tiny-clip", "revision": None, "image_size": [64, 32], "positions": "bicubic", "stride": None,
            "raw_logits": False, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic",
            "print": "0" * 16,
        },
        "run": {"data": ["synthetic"], "test": [], "pattern": None, "columns": None, "unknown": [], "seed": 0},
        "data": {"names": ["synthetic"], "noun": "person", "images": 8, "identities": 2},
        "offsets": {"synthetic": [0, 0]}, "content": {"labels": "0" * 8}, "machine": {"threads": 2, "torch": "2.6"},
        "fingerprint": {"synthetic": {"train": {"images": 8, "identities": 2, "cameras": 2, "hash": "0" * 16}}},
    },
    METRICS: {
        "synthetic": {
            "zero-shot": FIGURES,
            "stage2": FIGURES | {
                "protocol": "market1501", "counts": {"queries": 8, "valid_queries": 8, "gallery": 9},
                "cmc": [0.4, 0.5], "intervals": {name: [0.4, 0.6] for name in FIGURES}, "fingerprint": "0" * 16,
            },
        }
    },
    CALIBRATION: {
        "clipreid": "0.2.0", "model": "0" * 24, "strength": 1.0, "image_size": [64, 32], "data": "synthetic",
        "protocol": "market1501", "threshold": 0.5, "prior": 0.01, "shown": "logistic",
        "logistic": {"slope": 9.0, "intercept": -4.0},
        "isotonic": {"similarity": [0.1, 0.5], "probability": [0.1, 0.9]}, "fitted": {"identities": 9},
        "measured": {"false_match": 0.01, "missed": 0.1, "strangers": 0.1, "identities": 9, "gallery": 20},
    },
}  # fmt: skip
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=9),
    st.sampled_from(["\0", "x" * 2000, 10**400, [], {}, [[]], {"": None}, ["../x"], "../x", "/", "synthetic:\0", -1]),
)  # fmt: skip


def change(value: Any, data: st.DataObject) -> Any:
    """A copy of a JSON value in which one thing, however deep, is replaced, removed or added."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = data.draw(st.sampled_from(keys)), value.copy()
        match data.draw(st.integers(0, 9)):
            case 0:
                del copy[key]
            case 1 if isinstance(copy, dict):
                copy[data.draw(st.text(max_size=5))] = data.draw(ODD)
            case 1:
                copy.append(data.draw(ODD))
            case _:
                copy[key] = change(copy[key], data)
        return copy
    return data.draw(ODD)


def damage(content: bytes, data: st.DataObject) -> bytes:
    """The bytes with some changed, removed or doubled, and maybe cut off."""
    found = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(found) - 1)))
        match data.draw(st.integers(0, 3)):
            case 0 | 1 if found:
                found[at] = data.draw(st.integers(0, 255))
            case 2:
                del found[at : at + data.draw(st.integers(1, 50))]
            case _:
                found[at:at] = found[at : at + 20] or data.draw(st.binary(max_size=9))
    return bytes(found[: data.draw(st.integers(0, len(found)))] if data.draw(st.integers(0, 3)) == 0 else found)


def allowed(*uses: Callable[[], Any]) -> None:
    """Each succeeds or refuses with a UserError."""
    for use in uses:
        with contextlib.suppress(UserError):
            use()


def noise(size: tuple[int, int]) -> Image.Image:
    """Always the same."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def run_folders(home: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*RUN, "log.jsonl"]))
    for file, content in RUN.items():
        changed = change(content, data) if file == name and data.draw(st.booleans()) else content
        encoded = json.dumps(changed).encode()
        (home / file).write_bytes(damage(encoded, data) if file == name and changed is content else encoded)
    lines = [{"stage": "stage2", "step": n, "epoch": n, "loss": 1 / n, "id_loss": 1 / n} for n in (1, 2, 3)]
    log = "\n".join(json.dumps(change(line, data) if name == "log.jsonl" else line) for line in lines).encode()
    (home / "log.jsonl").write_bytes(damage(log, data) if name == "log.jsonl" else log)
    allowed(
        lambda: check_run(home),
        lambda: read_metrics(home),
        lambda: read_calibration(home),
        lambda: matrix_table(read_rows([home])[0], "mAP"),
        lambda: folds_table([home, home / "."]),
    )
    losses = read_losses(home / "log.jsonl")  # lines that cannot be read are left out
    if name == "log.jsonl" and data.draw(st.integers(0, 9)) == 0:  # drawing is slow
        draw_curves(losses, {}, "stage2")


def galleries(home: Path, data: st.DataObject) -> None:
    file, whole = home / "g.parquet", home / "whole.parquet"
    rng = np.random.default_rng(0)
    if not whole.exists():
        write_gallery(whole, unit(rng.standard_normal((60, 8))), [40], cameras=[1, 2, 3] * 20)
    file.unlink(missing_ok=True)  # an earlier one may still be mapped
    file.write_bytes(damage(whole.read_bytes(), data))
    query = np.ones((1, 8), np.float32)

    def use() -> None:
        gallery = Gallery.open(file)
        for hit in gallery.search(query, 3)[0]:
            assert -1.001 <= hit.similarity <= 1.001
        gallery.search(query, 1, cameras=[1])

    allowed(use)


def tables(home: Path, data: st.DataObject) -> None:
    if not (home / "a.png").exists():
        noise((16, 32)).save(home / "a.png")
    cells = st.sampled_from(
        ["a.png", "", "-1", "0", "1", "2", "train", "query", "gallery", "test", "anna", '"', "nan", "1e99", "../a.png",
         "9" * 40, "é", "\t", "a\nb", ";", "x" * 300, "NULL", "  ", "c2", "0.5"]
    )  # fmt: skip
    header = data.draw(st.permutations(["image", "identity", "camera", "split", "view", "caption", "x", "y"]))
    text = io.StringIO()
    lines = csv.writer(text, delimiter=data.draw(st.sampled_from(",;\t")))
    lines.writerow(header)
    for n in range(data.draw(st.integers(0, 6))):
        sound = {"image": "a.png", "identity": f"p{n // 2}", "camera": str(n % 2), "split": "train"}
        odd = data.draw(st.sets(st.sampled_from(header), max_size=2))
        lines.writerow([data.draw(cells) if name in odd else sound.get(name, "") for name in header])
    (home / "t.csv").write_bytes(damage(text.getvalue().encode(), data))
    allowed(lambda: load_data(f"csv:{home / 't.csv'}"))


def images(home: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]))
    mode = data.draw(st.sampled_from(["RGB", "L", "P", "1"] if kind != "PPM" else ["RGB", "L"]))
    mode = "RGB" if (kind, mode) in (("JPEG", "P"), ("JPEG", "1"), ("WEBP", "P"), ("WEBP", "1")) else mode
    encoded = io.BytesIO()
    noise((24, 48)).convert(mode).save(encoded, kind)
    content = damage(encoded.getvalue(), data)
    found = decode({"path": None, "bytes": content}, (32, 16), "bicubic")
    if isinstance(found, str):
        assert found.strip()
    else:
        assert (found.shape, found.dtype) == ((3, 32, 16), np.uint8)
    (home / "image").write_bytes(content)
    allowed(lambda: check_images([home / "image"]))


KINDS = (run_folders, galleries, tables, images)


def fuzz(kind: Callable[[Path, st.DataObject], None], home: Path, cases: int, **how: Any) -> None:
    unhurried = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}

    @settings(max_examples=cases, **unhurried, **how)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        kind(home, data)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_read_or_refused(kind: Callable[[Path, st.DataObject], None], tmp_path: Path) -> None:
    fuzz(kind, tmp_path, QUICK, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage_is_read_or_refused(kind: Callable[[Path, st.DataObject], None], tmp_path: Path) -> None:
    asked = os.environ.get("CLIPREID_FUZZ")
    fuzz(kind, tmp_path, int(asked or 2 * QUICK), derandomize=asked is None)


def test_what_is_damaged_was_sound(tmp_path: Path) -> None:
    """Else every refusal would be of something else."""
    for file, content in RUN.items():
        (tmp_path / file).write_text(json.dumps(content))
    assert read_metrics(tmp_path)["synthetic"]["stage2"]["mAP"] == 0.5
    assert read_calibration(tmp_path) is not None
    with pytest.raises(UserError, match=r"adapter_model.safetensors is missing"):
        check_run(tmp_path)
