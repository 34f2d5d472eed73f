"""What is published of a run: it loads again, the card is read by the Hub's client, and nothing private is in it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from test_hub import crops, edit_config, make_run

import clipreid
from clipreid.backbones.load import WEIGHTS
from clipreid.cli import main
from clipreid.data.crops import Split
from clipreid.data.fingerprint import fingerprint
from clipreid.errors import UserError
from clipreid.hub import CONFIG, HEADS, IDENTITIES, TOWER, save_identities
from clipreid.hub.card import Facts, make_card
from clipreid.hub.curves import draw_curves, read_losses
from clipreid.hub.licences import licence_of
from clipreid.hub.package import CARD, CURVES, LISTS, METRICS, Files, package, shown_size
from clipreid.hub.public import DataNames, public_backbone

ROOT = "/srv/clients/northgate-mall/crops"
PEOPLE = ["Aurelia Quist", "Bertram Osei", "Kunigunde Vey"]
FIGURES = {"mAP": 0.4627, "mINP": 0.27, "rank1": 0.5, "rank5": 0.85, "rank10": 0.94}


def entry(**more: Any) -> dict[str, Any]:
    counts = {"queries": 30, "valid_queries": 30, "gallery": 90, "query_identities": 15}
    intervals = {name: [value - 0.04, value + 0.05] for name, value in FIGURES.items()}
    return {**FIGURES, "counts": counts, "protocol": "market1501", "intervals": intervals, **more}


def finished(
    folder: Path, weights: Path | str = "tiny-clip", tuning: Any = "lora", data: str = f"folder:{ROOT}"
) -> Path:
    """A finished run with everything that must stay at home: paths, names, checkpoints, a report with crops."""
    make_run(weights, folder, tuning)
    split = {"pictures": 3600, "identities": 3, "cameras": 2, "hash": "0123456789abcdef"}
    stage1 = {"backbone": "tiny-clip", "data": [data], "preset": "default", "seed": 0, "noun": "person",
              "image_size": [128, 64], "tokens": 4}  # fmt: skip
    more = {
        "stage1": stage1,
        "flags": {
            "backbone": "tiny-clip",
            "data": [data],
            "test": [],
            "pattern": f"{ROOT}/(?P<identity>.*)" if data.startswith("folder:") else None,
            "seed": 0,
        },
        "offsets": {data: [0, 0]},
        "fingerprint": {data: {"train": split}},
        "local": [data],
        "notes": f"what a later version keeps of {PEOPLE[0]} in {ROOT}",
    }
    edit_config(folder, lambda config: config.update(more))
    note = f"{ROOT}/{PEOPLE[0]}/1.jpg is the only picture of {PEOPLE[0]}"
    metrics = {data: {"zero-shot": entry(mAP=0.3), "stage2": entry(notes=[note])}, f"{data} (val)": {"stage2": entry()}}
    (folder / METRICS).write_text(json.dumps(metrics))
    losses = [{"stage": "stage 2", "step": n, "loss": 3.0 / n, "id_loss": 2.0 / n, "note": ROOT} for n in (1, 2, 3)]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in losses) + "\n{cut")
    save_identities(folder, {"prompts": torch.randn(3, 4, 8), "text_bank": torch.randn(3, 6)}, PEOPLE)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state.json").write_text(note)
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text(note)
    Image.new("RGB", (8, 8)).save(folder / "report" / LISTS)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished(tmp_path / "run")


def content(files: Files, name: str) -> bytes:
    found = files[name]
    return found.read_bytes() if isinstance(found, Path) else found


def clone(files: Files, folder: Path) -> Path:
    """As the repository would lie on another machine."""
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(content(files, name))
    return folder


# What is in it ----------------------------------------------------------------------------------------------------

ALWAYS = {CARD, CONFIG, METRICS, CURVES, HEADS}
WEIGHT_FILES = {"lora": {"adapter_config.json", "adapter_model.safetensors"}, "full": {TOWER}, "head": set()}


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_a_clone_of_what_is_published_gives_the_same_features(tmp_path: Path, tuning: str) -> None:
    run = finished(tmp_path / "run", tuning=tuning)
    expected = clipreid.load(run).embed(crops())
    files = package(run, "me/demo")
    assert files.keys() == ALWAYS | WEIGHT_FILES[tuning]
    copy = clone(files, tmp_path / "clone")
    assert (clipreid.load(copy).embed(crops()) - expected).abs().max() <= 1e-6
    again = package(copy, "you/demo")  # a clone is a run folder: it can be published in turn
    assert again.keys() == files.keys()
    assert content(again, CONFIG) == content(files, CONFIG)


@pytest.mark.parametrize("flags", [{}, {"include_identities": True}, {"include_crops": True}])
def test_no_uploaded_byte_tells_where_the_data_lie_or_who_is_in_them(run: Path, flags: dict[str, bool]) -> None:
    files = package(run, "me/demo", **flags)
    words = [ROOT, "northgate", "srv", str(run), str(run.parent), str(Path.home()), *PEOPLE, *" ".join(PEOPLE).split()]
    for name in files:
        for word in words:
            assert word.encode() not in content(files, name), f"{word} in {name}"
    everything = b"".join(file.read_bytes() for file in run.rglob("*") if file.is_file())
    assert all(word.encode() in everything for word in (ROOT, *PEOPLE))  # they were there to be found
    assert b"own data" in content(files, CARD)


def test_identities_only_when_asked_for_and_without_their_names(run: Path, tmp_path: Path) -> None:
    assert IDENTITIES not in package(run, "me/demo")
    files = package(run, "me/demo", include_identities=True)
    with safe_open(clone(files, tmp_path / "clone") / IDENTITIES, "pt") as handle:
        assert set(handle.keys()) == {"prompts", "text_bank"}
        assert json.loads(handle.metadata()["names"]) == ["0", "1", "2"]
    assert "are part of this repository, without their names" in content(files, CARD).decode()


def test_crops_only_when_asked_for_and_never_those_of_a_public_set(run: Path, tmp_path: Path) -> None:
    assert LISTS not in package(run, "me/demo")
    files = package(run, "me/demo", include_crops=True)
    assert content(files, LISTS) == (run / "report" / LISTS).read_bytes()
    assert f"]({LISTS})" in content(files, CARD).decode()
    (run / "report" / LISTS).unlink()
    with pytest.raises(UserError, match=r"there is no .*ranked_lists.png: draw it with clipreid evaluate .* --report"):
        package(run, "me/demo", include_crops=True)
    tested = finished(tmp_path / "market")
    (tested / METRICS).write_text(json.dumps({f"msmt17:{ROOT}": {"stage2": entry()}}))  # shown in the report, perhaps
    with pytest.raises(
        UserError, match=r"--include-crops: .* tested on msmt17. .*forbid passing their pictures on, or"
    ):
        package(tested, "me/demo", include_crops=True)
    assert package(tested, "me/demo")


def test_dry_run_needs_no_network_and_no_token_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", refuse)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    main(["publish", str(run), "me/demo", "--dry-run"])
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    shown = capsys.readouterr().out
    assert "would be uploaded to me/demo:" in shown
    assert 'clipreid.load("me/demo")' in shown
    for name, inside in package(run, "me/demo").items():
        size = len(inside.read_bytes() if isinstance(inside, Path) else inside)
        assert any(line.split()[:1] == [name] and line.endswith(shown_size(size)) for line in shown.splitlines()), name


# The card ---------------------------------------------------------------------------------------------------------


def test_the_card_is_read_by_the_hubs_own_client(run: Path, tmp_path: Path) -> None:
    card = ModelCard.load(clone(package(run, "me/demo"), tmp_path / "clone") / CARD, ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "peft"
    assert {"clipreid", "re-identification", "person-re-identification", "lora"} <= set(card.data.tags)
    found = {(result.dataset_name, result.metric_type): result for result in card.data.eval_results}
    assert len(found) == len(card.data.eval_results) == 2 * len(FIGURES)
    for data in ("own data", "own data (val)"):
        for name, value in FIGURES.items():
            assert found[data, name].metric_value == pytest.approx(value)
            expected = {"protocol": "market1501", "interval_95": [round(value - 0.04, 4), round(value + 0.05, 4)]}
            assert found[data, name].metric_args == expected


def test_the_card_says_what_it_must(run: Path) -> None:
    card = content(package(run, "me/demo"), CARD).decode()
    for words in (
        "46.3 (42.3 to 51.3)",  # with its interval
        "30 queries of 15 identities against 90 pictures",
        "| own data | train | 3,600 | 3 | 2 | `0123456789abcdef` |",
        "not** for finding out who somebody is",
        "no evidence about pedestrians",  # the backbone is a stand-in
        "personal data",
        'clipreid.load("me/demo")',
        "Licence of the backbone `tiny-clip`: `apache-2.0`",
        "resized to 128x64",
    ):
        assert words in card, words
    assert "untrained backbone has the higher mAP" not in card


def test_the_card_admits_where_training_made_it_worse(run: Path) -> None:
    (run / METRICS).write_text(json.dumps({"synthetic": {"zero-shot": entry(mAP=0.6), "stage2": entry()}}))
    assert (
        "**On synthetic the untrained backbone has the higher mAP.**" in content(package(run, "me/demo"), CARD).decode()
    )


def test_withdrawn_data_are_named_as_such(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", data=f"dukemtmc:{ROOT}")
    assert "**dukemtmc was withdrawn by its authors" in content(package(run, "me/demo"), CARD).decode()
    edit_config(run, lambda config: config.update(fingerprint={}))
    assert "kept no fingerprint" in content(package(run, "me/demo"), CARD).decode()


def test_an_imported_checkpoint_is_published_without_the_backbone_it_never_had(tmp_path: Path) -> None:
    from test_importer import published, save

    from clipreid.importer import import_checkpoint

    file = save(published(), tmp_path).rename(tmp_path / "secret-name.pth")
    import_checkpoint(file, tmp_path / "run")
    files = package(tmp_path / "run", "me/demo")
    assert files.keys() == {CARD, CONFIG, TOWER, HEADS}
    assert all(b"secret-name" not in content(files, name) for name in files)
    card = content(files, CARD).decode()
    assert "imported from a checkpoint" in card
    assert "Plain peft does not give the same features: it was imported" in card
    loaded = clipreid.load(clone(files, tmp_path / "clone"))
    assert torch.equal(loaded.embed(crops()), clipreid.load(tmp_path / "run").embed(crops()))


def test_why_plain_peft_cannot_stands_in_the_card(run: Path, tmp_path: Path) -> None:
    """`make_run` resizes positions bilinearly, which transformers does not."""
    assert (
        "Plain peft does not give the same features: its position table" in content(package(run, "a/b"), CARD).decode()
    )
    edit_config(run, lambda config: config["backbone"].update(positions="bicubic"))
    assert "Plain peft does not" not in content(package(run, "a/b"), CARD).decode()


def test_the_cards_lines_for_plain_peft_do_what_they_say(run: Path, tmp_path: Path) -> None:
    """Typed as they stand, with the clone's folder for the name on the Hub."""
    edit_config(run, lambda config: config["backbone"].update(positions="bicubic"))
    files = package(run, "me/demo")
    copy = clone(files, tmp_path / "clone")
    _, short, whole = re.findall(r"```python\n(.*?)```", content(files, CARD).decode(), re.DOTALL)
    pixels = torch.randn(2, 3, 128, 64)
    typed: dict[str, Any] = {"pixels": pixels}
    exec(short.replace("me/demo", str(copy)), typed)
    model = clipreid.load(run)
    with torch.no_grad():
        assert (typed["out"].pooler_output - model.features(pixels)["final"]).abs().max() <= 1e-4
    picture = tmp_path / "a.png"
    Image.fromarray(crops()[0].permute(1, 2, 0).numpy()).save(picture)
    exec(whole.replace("me/demo", str(copy)).replace('"a.jpg"', repr(str(picture))), typed)
    assert (typed["feature"] - model.embed([picture])).abs().max() <= 1e-4
    assert (typed["feature"] - clipreid.load(run, strength=0).embed([picture])).abs().max() > 1e-3


