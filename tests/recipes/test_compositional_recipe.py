"""`recipes/compositional.py`: its table is that of choices made one by one, and what it cannot ask is refused."""

from collections import defaultdict
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tyro
from launching import load_recipe

import clipreid
from clipreid.data import load_data
from clipreid.data.synthetic import SETS
from clipreid.data.synthetic.street import Part
from clipreid.errors import UserError

NAME = "synthetic:captions"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("compositional")


@pytest.fixture(autouse=True)
def few_people(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path))
    parts = {name: Part(2500, 8, cameras=2) for name in ("query", "gallery")}
    monkeypatch.setitem(SETS, NAME, replace(SETS[NAME], parts=parts))


def parse(recipe: ModuleType, *args: object) -> Any:
    words = [*map(str, args), "--threads", "1"]
    return tyro.cli(recipe.Compositional, args=words, config=(tyro.conf.OmitArgPrefixes,))


def test_the_table_is_that_of_choices_made_one_by_one(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    config, model = parse(recipe), clipreid.load("tiny-clip")
    rows = {row["kind"]: row for row in recipe.rows_of(model, config)}
    gallery = load_data(NAME).splits["gallery"]
    images = [np.asarray(gallery.image(row)) for row in range(len(gallery))]
    images += [image[:, ::-1] for image in images]  # and in a mirror
    found = defaultdict(lambda: defaultdict(list))  # type: ignore[var-annotated]
    for choice in recipe.asked_of(config):
        pixels = model.crops(np.ascontiguousarray(images[choice.row].transpose(2, 0, 1))[None])
        image, text = model.embed_parts(pixels)["projection"], model.embed_text([choice.true, choice.false])
        found[choice.kind][choice.answer].append(float(image[0] @ text[0] > image[0] @ text[1]))
    assert found.keys() == rows.keys()
    for kind, answers in found.items():
        assert rows[kind]["choices"] == sum(map(len, answers.values()))
        share = np.mean([np.mean(each) for each in answers.values()])
        assert float(str(rows[kind]["right"]).split("%")[0]) == pytest.approx(100 * share, abs=0.06), kind
    recipe.main(config)
    told = capsys.readouterr().out
    assert "tiny-clip on synthetic:captions (gallery), chance 50%" in told
    assert "colour *" in told
    assert "with or without *" not in told


def test_what_cannot_be_asked_is_refused(recipe: ModuleType) -> None:
    with pytest.raises(UserError, match=r"--data market1501:x --split gallery: true sentences .* synthetic:captions"):
        recipe.main(parse(recipe, "--data", "market1501:x"))
    with pytest.raises(UserError, match=r"--split train: .*synthetic:captions \(query, gallery\)"):
        recipe.main(parse(recipe, "--split", "train"))
    with pytest.raises(UserError, match="no text tower"):
        recipe.main(parse(recipe, "--run", "colour"))
