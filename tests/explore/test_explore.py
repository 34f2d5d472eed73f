"""What is said about learned prompts must be true where the truth is planted, and nothing where there is none."""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clipreid import explore
from clipreid.backbones import load_backbone
from clipreid.data import Split, load_data
from clipreid.data.synthetic.people import COLOURS, caption
from clipreid.errors import UserError
from clipreid.explore.ablate import ablated
from clipreid.explore.bank import SHUFFLED, deal, order_by
from clipreid.explore.crops import rows_of
from clipreid.hub import CONFIG, backbone_record, save_identities
from clipreid.reports.thumbnails import overlay_attention

WORDS = ("red", "striped", "yellow", "coat")
NAMES = ["anna", "bert", "carl", "dora", "emil", "fred"]
FAMILIES = ("tiny-clip", "tiny-siglip2")


@cache
def backbone(name: str = "tiny-clip"):
    return load_backbone(name)


def embeddings(words: list[str], name: str = "tiny-clip") -> Tensor:
    """[V, W]."""
    found = explore.vocabulary(backbone(name))
    return backbone(name).text.embeddings.token_embedding.weight.detach()[[found[word] for word in words]]


@cache
def random_prompts(name: str = "tiny-clip") -> explore.Learned:
    tokens = 0.3 * torch.randn(len(NAMES), 4, 128, generator=torch.Generator().manual_seed(1))
    return explore.learned_prompts(backbone(name), tokens, NAMES)


def split_of(identities: list[str], cameras: list[int]) -> Split:
    image = Image.new("RGB", (32, 64), "red")
    import io

    file = io.BytesIO()
    image.save(file, "PNG")
    images = [{"path": f"{i}.png", "bytes": file.getvalue()} for i in range(len(identities))]
    return Split.from_columns("train", images, identities, cameras)


# ---- reading tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_words_in_the_place_of_tokens_say_what_the_sentence_says(name: str) -> None:
    learned = random_prompts(name)
    said = learned.read(embeddings(list(WORDS), name)[None])
    assert torch.allclose(said, learned.model.embed_text([f"a photo of a {' '.join(WORDS)} person."]), atol=1e-5)
    shorter = learned.read(embeddings(list(WORDS[:2]), name)[None])
    assert torch.allclose(shorter, learned.model.embed_text(["a photo of a red striped person."]), atol=1e-5)
    assert torch.allclose(learned.read(learned.tokens), learned.bank, atol=1e-6)


def test_more_tokens_than_were_learned_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4"):
        random_prompts().read(torch.zeros(1, 5, 128))


# ---- words


def test_planted_words_are_found() -> None:
    tokens = 3 * embeddings(list(WORDS)).expand(2, 4, 128)
    learned = explore.learned_prompts(backbone(), tokens, ["a", "b"])
    found = explore.nearest_words(learned, [0, 1], top=2)
    assert found.words[:, :, 0].tolist() == [list(WORDS)] * 2
    assert np.allclose(found.cosine[:, :, 0], 1, atol=1e-5)
    assert (found.cosine[:, :, 1] < 0.9).all()
    assert explore.chance_cosine(learned) < 0.5


def test_vocabulary_has_whole_words_only() -> None:
    found = explore.vocabulary(backbone())
    assert {"red", "striped", "person"} <= found.keys()
    assert all(word.isalpha() and len(word) > 2 for word in found)


def test_true_words_are_counted_against_those_of_others() -> None:
    words = np.array([["red", "coat"], ["blue", "coat"]])
    captions = ["a person in a red coat", "a person in blue shorts"]
    found = explore.said_truly(words, captions)
    assert found == {"own": 3 / 4, "others": 1 / 4}  # red coat, blue; of the other two coat is said of the first
    assert explore.said_truly(words, captions, among=["red", "blue"]) == {"own": 1.0, "others": 0.0}


# ---- probes


