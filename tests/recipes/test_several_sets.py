"""Training on several data sets at once: identities apart, every set tested, resume exact; all in one process."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import paint_street
from safetensors.torch import load_file

import clipreid
from clipreid.cli import main
from clipreid.cli.evaluate import Evaluate
from clipreid.cli.scoring import check_tests, read_tests
from clipreid.config import RunConfig, configure
from clipreid.data import ConcatPixels, Mixture, ReIDData, load_data
from clipreid.errors import UserError
from clipreid.hub.files import read_metrics
from clipreid.hub.folder import load_identities
from clipreid.methods import clip_reid
from clipreid.model import ReIDModel
from clipreid.training import batches, checkpoint
from clipreid.training.launch import launch, next_commands, run_method
from clipreid.training.run import Run, open_run
from clipreid.training.sets import read_sets, shared_people
from clipreid.training.stage import Stage

GIVEN = {"prompt_epochs": 1, "epochs": 2, "identities_per_batch": 8, "images_per_identity": 2, "threads": 1}


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Two sets whose identities have the same names, the second "vehicles" in VeRi's folders; a third to test on."""
    root = tmp_path_factory.mktemp("streets")
    paint_street(root / "street", train=9, test=3)
    paint_street(root / "vehicles", train=3, test=3)
    (root / "vehicles" / "train").rename(root / "vehicles" / "image_train")
    shutil.copytree(root / "vehicles" / "test", root / "vehicles" / "image_query")
    (root / "vehicles" / "test").rename(root / "vehicles" / "image_test")
    paint_street(root / "third", train=2, test=4)
    shutil.rmtree(root / "third" / "train")
    return f"folder:{root / 'street'}", f"veri:{root / 'vehicles'}", f"folder:{root / 'third'}"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPREID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(streets: tuple[str, ...], output: Path, **given: Any) -> tuple[RunConfig, clip_reid.Config]:
    """The first two sets to train on, the third to test on, or what is given."""
    return configure(clip_reid, **{"data": streets[:2], "test": streets[2:3], "output": output} | GIVEN | given)


def train(streets: tuple[str, ...], output: Path, **given: Any) -> Path:
    run_method(clip_reid, *settings(streets, output, **given))
    return output


