"""What people get wrong: each ends with one message that names the file or value and says what to do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import paint_street, run_recipe
from PIL import Image

import clipreid
from clipreid.config import configure
from clipreid.errors import UserError
from clipreid.hub.folder import save_identities
from clipreid.methods import clip_reid
from clipreid.training.launch import parse, run_method
from clipreid.training.run import Run, open_run


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(root: Path | str, tmp_path: Path, **given: Any) -> Run:
    """A run on `folder:ROOT` (or on data of that name) with eight identities in a batch, and whatever is given."""
    data = (f"folder:{root}",) if isinstance(root, Path) else (root,)
    common = {"data": data, "output": tmp_path / "run", "threads": 1, "identities_per_batch": 8}
    return open_run(clip_reid, *configure(clip_reid, **common | given))


def refused(root: Path | str, tmp_path: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, tmp_path, **given)
    return str(caught.value)


def test_unknown_backbone_lists_the_valid_names(street: Path, tmp_path: Path) -> None:
    message = refused(street, tmp_path, backbone="tiny-clop")
    assert "'tiny-clop'" in message
    assert "tiny-clip" in message
    assert "open_clip:" in message


def test_unknown_data_lists_the_valid_names(tmp_path: Path) -> None:
    message = refused("markt1501:/x", tmp_path)
    assert "market1501" in message


def test_missing_root_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere", tmp_path)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert str(tmp_path) in refused(tmp_path, tmp_path)


def test_one_identity_only(tmp_path: Path) -> None:
    root = paint_street(tmp_path / "crops", train=1)
    assert "one identity only" in refused(root, tmp_path)


def test_fewer_identities_than_P(street: Path, tmp_path: Path) -> None:
    message = refused(street, tmp_path, identities_per_batch=None)
    assert "10 identities" in message
    assert "16" in message


@pytest.fixture
def broken(street: Path, tmp_path: Path) -> Path:
    root = tmp_path / "broken"
    shutil.copytree(street, root)
    (root / "train" / "0001_c1s1_000001_00.jpg").write_bytes(b"not an image")
    return root


def test_an_undecodable_image_is_named(broken: Path, tmp_path: Path) -> None:
    message = refused(broken, tmp_path)
    assert "0001_c1s1_000001_00.jpg" in message
    assert "--skip-bad" in message


def test_skip_bad_continues_and_counts(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(broken, tmp_path, skip_bad=True)
    assert len(run.data.labels) == 39
    assert run.crops().shape[0] == 39
    caches = [path for path in (Path(os.environ["CLIPREID_CACHE"]) / "pixels").iterdir() if path.is_dir()]
    assert len(caches) == 2  # of the training images, once, and of the test images, to see whether they are apart
    assert "1 training images left out" in capsys.readouterr().out


def test_images_that_are_mended_meanwhile_stop_the_run(broken: Path, street: Path, tmp_path: Path) -> None:
    run = opened(broken, tmp_path, skip_bad=True)
    name = "train/0001_c1s1_000001_00.jpg"
    shutil.copy(street / name, broken / name)
    with pytest.raises(UserError, match="the training images changed while the run was being prepared: start it"):
        run.crops("bicubic")


def test_a_one_pixel_image_is_named(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "speck"
    shutil.copytree(street, root)
    Image.new("RGB", (1, 1)).save(root / "train" / "0002_c1s1_000001_00.jpg")
    message = refused(root, tmp_path)
    assert "0002_c1s1_000001_00.jpg" in message
    assert "1x1" in message


def test_labels_with_gaps_are_relabelled(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "gaps"
    shutil.copytree(street, root)
    for file in (root / "train").glob("0003_*"):
        file.rename(file.with_name(file.name.replace("0003_", "9003_")))
    run = opened(root, tmp_path)
    assert sorted(set(run.data.labels.tolist())) == list(range(10))
    assert run.data.names[-1] == "9003"


def test_a_foreign_folder_is_refused_and_kept(street: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "holds other files" in refused(street, tmp_path, overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_other_settings_of_a_stage_that_has_begun_are_refused_by_name(street: Path, tmp_path: Path) -> None:
    opened(street, tmp_path).note(stages=["stage1"])
    with pytest.raises(
        UserError, match=r"was begun with another seed \(0 there, 7 now\): give the flags of then, start"
    ):
        opened(street, tmp_path, seed=7)
    with pytest.raises(UserError, match=r"another prompt_tokens \(4 there, 2 now\)"):
        opened(street, tmp_path, prompt_tokens=2)
    opened(street, tmp_path, epochs=7, tuning="head").note(training="stage2")  # which had not begun
    assert "--resume" in refused(street, tmp_path, epochs=7, tuning="head")
    with pytest.raises(UserError, match=r"another epochs \(7 there, 8 now\)"):
        opened(street, tmp_path, epochs=8, tuning="head", resume=True)


def swap_people(street: Path, root: Path) -> Path:
    """A copy of the data in which two people have changed names: as many images, identities and cameras as before."""
    shutil.copytree(street, root, dirs_exist_ok=True)
    for file in (root / "train").glob("0001_*"):
        file.rename(file.with_name(f"x{file.name}"))
    for file in (root / "train").glob("0002_*"):
        file.rename(file.with_name(file.name.replace("0002_", "0001_")))
    for file in (root / "train").glob("x0001_*"):
        file.rename(file.with_name(file.name.replace("x0001_", "0002_")))
    return root


def test_other_labels_with_the_same_names_and_counts_are_refused(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "crops"
    shutil.copytree(street, root)
    opened(root, tmp_path).note(training="stage1")
    before = (tmp_path / "run" / "config.json").read_bytes()
    shutil.rmtree(root)
    swap_people(street, root)
    message = refused(root, tmp_path, resume=True)
    assert "begun with other data, under the same name: training images (their pixels, or which" in message
    assert "put them back, start anew with --overwrite" in message
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    opened(root, tmp_path, overwrite=True)


def test_another_camera_of_an_image_is_refused_after_stage_1(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "crops"
    shutil.copytree(street, root)
    opened(root, tmp_path).note(stages=["stage1"])
    opened(root, tmp_path)
    (root / "train" / "0003_c1s1_000001_00.jpg").rename(root / "train" / "0003_c2s0_000001_00.jpg")
    message = refused(root, tmp_path)
    assert "labels (identity, camera, view or caption of the training images): hash" in message
    assert f"train of folder:{root}: hash" in message  # the counts are the same


def test_a_copy_of_the_images_continues(street: Path, tmp_path: Path) -> None:
    """Times of files do not matter, what is in them does."""
    root = tmp_path / "crops"
    shutil.copytree(street, root)
    opened(root, tmp_path).note(training="stage2")
    shutil.rmtree(root)
    shutil.copytree(street, root, copy_function=shutil.copyfile)
    opened(root, tmp_path, resume=True)


def test_other_test_data_are_refused_where_they_have_figures(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "crops"
    shutil.copytree(street, root)
    opened(root, tmp_path).note(training="stage2")
    gone = root / "test" / "0101_c1s1_000001_00.jpg"
    gone.rename(root / "test" / "0102_c1s1_000002_00.jpg")
    opened(root, tmp_path, resume=True)  # nothing was scored
    figures = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"), 0.5)
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({f"folder:{root}": {"zero-shot": figures}}))
    assert f"query of folder:{root}: " in refused(root, tmp_path, resume=True)


def test_other_threads_and_processes_inside_a_stage_are_said_and_recorded(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(street, tmp_path).note(stages=["stage1"])
    opened(street, tmp_path, threads=2).note(training="stage2")  # between stages they may change
    assert "note: begun with" not in capsys.readouterr().out
    run = opened(street, tmp_path, resume=True)
    run.note(machine=run.record["machine"] | {"processes": 4})
    run = opened(street, tmp_path, resume=True)
    run.note()
    again = "the batches are the same, and it ends as it would have to about 1e-5, not to the last bit"
    said = [
        f"note: begun with threads 2, continued with 1: {again}",
        f"note: begun with processes 4, continued with 1: {again}",
    ]
    assert [line for line in capsys.readouterr().out.splitlines() if "begun with" in line] == said
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["note"] for line in lines] == said
    earlier = json.loads((tmp_path / "run" / "config.json").read_text())["earlier_machines"]
    found = [(each["stage"], each["threads"], each["processes"]) for each in earlier]
    assert found == [("stage2", 2, 1), ("stage2", 1, 4)]


def test_what_an_interrupted_run_did_not_keep_is_not_compared(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that an earlier version began: new flags have their defaults, and the rest is said."""
    opened(street, tmp_path).note(training="stage2")
    file = tmp_path / "run" / "config.json"
    record = json.loads(file.read_text())
    del record["content"], record["machine"], record["run"]["raw_logits"]
    file.write_text(json.dumps(record))
    opened(street, tmp_path, resume=True)
    assert "note: begun by a version that kept no hash of its data" in capsys.readouterr().out
    record["machine"], record["content"] = {"threads": 1, "torch": "2.0"}, {}
    file.write_text(json.dumps(record))
    opened(street, tmp_path, resume=True)
    assert "note: begun with torch 2.0, continued with" in capsys.readouterr().out