def planted(count: int = 120, values: int = 4, noise: float = 0.3) -> tuple[Tensor, np.ndarray]:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % values
    features = F.one_hot(labels, values).float() @ torch.randn(values, 24, generator=rng)
    return features + noise * torch.randn(count, 24, generator=rng), np.array([f"v{i}" for i in labels.tolist()])


def test_probe_reads_planted_values_and_not_shuffled_ones() -> None:
    features, truth = planted()
    assert explore.probe(features, truth) > 0.95
    (row,) = explore.probe_table({"bank": features}, {"what": truth})
    assert row["bank"] > 0.95
    assert row["values"] == 4
    assert abs(row[SHUFFLED] - 0.25) < 0.12


def test_probe_does_not_see_kin_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    kin = np.repeat(np.arange(40), 3)
    features = torch.from_numpy(rng.normal(size=(40, 60))[kin] + 0.05 * rng.normal(size=(120, 60))).float()
    truth = rng.choice(["a", "b"], 40)[kin]  # of the family, and no more than the family can be seen
    assert explore.probe(features, truth) > 0.8
    assert explore.probe(features, truth, kin) < 0.7


def test_unknown_values_are_left_out() -> None:
    features, truth = planted()
    more = torch.cat([features, 100 * torch.ones(10, 24)])
    assert explore.probe(more, [*truth, *[""] * 10]) == explore.probe(features, truth)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.01, 100), st.floats(-10, 10))
def test_probe_does_not_depend_on_scale_and_origin(scale: float, shift: float) -> None:
    features, truth = planted(40)
    assert abs(explore.probe(scale * features.double() + shift, truth) - explore.probe(features, truth)) < 0.05


def test_probe_of_a_single_value_is_refused() -> None:
    with pytest.raises(UserError, match="two values"):
        explore.probe(torch.randn(10, 3), ["a"] * 10)


def test_dealing_keeps_families_whole() -> None:
    kin = [0, 0, 0, 1, 1, 1, 2, 3]
    truth = ["a", "a", "b", "c", "c", "d", "e", "f"]
    for seed in range(5):
        dealt = deal(truth, kin, np.random.default_rng(seed)).tolist()
        assert sorted(dealt) == sorted(truth)
        assert {tuple(dealt[:3]), tuple(dealt[3:6])} == {("a", "a", "b"), ("c", "c", "d")}


def test_order_puts_equal_values_together_and_unknown_ones_last() -> None:
    values = np.array(["b", "", "a", "b", "a"])
    assert values[order_by(values, torch.randn(5, 3))].tolist() == ["a", "a", "b", "b", ""]


def test_means_are_of_their_own_rows() -> None:
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 9.0]])
    found = explore.mean_by(features, ["x", "y", "x", "nobody"], ["y", "x"])
    assert torch.equal(found, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(UserError, match="'z'"):
        explore.mean_by(features, ["x", "y", "x", "y"], ["x", "z"])


# ---- interpolation and ablation


@pytest.mark.parametrize("name", FAMILIES)
def test_interpolation_ends_at_the_identities_own_texts(name: str) -> None:
    learned = random_prompts(name)
    way = explore.interpolate(learned, 1, 4, steps=5)
    assert torch.allclose(way[[0, -1]], learned.bank[[1, 4]], atol=1e-6)
    assert torch.allclose(way, explore.interpolate(learned, 4, 1, steps=5).flip(0), atol=1e-5)
    assert not torch.allclose(way[2], way[0], atol=1e-2)


@pytest.mark.parametrize("by", ["mean", "neutral", "drop"])
@pytest.mark.parametrize("name", FAMILIES)
def test_taking_no_token_away_changes_nothing_and_all_leaves_one_sentence(name: str, by: str) -> None:
    learned = random_prompts(name)
    assert torch.allclose(ablated(learned, [], by), learned.bank, atol=1e-6)  # type: ignore[arg-type]
    nobody = ablated(learned, range(4), by)  # type: ignore[arg-type]
    assert torch.allclose(nobody, nobody[:1].expand_as(nobody), atol=1e-5)
    said = {"neutral": "a photo of a x x x x person.", "drop": "a photo of a person."}
    if by in said:
        assert torch.allclose(nobody[:1], learned.model.embed_text([said[by]]), atol=1e-5)


def test_ablation_finds_the_token_that_carries_everything() -> None:
    tokens = torch.zeros(6, 4, 128) + embeddings(["person"])
    tokens[:, 2] = embeddings(["red", "blue", "green", "yellow", "black", "white"])
    learned = explore.learned_prompts(backbone(), tokens, NAMES)
    rows = explore.ablation(learned, learned.bank, NAMES, "mean")
    assert [row["without"] for row in rows] == ["none", "1", "2", "3", "4", "all"]
    found = [row["mAP"] for row in rows]
    assert found[0] == found[1] == found[2] == found[4] == 1
    assert found[3] < 0.5
    assert found[5] < 0.5
    assert rows[0]["similarity"] == pytest.approx(1)


def test_a_token_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="from 0 to 3"):
        ablated(random_prompts(), [4])
    with pytest.raises(UserError, match="mean, neutral, drop"):
        ablated(random_prompts(), [0], "nothing")  # type: ignore[arg-type]