def test_licences_known_given_and_unknown(run: Path) -> None:
    assert licence_of("open_clip:ViT-B-16-quickgelu/openai") == ("mit", "")
    assert licence_of("hf:google/siglip2-base-patch16-256") == ("apache-2.0", "")
    assert licence_of("timm:vit_small_patch16_dinov3.lvd1689m") == ("other", "dinov3-license")
    assert licence_of("hf:somebody/clip") == ("unknown", "")
    card = ModelCard(content(package(run, "me/demo", licence="cc-by-nc-4.0"), CARD).decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert "These weights: `cc-by-nc-4.0`" in card.text
    config = json.loads(content(package(run, "me/demo"), CONFIG))
    unknown = {**config, "backbone": {**config["backbone"], "name": "hf:somebody/clip"}}
    text = make_card(Facts("me/demo", unknown, {}, "clip", None, "", "because", 8))
    assert ModelCard(text).data.license == "unknown"
    assert "unknown to clipreid: look it up" in text
    assert ModelCard(text).data.eval_results is None
    assert "It was not scored" in text


def test_curves_are_drawn_from_what_there_is(run: Path, tmp_path: Path) -> None:
    losses = read_losses(run / "log.jsonl")
    assert [len(epochs) for epochs in losses.values()] == [3]  # the line that was cut short is left out
    assert draw_curves({}, {}) is None
    assert read_losses(tmp_path / "nowhere") == {}
    share = np.linspace(0.4, 1, 20).tolist()
    pictures = [draw_curves(losses, {}), draw_curves({}, {"a": {"stage2": entry()}}),
                draw_curves(losses, {"a": {"stage2": entry(cmc=share), "zero-shot": entry()}})]  # fmt: skip
    for picture in pictures:
        assert picture is not None
        assert picture.startswith(b"\x89PNG")
    assert len(set(pictures)) == 3


# Names ------------------------------------------------------------------------------------------------------------

parts = st.text(st.characters(categories=("L", "N"), include_characters="-_ ()"), min_size=4, max_size=12)


@given(st.sampled_from(["folder", "csv", "hub", "market1501", "msmt17"]), st.lists(parts, min_size=2, max_size=4))
def test_no_part_of_a_place_is_in_a_public_name(reader: str, place: list[str]) -> None:
    path = "/" + "/".join(place)
    for name in (f"{reader}:{path}", f"{reader}:{path} (val)", f"{reader}:{path} (cross-camera)"):
        public = DataNames({"flags": {"data": [name.split(" (val)")[0]]}, "local": [f"{reader}:{path}"]}, {name: {}})(
            name
        )
        assert "/" not in public
        head = public.removesuffix(" (val)").removesuffix(" (cross-camera)")
        assert head == reader or head.rstrip(" 0123456789") == "own data"


def test_data_names_stay_apart_and_keep_our_remarks() -> None:
    config = {"flags": {"data": ["folder:a/one", "csv:two.csv"], "test": ["market1501:/data/M"]}, "local": ["hub:a/b"]}
    names = DataNames(config, {"market1501:/data/M (val)": {}, "hub:x/y": {}, "hub:a/b": {}, "folder:/x (Bob)": {}})
    assert names("folder:a/one") == "own data 1"
    assert names("csv:two.csv") == "own data 2"
    assert names("market1501:/data/M (val)") == "market1501 (val)"
    assert names("hub:x/y") == "hub:x/y"
    assert names("hub:a/b") == "own data 3"  # a folder, as training noted
    assert names("folder:/x (Bob)") == "own data 4"
    assert names("synthetic:new-cameras (val)") == "synthetic:new-cameras (val)"


@pytest.mark.parametrize(
    "name", ["hf:./clip", "hf:/w/clip", "hf:clip", "timm:vit_tiny/w.pt", "osnet:x1_0/w.pth", "open_clip:/w", "hf:a/b/c"]
)
def test_backbones_that_nobody_else_can_have_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"lies on this machine, .* --base-model, such as hf:openai"):
        public_backbone({"backbone": {"name": name}})