def test_resume_without_a_run_begins_one(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For scripts that always give it; where it cannot be meant it is refused."""
    assert opened(street, tmp_path, resume=True).record["stages"] == []
    assert f"note: --resume: {tmp_path / 'run'} holds no run that has begun; it begins now" in capsys.readouterr().out
    assert refused(street, tmp_path, resume=True, output=None).startswith("--resume: give the --output")
    assert refused(street, tmp_path, resume=True, overwrite=True).startswith("--resume and --overwrite: one continues")


def test_a_run_that_was_killed_before_it_began_starts_anew(street: Path, tmp_path: Path) -> None:
    folder = opened(street, tmp_path).folder
    for name in (".lock.json", "metrics.json", "config.json.0", ".writing-config.json", ".writing-.lock.json"):
        (folder / name).write_text("{")
    opened(street, tmp_path).note(training="stage1")
    assert {path.name for path in folder.iterdir()} >= {".lock", "config.json"}
    assert not (folder / "metrics.json").exists()
    (folder / "config.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert "holds other files and no config.json" in refused(street, tmp_path)


def test_a_folder_that_another_run_uses_is_refused(street: Path, tmp_path: Path) -> None:
    """Also by --overwrite, and whatever it holds."""
    opened(street, tmp_path).note(training="stage1")
    before = (tmp_path / "run" / "config.json").read_bytes()
    code = "import sys, time, filelock; a = filelock.FileLock(sys.argv[1]); a.acquire(); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep(20)", str(tmp_path / "run/.lock")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for given in ({"resume": True}, {"overwrite": True}):
            assert f"{tmp_path / 'run'} is in use by" in refused(street, tmp_path, **given)
        other.kill()
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    opened(street, tmp_path, resume=True)


def test_images_replaced_under_the_same_names_are_refused_after_stage_1(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "crops"
    shutil.copytree(street, root)
    opened(root, tmp_path).note(stages=["stage1"])
    image = root / "train" / "0003_c1s1_000001_00.jpg"
    Image.effect_noise((64, 128), 30).convert("RGB").save(image)
    message = refused(root, tmp_path)
    assert "begun with other data, under the same name: training images (their pixels" in message


def test_a_flipped_bit_in_what_stage_1_learned_is_refused(street: Path, tmp_path: Path) -> None:
    run = opened(street, tmp_path)
    run.note(stages=["stage1"])
    save_identities(run.folder, {"prompts": torch.ones(10, 4, 8)}, run.data.names)
    opened(street, tmp_path)
    file = run.folder / "identities.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert f"{file} is damaged (checksum differs): train its run anew with --overwrite" in refused(street, tmp_path)


def test_the_record_says_what_the_run_was_made_with(street: Path, tmp_path: Path) -> None:
    record = opened(street, tmp_path).record
    found = record["environment"]
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"python", "platform", "clipreid", "transformers", "peft", "accelerate", "open_clip_torch"} <= found.keys()
    assert (record["machine"]["threads"], record["machine"]["device"]) == (1, "cpu")
    clone = (Path(clipreid.__file__).parents[1] / ".git").exists()
    assert bool(re.fullmatch(r"[0-9a-f]{40}\+?", found.get("commit", ""))) == clone


@pytest.mark.parametrize(
    ("given", "flag"),
    [({"epochs": 0}, "--epochs"), ({"rate": -1.0}, "--rate"), ({"identities_per_batch": 0}, "--ident"),
     ({"threads": 0}, "--threads"), ({"image_size": (128, 4)}, "--image-size")],
)  # fmt: skip
def test_impossible_values_are_named(street: Path, tmp_path: Path, given: dict[str, Any], flag: str) -> None:
    assert refused(street, tmp_path, **given).startswith(flag)


def test_a_size_that_no_patch_sees_whole_is_refused(street: Path, tmp_path: Path) -> None:
    said = refused(street, tmp_path, image_size=(130, 60))
    assert said.startswith("--image-size 130 60: the last 2 pixels would be seen by no patch of 8 pixels")
    assert said.endswith("such as --image-size 128 56") or said.endswith("such as --image-size 128 64")


def test_crops_in_the_shape_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Landscape images: said with the size that keeps their shape, which --crop-shape data takes."""
    for split, count in (("train", 8), ("test", 2)):
        for number in range(count * 2):
            file = tmp_path / "herd" / split / f"{split}{number // 2}" / f"cam{number % 2 + 1}_{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((60, 40), 20 + number).convert("RGB").save(file)
    opened(tmp_path / "herd", tmp_path / "a", prompts="none")
    said = capsys.readouterr().out
    assert "the images are mostly 0.67 times as high as wide" in said
    assert "--image-size 72 112" in said
    assert "prompts say 'person', for nothing says what the individuals are" in said
    run = opened(tmp_path / "herd", tmp_path / "b", prompts="none", crop_shape="data")
    assert run.backbone.image_size == run.flags.image_size == (72, 112)
    assert "times as high" not in capsys.readouterr().out
    both = refused(tmp_path / "herd", tmp_path / "c", crop_shape="data", image_size=(64, 64))
    assert both == "--image-size 64 64 and --crop-shape data: give one of them"


def test_a_training_that_brought_nothing_does_not_end_as_a_success(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"data": (f"folder:{street}",), "output": tmp_path / "run", "threads": 1, "identities_per_batch": 8}
    run_method(clip_reid, *configure(clip_reid, **given, prompts="none", epochs=1, rate=1e-9))
    end = capsys.readouterr().out.rpartition("Look at these before the model is used, they say what to change:")[2]
    assert "no better than the untrained backbone" in end
    assert "lower --rate, or keep less of the training (--strength auto)" in end
    assert "warning: the adapter hardly moved; raise --rate or --epochs" in end
    assert end.index("warning: ") < end.index("run folder: ")


def test_exit_status_and_message_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_recipe("clipreid_stage2.py", "--data", f"folder:{tmp_path / 'nowhere'}")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"\nerror: --data folder:{tmp_path / 'nowhere'}")


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(clip_reid, None, ["--bakbone", "x"])
    assert ended.value.code != 0
    assert "--backbone" in capsys.readouterr().err  # what may have been meant


def test_small_data_gets_more_epochs_unless_told_otherwise(street: Path, tmp_path: Path) -> None:
    """One batch an epoch: 180 epochs make the 180 steps that the tiny backbones want."""
    assert opened(street, tmp_path).config.epochs == 180
    assert opened(street, tmp_path / "b", epochs=2).config.epochs == 2