@pytest.fixture(scope="module")
def finished(streets: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(streets, tmp_path_factory.mktemp("runs") / "both")


def opened(streets: tuple[str, ...], tmp_path: Path, **given: Any) -> Run:
    return open_run(clip_reid, *settings(streets, given.pop("output", tmp_path / "run"), **given))


def test_every_set_is_tested_and_the_figures_are_kept_by_name(finished: Path, streets: tuple[str, str, str]) -> None:
    metrics = read_metrics(finished)
    assert list(metrics) == list(streets)
    assert all(set(models) == {"zero-shot", "stage2"} for models in metrics.values())
    assert [metrics[name]["stage2"]["counts"]["query_identities"] for name in streets] == [3, 3, 4]
    model = clipreid.load(finished)
    split = clipreid.load_data(streets[2]).splits["query"]
    features = model.embed([split.path(i) for i in range(len(split))])
    report = clipreid.evaluate(features, features, split.metadata(), split.metadata(), protocol="cross-camera")
    assert report.metrics["mAP"] == pytest.approx(metrics[streets[2]]["stage2"]["mAP"], abs=1e-6)


def test_config_and_identities_name_the_sets(finished: Path, streets: tuple[str, str, str]) -> None:
    record = json.loads((finished / "config.json").read_text())
    assert record["run"]["data"] == record["data"]["names"] == list(streets[:2])
    assert (record["data"]["images"], record["data"]["identities"]) == (48, 12)
    assert record["config"]["balance"] == "proportional"
    names = load_identities(finished)[1]
    assert names[:2] == ["street/0001", "street/0002"]
    assert names[-1] == "veri/0003"


def test_an_interrupted_run_ends_as_the_whole_one(
    finished: Path, streets: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Callable[..., None] = checkpoint.save

    def save_and_stop(folder: Path, stage: Stage, done: checkpoint.Done) -> None:
        save(folder, stage, done)
        if (stage.name, done.epoch) == ("stage2", 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(streets, tmp_path / "again")
    again = train(streets, tmp_path / "again", resume=True)
    for name in ("adapter/adapter_model.safetensors", "heads.safetensors", "identities.safetensors"):
        whole, resumed = load_file(finished / name), load_file(again / name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name


def test_other_sets_or_balance_are_refused_on_resume(streets: tuple[str, str, str], tmp_path: Path) -> None:
    opened(streets, tmp_path).note(training="stage2")
    with pytest.raises(UserError, match="begun with another data"):
        opened(streets, tmp_path, data=streets[:1], identities_per_batch=4)
    with pytest.raises(UserError, match=r"begun with another balance \(proportional there, equal now\)"):
        opened(streets, tmp_path, balance="equal", resume=True)


def test_images_shares_and_nouns_come_from_both(
    streets: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = opened(streets, tmp_path, balance="equal")
    pixels = run.crops()
    assert isinstance(pixels, ConcatPixels)
    assert pixels.shape == (48, 3, *run.backbone.image_size)
    assert run.data.groups.tolist() == [0] * 36 + [1] * 12
    cameras = run.data.sides[0]
    assert set(cameras[:36].tolist()).isdisjoint(cameras[36:].tolist())
    assert run.record["data"]["noun"] == "person, vehicle"
    assert run.data.mixture.nouns(run.data.names) == ["person"] * 9 + ["vehicle"] * 3
    assert "identities in a batch: 5 x street (person), 3 x veri (vehicle)" in capsys.readouterr().out


def test_stage_1_alone_prints_a_command_that_names_every_set(
    streets: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", streets[0], "--data", streets[1], "-P", "8", "--prompt-epochs", "1"]
    words += ["--output", str(tmp_path / "a run")]
    monkeypatch.setattr(sys, "argv", ["recipes/clipreid_stage1.py", *words, "--overwrite"])
    launch(clip_reid, None, until="stage1")
    said = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert said == ["accelerate", "launch", "recipes/clipreid_stage2.py", *words]


def spy(patch: pytest.MonkeyPatch, place: Any, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every call of `place.name`, which still does its work."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    real = getattr(place, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    patch.setattr(place, name, watched)
    return calls


def test_what_the_stages_are_given(
    streets: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noun for each identity, the set of each image, the balance; and at test the cameras of each set."""
    prompts, drawn = spy(monkeypatch, clip_reid, "IdentityPrompts"), spy(monkeypatch, batches, "mixed_pk_indices")
    seen = spy(monkeypatch, ReIDModel, "embed_parts")

    def cameras() -> list[set[int]]:
        """Of the images that were embedded since the last time, batch by batch, after zero-shot."""
        found = [set(args[2]["cameras"].tolist()) for args, _ in seen if len(args) > 2 and "cameras" in args[2]]
        seen.clear()
        return found

    folder = train(streets, tmp_path / "sie", sie="camera", epochs=1, balance="equal")
    assert prompts[0][0][2] == ["person"] * 9 + ["vehicle"] * 3
    groups, balance = drawn[-1][0][1], drawn[-1][0][6]
    assert (groups.tolist(), balance) == ([0] * 36 + [1] * 12, "equal")
    record = json.loads((folder / "config.json").read_text())
    assert record["offsets"] == {streets[0]: [0, 0], streets[1]: [5, 0]}
    assert record["config"]["cameras"] == [1, 2, 3, 4, 6, 7, 8, 9]
    home, vehicles = {1, 2, 3, 4}, {6, 7, 8, 9}
    assert cameras() == [home, vehicles, vehicles]  # a folder is embedded once; of the third set no camera is known
    main(["evaluate", str(folder), *(word for spec in streets for word in ("--data", spec))])
    assert cameras() == [home, vehicles, vehicles]


def test_mistakes_are_named(streets: tuple[str, str, str], tmp_path: Path) -> None:
    street, vehicles, third = streets

    def refused(*data: str, **given: Any) -> str:
        with pytest.raises(UserError) as caught:
            opened(data, tmp_path, data=data, test=(), **given)
        return str(caught.value)

    assert f"--data {street} is given twice: name" in refused(street, vehicles, street)
    assert f"--data {street}/ is given twice (also as {street}): name" in refused(street, vehicles, f"{street}/")
    assert f"{third} has no train split" in refused(street, third)
    assert "P=16 identities a batch from 2 data sets with 9 + 3 identities" in refused(
        street, vehicles, identities_per_batch=16
    )
    assert f"--validate: {street} has no val split" in refused(street, vehicles, validate=True)
    assert "works with folder:ROOT only" in refused("synthetic", pattern="x")


def test_a_set_that_is_trained_on_is_not_tested_twice(streets: tuple[str, str, str], tmp_path: Path) -> None:
    run = opened(streets, tmp_path, test=(*streets, f"{streets[0]}/", f"{streets[2]}/"))
    assert [data.name for data in run.data.tests] == list(streets)


def test_sets_of_the_same_people_are_refused_or_noted(
    streets: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """msmt17 and msmt17v2 are the same people; a copy elsewhere is the same set, whose test shows others."""
    vehicles = streets[1]
    copy = vehicles + "-copy"
    shutil.copytree(vehicles.partition(":")[2], copy.partition(":")[2], dirs_exist_ok=True)
    message = rf"--data {vehicles} and --data {copy} show the same people \(veri\): each would be two .*train on one"
    with pytest.raises(UserError, match=message):
        opened(streets, tmp_path, data=(vehicles, copy))
    opened(streets, tmp_path, test=(copy,))
    assert "show the same people" not in capsys.readouterr().out
    mixture = Mixture((ReIDData("msmt17:/a", {}, "market1501"), ReIDData("veri:/v", {}, "veri")))
    tests = [ReIDData(f"{name} (val)", {}, "market1501") for name in ("msmt17:/b", "icfg-pedes:/i", "veri:/w")]
    assert shared_people(mixture, tests) == [
        "msmt17:/a and icfg-pedes:/i show the same people (msmt17): people of the test may have been trained on, and "
        "its figures flatter"
    ]


def test_a_pattern_is_for_tests_too(streets: tuple[str, str, str], tmp_path: Path) -> None:
    for split in ("train", "test"):
        for file in (Path(streets[0].partition(":")[2]) / split).iterdir():
            place = tmp_path / "named" / split / f"at-{file.name[6]}-who-{file.name[:4]}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    shutil.copytree(tmp_path / "named" / "test", tmp_path / "other" / "test")
    own, other = f"folder:{tmp_path / 'named'}", f"folder:{tmp_path / 'other'}"
    pattern = r"at-(?P<camera>\d)-who-(?P<identity>\d+)"
    _, _, scored = read_sets(RunConfig(data=(own,), test=(other, streets[1]), pattern=pattern))
    assert [data.name for data in scored] == [own, other, streets[1]]
    assert set(scored[1].splits["query"].cameras.tolist()) == {1, 2, 3, 4}
    again = read_tests(Evaluate(run=tmp_path), tmp_path, {"run": {"data": [own], "test": [other], "pattern": pattern}})
    assert [set(data.splits["query"].cameras.tolist()) for data in again] == [{1, 2, 3, 4}] * 2
    (other_name,) = read_tests(
        Evaluate(run=tmp_path, data=(f"{other}/",)), tmp_path, {"run": {"data": [own, other], "pattern": pattern}}
    )
    assert set(other_name.splits["query"].cameras.tolist()) == {1, 2, 3, 4}


def test_the_same_cameras_of_several_sets_are_refused(streets: tuple[str, str, str]) -> None:
    street, vehicles, third = streets
    config = {"run": {"data": [street, vehicles]}, "config": {"sie": "camera", "cameras": [0, 1]}}
    asked = Evaluate(run=Path("runs/two"), same_cameras=True)
    check_tests(asked, "runs/two", config, [load_data(street)])
    with pytest.raises(UserError, match=r"runs/two was trained on several data sets .* the cameras of .*third: leave"):
        check_tests(asked, "runs/two", config, [load_data(street), load_data(third)])


def test_the_commands_printed_at_the_end_can_be_typed(streets: tuple[str, str, str], tmp_path: Path) -> None:
    """For what can be tested, without an image where captions ask, and quoted."""
    street, _, third = streets
    shutil.copytree(Path(street.partition(":")[2]) / "train", tmp_path / "only train" / "train")
    only, folder = f"folder:{tmp_path / 'only train'}", str(tmp_path / "a run")
    run = opened(streets, tmp_path, data=(only,), test=(third,), output=Path(folder))
    asked = ["clipreid", "evaluate", folder, "--data", third]
    said = [shlex.split(line) for line in next_commands(run)]
    assert said[0] == [*asked, "--report", f"{folder}/report"]
    assert said[1][:2] == ["python", "-c"]
    assert said[1][2] == f'import clipreid; print(clipreid.load("{folder}").embed(["a.jpg"]))'

    def first(data: Any) -> list[str]:
        return shlex.split(next_commands(replace(run, data=data))[0])

    assert first(replace(run.data, tests=[replace(run.data.tests[0], protocol="text-to-image")])) == asked
    tolerant = replace(run, flags=replace(run.flags, skip_bad=True))
    assert shlex.split(next_commands(tolerant)[0])[-1] == "--skip-bad"
    assert first(replace(run.data, tests=[]))[0] == "python"  # nothing to evaluate on