def test_a_folder_that_looks_like_a_name_of_the_hub_was_noted_in_training() -> None:
    assert public_backbone({"backbone": {"name": "hf:models/clip"}, "local": []}) == "hf:models/clip"
    with pytest.raises(UserError, match="lies on this machine"):
        public_backbone({"backbone": {"name": "hf:models/clip"}, "local": ["hf:models/clip"]})


def test_base_model_gives_the_local_backbone_its_public_name(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    run = finished(tmp_path / "run", WEIGHTS / "tiny-clip")
    with pytest.raises(UserError, match=r"lies on this machine"):
        package(run, "me/demo")
    files = package(run, "me/demo", base_model="tiny-clip")
    assert json.loads(content(files, CONFIG))["backbone"]["name"] == "tiny-clip"
    assert json.loads(content(files, "adapter_config.json"))["base_model_name_or_path"] == "tiny-clip"
    loaded = clipreid.load(clone(files, tmp_path / "clone"))
    assert (loaded.embed(crops()) - clipreid.load(run).embed(crops())).abs().max() <= 1e-6
    other = finished(tmp_path / "other", tiny_folder("clip"))
    with pytest.raises(UserError, match=r"--base-model tiny-clip: its weights are not those|tiny-clip: .*size"):
        package(other, "me/demo", base_model="tiny-clip")


# Refusals ---------------------------------------------------------------------------------------------------------


def test_runs_that_are_not_finished_are_refused(run: Path, tmp_path: Path) -> None:
    edit_config(run, lambda config: config.update(status="tuning"))
    with pytest.raises(UserError, match=r"run is not finished: .* --resume"):
        package(run, "me/demo")
    with pytest.raises(UserError, match=r"nowhere is not a folder"):
        package(tmp_path / "nowhere", "me/demo")


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", HEADS, CONFIG, METRICS, "log.jsonl", "adapter",
                                  "report"])  # fmt: skip