# ---- run folders


def stage1_folder(folder: Path, tokens: Tensor, bank: Tensor, noun: str = "person") -> Path:
    folder.mkdir()
    record = backbone_record(backbone(), "bicubic") | {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    config = {"clipreid": "0", "method": "clip_reid", "config": {}, "stages": ["stage1"], "finished": False}
    config |= {"backbone": record, "data": {"names": ["synthetic"], "noun": noun}}
    (folder / CONFIG).write_text(json.dumps(config))
    save_identities(folder, {"prompts": tokens, "text_bank": bank}, NAMES)
    return folder


def test_prompts_of_a_run_folder_are_those_that_were_saved(tmp_path: Path) -> None:
    learned = random_prompts()
    opened = explore.open_prompts(stage1_folder(tmp_path / "run", learned.tokens, 7 * learned.bank))
    assert opened.names == NAMES
    assert torch.equal(opened.tokens, learned.tokens)
    assert torch.allclose(opened.bank, learned.bank, atol=1e-6)
    assert (opened.model.mean, opened.model.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert opened.model.interpolation == "bilinear"


def test_prompts_that_do_not_give_their_bank_are_refused(tmp_path: Path) -> None:
    learned = random_prompts()
    with pytest.raises(UserError, match="not the backbone"):
        explore.open_prompts(stage1_folder(tmp_path / "run", learned.tokens, learned.bank.roll(1, 0)))


def trained_folder(folder: Path, names: list[str], flags: dict[str, Any]) -> Path:
    folder.mkdir()
    config = {"clipreid": "0", "method": "clip_reid", "data": {"names": flags["data"]}, "run": flags}
    (folder / CONFIG).write_text(json.dumps(config))
    save_identities(folder, {"prompts": torch.zeros(len(names), 4, 8)}, names)
    return folder


def test_images_are_those_that_the_run_was_trained_on(tmp_path: Path) -> None:
    explore.write_folder({"train": split_of(["bus_0001", "bus_0002"] * 2, [1, 1, 2, 2])}, tmp_path / "buses")
    spec, names = f"folder:{tmp_path / 'buses'}", ["bus_0001", "bus_0002"]
    data = explore.training_data(trained_folder(tmp_path / "run", names, {"data": [spec], "test": ["synthetic"]}))
    assert data.name == spec
    assert sorted(data.splits["train"].identities.tolist()) == sorted(names * 2)
    assert len(explore.images_of(data.splits["train"], "bus_0002")) == 2
    (tmp_path / "buses").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="does not exist"):
        explore.training_data(tmp_path / "run")
    assert len(explore.training_data(tmp_path / "run", [f"folder:{tmp_path / 'moved'}"]).splits["train"]) == 4


def test_other_images_than_those_of_the_run_are_refused(tmp_path: Path) -> None:
    explore.write_folder({"train": split_of(["0001", "0002"] * 2, [1, 1, 2, 2])}, tmp_path / "crops")
    spec = f"folder:{tmp_path / 'crops'}"
    with pytest.raises(UserError, match="no '0003'"):
        explore.training_data(trained_folder(tmp_path / "run", ["0001", "0003"], {"data": [spec]}))


def test_several_sets_are_called_as_their_prompts(tmp_path: Path) -> None:
    for name in ("here", "there"):
        explore.write_folder({"train": split_of(["0001", "0002"] * 2, [1, 1, 2, 2])}, tmp_path / name)
    specs, names = [f"folder:{tmp_path / name}" for name in ("here", "there")], ["here/0001", "there/0001"]
    data = explore.training_data(trained_folder(tmp_path / "run", names, {"data": specs, "pattern": None}))
    train = data.splits["train"]
    assert data.name == " + ".join(specs)
    assert set(train.identities) == {"here/0001", "here/0002", "there/0001", "there/0002"}
    assert set(train.cameras[train.identities == "there/0001"]) == {4, 5}
    assert train.image(7).size == (32, 64)


def test_folders_without_prompts_say_so(tmp_path: Path) -> None:
    folder = stage1_folder(tmp_path / "run", random_prompts().tokens, random_prompts().bank, "person, vehicle")
    with pytest.raises(UserError, match="noun="):
        explore.open_prompts(folder)
    save_identities(folder, {"classifier": torch.zeros(2)}, NAMES)
    with pytest.raises(UserError, match="--prompts none"):
        explore.open_prompts(folder)
    (folder / "identities.safetensors").unlink()
    with pytest.raises(UserError, match="clipreid_stage1"):
        explore.open_prompts(folder)


# ---- people, folders


def test_attributes_are_those_of_the_captions() -> None:
    names = [f"{i:04d}" for i in range(40)]
    people = explore.synthetic_people(names, "synthetic")
    truth = explore.true_attributes(people)
    for i, person in enumerate(people):
        said = caption(person, angle=np.pi / 2)
        assert all(truth[key][i] in said for key in ("top", "top_colour", "bottom", "shoes_colour"))
        assert (truth["hat_colour"][i] == "") == (person.hat == "none")
    assert set(truth["top_colour"]) <= set(COLOURS)


def test_families_are_look_alikes() -> None:
    kin = explore.families([f"{i:04d}" for i in range(12)], "synthetic")
    assert kin[0] == kin[1] == kin[2] != kin[6] == kin[7] == kin[8]
    assert len(set(kin.tolist())) == 2 + 6
    assert len(set(explore.families(["2100", "2101"], "synthetic:captions").tolist())) == 2


@pytest.mark.parametrize("known", [explore.synthetic_people, explore.families])
@pytest.mark.parametrize("name", ["bus_0001", "7", "0600", "-1", "¹"])
def test_who_is_not_of_the_street_is_not_made_up(known: Callable[..., Any], name: str) -> None:
    with pytest.raises(UserError, match=f"nobody in synthetic is called '{name}'"):
        known(["0002", name], "synthetic")
    with pytest.raises(UserError, match="no synthetic set"):
        known(["0002"], "market1501:/pictures")  # there is a 0002 in both


def test_few_images_are_of_different_cameras() -> None:
    split = split_of(["b"] * 4 + ["a"] * 4, [1, 1, 2, 2, 5, 5, 5, 6])
    kept = explore.few(split, 2)
    assert kept.identities.tolist() == ["a", "a", "b", "b"]
    assert kept.cameras.tolist() == [5, 6, 1, 2]
    assert explore.few(split, 9, identities=1).identities.tolist() == ["a"] * 4
    with pytest.raises(UserError, match="'c'"):
        rows_of(split, "c")


@pytest.mark.parametrize("cameras", [[1, 2, 1, 2], [-1, 2, 1, 2]])
def test_a_written_folder_reads_as_the_same_people(tmp_path: Path, cameras: list[int]) -> None:
    split = split_of(["anna", "anna", "0000", "0000"], cameras)
    others = split_of(["bert", "bert", "0001", "0001"], cameras)
    assert explore.write_folder({"train": split, "test": others}, tmp_path / "crops") == 8
    read = load_data(f"folder:{tmp_path / 'crops'}").splits
    assert sorted(read["train"].identities.tolist()) == ["0000", "0000", "anna", "anna"]
    known = sorted(read["train"].cameras.tolist())
    assert known == (sorted(cameras) if min(cameras) > 0 else [-1] * 4)
    with pytest.raises(UserError, match="holds something"):
        explore.write_folder({"train": split}, tmp_path / "crops")


def test_names_that_are_no_folders_are_written_as_in_a_url(tmp_path: Path) -> None:
    names = ["here/0001", "here/0002", "../../escaped", ".hidden", "Zoë"]
    split = split_of([name for name in names for _ in range(2)], [1, 2] * len(names))
    explore.write_folder({"train": split}, tmp_path / "in" / "side")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    read = load_data(f"folder:{tmp_path / 'in' / 'side'}", pattern="identity/cam").splits["train"]
    written = ["here%2F0001", "here%2F0002", "%2E.%2F..%2Fescaped", "%2Ehidden", "Zoë"]
    assert sorted(read.identities.tolist()) == sorted(2 * written)
    with pytest.raises(UserError, match="an image without identity"):
        explore.write_folder({"train": split_of(["", ""], [1, 2])}, tmp_path / "nobody")
    assert not (tmp_path / "nobody").exists()


def test_a_folder_is_there_when_it_is_whole_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, image = split_of(["anna", "anna", "bert"], [1, 2, 1]), Split.image

    def interrupted(split: Split, index: int) -> Image.Image:
        if index == 2:
            raise KeyboardInterrupt
        return image(split, index)

    monkeypatch.setattr(Split, "image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explore.write_folder({"train": split}, tmp_path / "crops")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "crops").mkdir()  # an empty one is taken
    assert explore.write_folder({"train": split}, tmp_path / "crops") == 3
    assert [file.name for file in tmp_path.iterdir()] == ["crops"]


# ---- images


def test_probe_image_shows_the_figures() -> None:
    rows = [{"attribute": "hat", "values": 4, "bank": 0.5, SHUFFLED: 0.25}]
    lines = {line.get_label(): line.get_xdata()[0] for line in explore.draw_probe(rows).axes[0].lines}
    assert lines["bank"] == 50
    assert lines["floor: shuffled values"] == 25


def test_similarity_image_is_ordered_and_leaves_the_unknown_out() -> None:
    features, values = torch.randn(6, 4), np.array(["b", "a", "", "b", "a", "a"])
    axes = explore.draw_similarity(features, values).axes[0]
    assert axes.images[0].get_array().shape == (5, 5)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_trade_off_image_shows_both_domains() -> None:
    points = [{"in-domain": 0.2, "cross-domain": 0.6}, {"in-domain": 0.5, "cross-domain": 0.4}]
    dial = explore.line_of("dial", points, ["0", "1"])
    axes = explore.draw_tradeoff([dial, explore.line_of("plain", [{"in-domain": 0.3, "cross-domain": 0.3}])]).axes[0]
    first, second = axes.lines
    assert np.allclose(np.stack(first.get_data()), [[20, 50], [60, 40]])
    assert np.allclose(np.stack(second.get_data()), [[30], [30]])
    assert [text.get_text() for text in axes.texts] == ["0", "1"]


def test_every_line_bank_and_table_is_drawn_however_many() -> None:
    names = [f"model {n}" for n in range(12)]
    lines = explore.draw_tradeoff([explore.line_of(name, [{"in-domain": 0.1, "cross-domain": 0.2}]) for name in names])
    probe = explore.draw_probe([{"attribute": "top", "values": 3, SHUFFLED: 0.3} | dict.fromkeys(names, 0.5)])
    bars = explore.draw_ablation({name: [{"without": "none", "mAP": 0.5}] for name in names})
    for figure in (lines, probe, bars):
        legends = [*figure.legends, *[axes.get_legend() for axes in figure.axes if axes.get_legend()]]
        assert set(names) <= {text.get_text() for legend in legends for text in legend.get_texts()}
    marks = {(line.get_color(), line.get_marker()) for line in lines.axes[0].lines}
    assert len(marks) == len(names)


def test_rows_map_and_ablation_are_drawn(tmp_path: Path) -> None:
    crop = Image.new("RGB", (32, 64), "blue")
    figure = explore.draw_rows([explore.Row("anna\nred", [crop, crop], ["✓"]), explore.Row("bert", [crop])])
    figure.savefig(tmp_path / "rows.png")
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == "✓"
    with pytest.raises(UserError, match="nothing to draw"):
        explore.draw_rows([])
    spots = explore.draw_map(torch.randn(4, 2), ["x", "y", "x", ""]).axes[0].collections
    assert [len(spot.get_offsets()) for spot in spots] == [2, 1]
    rows = [{"without": "none", "mAP": 0.7}, {"without": "1", "mAP": 0.4}]
    bars = explore.draw_ablation({"mean": rows, "drop": rows}).axes[0].patches
    assert [round(bar.get_height()) for bar in bars] == [70, 40, 70, 40]


def test_drawing_leaves_the_users_settings_alone() -> None:
    from matplotlib import rcParams

    before = dict(rcParams)
    explore.draw_map(torch.randn(2, 2), ["x", "y"])
    assert dict(rcParams) == before


def test_looks_glow_where_the_model_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_prompts().model
    crop = Image.new("RGB", (64, 128), "grey")
    (found,) = model.attention_maps(model.crops([crop]))
    rows, columns = found.shape
    planted = torch.zeros(2, rows, columns)
    planted[0, 0, 0] = planted[1, -1, -1] = 1
    monkeypatch.setattr(type(model), "attention_maps", lambda model, crops: planted[: len(crops)])
    for glowing, bright in zip(explore.looks(model, [crop, crop]), [(0, 0), (-1, -1)], strict=True):
        small = np.asarray(glowing.convert("L").resize((columns, rows), Image.Resampling.BOX), dtype=float)
        assert np.unravel_index(small.argmax(), small.shape) == (bright[0] % rows, bright[1] % columns)
        assert small[bright] > 1.5 * np.median(small)


def test_looks_are_those_of_the_model_at_these_images() -> None:
    model = random_prompts().model
    crops = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (128, 64, 3), np.uint8)) for i in range(2)]
    maps = model.attention_maps(model.crops(crops))
    for crop, share, glowing in zip(crops, maps, explore.looks(model, crops), strict=True):
        assert glowing.tobytes() == overlay_attention(crop, share.numpy()).tobytes()
        assert glowing.tobytes() != crop.resize(glowing.size, Image.Resampling.LANCZOS).tobytes()


def test_hover_map_holds_every_crop_and_needs_no_script() -> None:
    crop = Image.new("RGB", (32, 64), "blue")
    page = explore.hover_map(torch.randn(3, 2), [crop] * 3, ["<a>", "b", "c"], ["red"] * 3)
    assert page.count("data:image/jpeg;base64,") == 3
    assert "&lt;a&gt;" in page
    assert "<script" not in page
    assert "http" not in page


def test_plane_keeps_what_lies_in_two_directions() -> None:
    flat = torch.randn(20, 2) * torch.tensor([3.0, 1.0])
    turned = flat @ torch.linalg.qr(torch.randn(5, 5))[0][:2]
    found = explore.plane(turned)
    assert torch.allclose(torch.cdist(found, found), torch.cdist(flat, flat), atol=1e-4)


def test_slider_and_what_remains_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slider = explore.browse(lambda i: i, 7).children[0]
    assert (slider.min, slider.max) == (0, 6)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.warns(UserWarning, match="pip install ipywidgets"):
        assert explore.browse(lambda i: -i, 7, start=3) == -3
