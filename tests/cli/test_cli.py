"""The `clipreid` command: quick to answer, plain about mistakes, and right about a run folder."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clipreid
from clipreid.backbones import load_backbone
from clipreid.cli import main
from clipreid.data import load_data
from clipreid.hub import backbone_record, save_model
from clipreid.methods import build, clip_reid
from clipreid.model import untrained_model

Capture = pytest.CaptureFixture[str]
KEYS = ("mAP", "mINP", "rank1", "rank5", "rank10")


def command(*args: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "clipreid", *map(str, args)], capture_output=True, text=True)


def refused(capsys: Capture, *args: object) -> str:
    """What a command that ends with status 2 says on stderr."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPREID_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from launching import paint_street

    return paint_street(tmp_path_factory.mktemp("street") / "crops", train=2)


def make_run(folder: Path, weights: Path, tuning: str, data: list[str]) -> Path:
    """A finished run folder as recipes/clipreid_stage2.py leaves it, but for the training."""
    backbone = load_backbone(f"hf:{weights}")
    record = backbone_record(backbone, "bicubic")
    settings = clip_reid.Config(tuning=tuning)  # type: ignore[arg-type]
    model = build(clip_reid, backbone, settings, identities=2)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    folder.mkdir()
    save_model(model, folder)
    flags = {"data": data, "test": [], "pattern": None}
    config = {
        "clipreid": clipreid.__version__,
        "method": "clip_reid",
        "config": asdict(settings),
        "stages": ["stage1", "stage2"],
        "finished": True,
        "backbone": record,
        "run": flags,
        "data": {"names": data, "noun": "person"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Callable[[str], Path], crops: Path) -> Path:
    return make_run(tmp_path / "run", tiny_folder("clip"), "lora", [f"folder:{crops}"])


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def test_help_answers_at_once_without_torch() -> None:
    loaded = "import sys, clipreid.cli; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        done = command("--help")
        seconds.append(time.monotonic() - begun)
    assert done.returncode == 0
    assert "evaluate" in done.stdout
    assert min(seconds) < 1


def test_version_names_what_matters(capsys: Capture) -> None:
    main(["version"])
    said = capsys.readouterr().out
    assert f"clipreid {clipreid.__version__}" in said
    assert f"torch {torch.__version__.partition('+')[0]}" in said


def test_unknown_commands_and_options_say_what_there_is(capsys: Capture) -> None:
    assert "subcommands: evaluate, " in refused(capsys, "evalute", "x")
    assert "--data" in refused(capsys, "evaluate", "x", "--dat", "y")
    assert "RUN" in refused(capsys, "evaluate")


def test_mistakes_are_one_message_without_traceback(tmp_path: Path, capsys: Capture) -> None:
    done = command("evaluate", "")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: '' is empty: give a value, or leave it out")
    assert "\n" not in done.stderr.strip()
    assert done.stdout == ""
    said = "is not a folder: give a run folder, such as runs/demo, or the name of a published run, OWNER/NAME"
    found = refused(capsys, "evaluate", tmp_path / "nowhere")
    assert found.strip().startswith(f"error: {tmp_path / 'nowhere'} {said}; or an untrained model by its name:\n")


def test_each_mistake_is_named(run: Path, crops: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "unknown protocol 'market'; valid are market1501" in refused(capsys, "evaluate", run, "--protocol", "market")
    assert "unknown data 'markt1501:/x'" in refused(capsys, "evaluate", run, "--data", "markt1501:/x")
    assert "does not exist" in refused(capsys, "evaluate", run, "--data", f"folder:{tmp_path / 'nowhere'}")
    assert "is not a run folder" in refused(capsys, "evaluate", crops)
    assert "--threads -1: must be" in refused(capsys, "evaluate", run, "--threads", "-1")
    file = tmp_path / "report"
    file.write_text("mine")
    assert f"--report {file} is a file" in refused(capsys, "evaluate", run, "--report", file)
    assert "works with folder:ROOT only" in refused(capsys, "evaluate", run, "--data", "synthetic", "--pattern", "x")
    assert not (run / "metrics.json").exists()


def test_a_run_that_does_not_say_its_data_needs_the_flag(run: Path, capsys: Capture) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["run"]
    (run / "config.json").write_text(json.dumps(config))
    assert "with --data" in refused(capsys, "evaluate", run)


def test_damaged_metrics_are_refused_and_kept(run: Path, capsys: Capture) -> None:
    (run / "metrics.json").write_text("[1, 2]")
    assert "metrics.json is damaged" in refused(capsys, "evaluate", run)
    assert (run / "metrics.json").read_text() == "[1, 2]"


def test_figures_are_those_of_the_loaded_model(run: Path, crops: Path, capsys: Capture) -> None:
    kept = {"elsewhere": {"stage2": dict.fromkeys(KEYS, 0.5)}, f"folder:{crops}": {"saga": dict.fromkeys(KEYS, 0.25)}}
    (run / "metrics.json").write_text(json.dumps(kept))
    main(["evaluate", str(run)])  # the data set is the one in config.json
    found = metrics(run)
    data = load_data(f"folder:{crops}")
    split = data.splits["query"]  # the gallery as well
    features, table = clipreid.load(run).embed([split.image(i) for i in range(len(split))]), split.metadata()
    expected = clipreid.evaluate(features, features, table, table, protocol=data.protocol).metrics
    entry = found[f"folder:{crops}"]["stage2"]
    assert {key: entry[key] for key in KEYS} == pytest.approx(expected, abs=1e-6)
    assert entry["feature"] == "concat"
    assert entry["counts"]["queries"] == len(split)
    assert set(entry["parts"]) == {"concat", "final", "projection"}
    assert found["elsewhere"] == kept["elsewhere"]  # what others wrote stays
    assert found[f"folder:{crops}"]["saga"] == kept[f"folder:{crops}"]["saga"]
    said = capsys.readouterr().out
    for word in ("concat", "final", "projection", "stage2", "saga", f"{100 * entry['mAP']:.1f}%", "24 scored of 24"):
        assert word in said
    assert "change it with --noun" not in said


def test_another_protocol_has_its_own_row_and_names_lone_queries(run: Path, crops: Path, capsys: Capture) -> None:
    lonely = crops.parent / "lonely"
    if not lonely.exists():
        shutil.copytree(crops / "test", lonely / "test")
        shutil.copytree(crops / "train", lonely / "train")
        Image.open(next(lonely.glob("test/0101_c1*"))).save(lonely / "test" / "0999_c1s1_000001_00.jpg")
    data = f"folder:{lonely}"
    main(["evaluate", str(run), "--data", data, "--data", f"folder:{crops}"])
    own = metrics(run)
    assert set(own) == {data, f"folder:{crops}"}
    assert own[data]["stage2"]["protocol"] == "cross-camera"
    main(["evaluate", str(run), "--data", data, "--protocol", "market1501"])
    said = capsys.readouterr().out
    assert "24 scored of 25" in said
    assert "1 of 25 queries have no valid match" in said
    assert "identity 0999" in said
    found = metrics(run)
    assert found.pop(f"{data} (market1501)")["stage2"]["protocol"] == "market1501"
    assert found == own


def test_bad_images_are_named_or_counted(run: Path, crops: Path, tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(crops, broken)
    (broken / "test" / "0101_c1s1_000001_00.jpg").write_bytes(b"not an image")
    said = refused(capsys, "evaluate", run, "--data", f"folder:{broken}")
    assert "0101_c1s1_000001_00.jpg" in said
    assert "--skip-bad" in said
    main(["evaluate", str(run), "--data", f"folder:{broken}", "--skip-bad"])
    assert "1 images could not be decoded" in capsys.readouterr().out
    assert metrics(run)[f"folder:{broken}"]["stage2"]["counts"]["queries"] == 23


def test_pattern_reads_other_names(run: Path, crops: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "named" / split).mkdir(parents=True)
        for file in (crops / split).iterdir():
            number, camera = file.name[:4], file.name[6]
            shutil.copy(file, tmp_path / "named" / split / f"at-{camera}-who-{number}.jpg")
    spec, pattern = f"folder:{tmp_path / 'named'}", r"at-(?P<camera>\d)-who-(?P<identity>\d+)"
    main(["evaluate", str(run), "--data", spec, "--pattern", pattern])
    main(["evaluate", str(run)])
    here, there = metrics(run)[spec]["stage2"], metrics(run)[f"folder:{crops}"]["stage2"]
    assert here["mAP"] == pytest.approx(there["mAP"])


@pytest.mark.parametrize("tuning", ["lora", "full", "head"])
def test_the_report_sets_the_run_against_its_untouched_backbone(
    tuning: str, tmp_path: Path, tiny_folder: Callable[[str], Path], crops: Path
) -> None:
    run = make_run(tmp_path / "run", tiny_folder("clip"), tuning, [f"folder:{crops}"])
    main(["evaluate", str(run), "--report", str(tmp_path / "report"), "--queries", "2"])
    found = metrics(run)[f"folder:{crops}"]
    backbone = load_backbone(f"hf:{tiny_folder('clip')}")
    untouched = untrained_model(backbone)
    data = load_data(f"folder:{crops}")
    split, rules = data.splits["query"], data.protocol
    parts = untouched.embed_parts(untouched.crops([split.image(i) for i in range(len(split))]))
    table = split.metadata()
    usable = [parts["concat"], parts["projection"]]
    scored = [clipreid.evaluate(x, x, table, table, protocol=rules).metrics["mAP"] for x in usable]
    assert found["zero-shot"]["mAP"] == pytest.approx(max(scored), abs=1e-6)
    assert found["zero-shot"]["mAP"] != found["stage2"]["mAP"]
    with Image.open(tmp_path / "report" / "ranked_lists.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 50  # not an empty sheet
    page = (tmp_path / "report" / "index.html").read_text()
    for model in ("zero-shot", "stage2"):
        assert f"<td>{100 * found[model]['mAP']:.1f}" in page
    assert "Where the model looked:" in page
    assert page.count("<article") == 20
    images = {"ranked_lists.png", "cmc.png", "similarities.png", "cameras.png"}
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"index.html", *images}


def test_captions_ask_where_the_protocol_says_so(run: Path, crops: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = ["image,identity,camera,split,caption"]
    for file in sorted((crops / "test").iterdir()):
        number, camera = file.name[:4], int(file.name[6])
        split, words = ("query", f"person number {number}") if camera == 1 else ("gallery", "")
        rows.append(f"{file},{number},{camera},{split},{words}")
    (tmp_path / "said.csv").write_text("\n".join(rows))
    spec = f"csv:{tmp_path / 'said.csv'}"
    asked = ("evaluate", str(run), "--data", spec, "--protocol", "text-to-image")
    assert "leave it out, or score images" in refused(capsys, *asked, "--report", tmp_path / "report")
    main([*asked, "--zero-shot"])
    found = metrics(run)[f"{spec} (text-to-image)"]
    assert found["stage2"]["feature"] == found["zero-shot"]["feature"] == "projection"
    assert found["stage2"]["mAP"] != found["zero-shot"]["mAP"]  # the image tower was changed
    assert "protocol  text-to-image: queries are captions" in capsys.readouterr().out


def test_zero_shot_is_scored_on_every_data_set(run: Path, crops: Path) -> None:
    main(["evaluate", str(run), "--data", f"folder:{crops}", "--zero-shot"])
    main(["evaluate", str(run), "--data", f"folder:{crops}", "--protocol", "no-cameras"])
    found = metrics(run)
    assert set(found[f"folder:{crops}"]) == {"stage2", "zero-shot"}
    assert set(found[f"folder:{crops} (no-cameras)"]) == {"stage2"}


def test_another_pattern_has_its_own_row_and_no_zero_shot_beside_it(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """The cameras in a file name, read or not, make two test sets of one folder."""
    for number in range(8):
        for split in ("train", "test"):
            folder = tmp_path / "crops" / split / f"{split}{number}"
            folder.mkdir(parents=True)
            for camera in (1, 2):
                image = Image.effect_noise((16, 32), 20 + 10 * number).convert("RGB")
                image.save(folder / f"cam{camera}_{number}.png")
    spec = f"folder:{tmp_path / 'crops'}"
    main(["evaluate", str(run), "--data", spec, "--pattern", "identity/"])
    main(["evaluate", str(run), "--data", spec, "--pattern", "identity/cam"])
    found = metrics(run)
    assert [(name, each["stage2"]["protocol"], each["stage2"]["pattern"]) for name, each in found.items()] == [
        (spec, "no-cameras", "identity/"),
        (f"{spec} (cross-camera)", "cross-camera", "identity/cam"),
    ]
    assert "pattern 'identity/cam', fingerprint" in capsys.readouterr().out