def test_links_out_of_the_run_are_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    shutil.move(run / name, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", run / name)
    with pytest.raises(UserError, match=r"is a link that leads out of the run folder"):
        package(run, "me/demo", include_crops=True)


def test_a_path_that_got_in_by_another_way_is_found(run: Path) -> None:
    """--noun is the user's own word, and published."""
    edit_config(run, lambda config: config["stage1"].update(noun=f"person of {run}"))
    with pytest.raises(UserError, match=r"would show a path of this machine \(.*run\)"):
        package(run, "me/demo")


# The fingerprint of data ------------------------------------------------------------------------------------------


def split_of(root: str, order: list[int], camera: int = 1) -> Split:
    images = [{"path": f"{root}/{i}.jpg"} for i in order]
    return Split.from_columns("train", images, [f"p{i // 2}" for i in order], [camera] * len(order))


def test_a_fingerprint_is_of_the_data_not_of_where_they_lie() -> None:
    one = fingerprint(split_of("/a", [0, 1, 2, 3]))
    assert (one["pictures"], one["identities"], one["cameras"]) == (4, 2, 1)
    assert fingerprint(split_of("/elsewhere/b", [3, 1, 0, 2])) == one
    assert fingerprint(split_of("/a", [0, 1, 2]))["hash"] != one["hash"]
    assert fingerprint(split_of("/a", [0, 1, 2, 3], camera=2))["hash"] != one["hash"]
    assert fingerprint(replace(split_of("/a", [0, 1, 2, 3]), name="query")) == one
