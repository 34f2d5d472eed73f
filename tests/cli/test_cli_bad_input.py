"""What people get wrong, as one table over all commands: each ends at once with one message that names the flag or the
file, before a model is loaded, and nothing is written."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import make_run

from clipreid.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
from galleries import unit, write_gallery

Capture = pytest.CaptureFixture[str]
LONG, NUL, DEEP = "x" * 300, "a\0b", "[" * 100_000
HEADER = "image,identity,camera,split"
RUNS: dict[str, Callable[[dict[str, Any]], str | None]] = {  # config.json, changed or replaced
    "deep": lambda _: DEEP,
    "no-json": lambda _: '{"clipreid": ',
    "not-ours": lambda _: "{}",
    "a-list": lambda _: "[1]",
    "nothing": lambda _: " ",
    "huge": lambda _: '{"clipreid": ' + "9" * 5000 + "}",
    "unfinished": lambda config: config.update(finished=False),
    "magic": lambda config: config.update(method="magic"),
    "data-of-numbers": lambda config: config.update(run={"data": [1]}),
    "nul-data": lambda config: config.update(run={"data": [f"folder:/{NUL}"]}),
    "long-data": lambda config: config.update(run={"data": [f"folder:/{LONG}"]}),
    "no-data": lambda config: config.update(run={}),
    "bad-rank": lambda config: config["config"].update(lora_rank=-1),
    "no-weights": lambda _: None,
}
# a command, and what it says. {tmp}: an empty folder; {long}: a name of 300 letters; {nul}: one with a NUL
TABLE = r"""
evaluate                                            | RUN
evaluate run --nope                                 | --nope
evaluate ''                                         | '' is empty: give a value, or leave it out
evaluate run --data ''                              | --data: '' is empty
evaluate run --data=                                | --data: '' is empty
evaluate run --report ''                            | --report: '' is empty
evaluate run --protocol ''                          | --protocol: '' is empty
evaluate run --queries -4                           | --queries -4: must be at least 1 and at most 1000
evaluate run --queries 0                            | --queries 0: must be
evaluate run --queries x                            | --queries
evaluate run --queries 1000000000                   | --queries 1000000000: must be at least 1 and at most 1000
evaluate run --threads 100000                       | --threads 100000: must be at least 1 and at most
evaluate run --threads 0                            | --threads 0: must be
evaluate run --threads -1                           | --threads -1: must be
evaluate run --threads 1.5                          | --threads
evaluate run --report plain.txt                     | --report plain.txt is a file: give a folder
evaluate run --report plain.txt/x                   | plain.txt/x cannot be written ({home}/plain.txt is a file)
evaluate run --report {long}                        | {long} cannot be written (File name too long): give another folder
evaluate run --report {nul}                         | 'a\x00b' holds a NUL character
evaluate {long}                                     | {long}: File name too long: give a shorter name
evaluate {nul}                                      | 'a\x00b' holds a NUL character
evaluate nowhere                                    | nowhere is not a folder: give a run folder
evaluate empty                                      | empty is not a run folder: it has no config.json
evaluate plain.txt                                  | plain.txt is not a folder
evaluate tiny-clop                                  | did you mean tiny-clip?
evaluate tiny-clip                                  | name what to test on with --data
evaluate deep                                       | deep/config.json is not valid JSON (brackets are nested too
evaluate no-json                                    | no-json/config.json is not valid JSON
evaluate not-ours                                   | not-ours/config.json was not written by clipreid
evaluate a-list                                     | a-list/config.json was not written by clipreid
evaluate nothing                                    | nothing/config.json is not valid JSON
evaluate huge                                       | huge/config.json is not valid JSON
evaluate unfinished                                 | unfinished holds no trained model yet
evaluate magic                                      | no method 'magic'
evaluate data-of-numbers                            | data-of-numbers/config.json: run.data is [1]
evaluate nul-data                                   | nul-data/config.json: run.data is ["folder:/a\u0000b"]
evaluate long-data                                  | {long}: File name too long
evaluate no-data                                    | no-data does not say what it was trained on
evaluate bad-rank                                   | bad-rank/config.json: config lora_rank is -1
evaluate no-weights                                 | no-weights/adapter/adapter_model.safetensors is missing
evaluate figures                                    | figures/metrics.json is damaged
evaluate run --protocol market                      | unknown protocol 'market'; valid are market1501
evaluate run --data markt1501:/x                    | unknown data 'markt1501:/x'
evaluate run --data folder:                         | --data folder: lacks its folder
evaluate run --data folder:{tmp}/nowhere            | {tmp}/nowhere does not exist
evaluate run --data folder:{long}                   | {long}: File name too long
evaluate run --data folder:{nul}                    | 'folder:a\x00b' holds a NUL character
evaluate run --data folder:empty                    | {home}/empty
evaluate run --data folder:plain.txt                | {home}/plain.txt is not a folder
evaluate run --data csv:empty.csv                   | {home}/empty.csv is empty
evaluate run --data csv:head.csv                    | {home}/head.csv has no lines
evaluate run --data csv:no-gallery.csv              | csv:no-gallery.csv has query alone: give both
evaluate run --data csv:no-query.csv                | csv:no-query.csv has gallery alone: give both
evaluate run --data csv:only-train.csv              | csv:only-train.csv has no query and no gallery: there is nothing
evaluate run --data csv:gone.csv                    | {home}/gone.csv, line 2: no such image
evaluate run --data csv:nul.csv                     | {home}/nul.csv, line 2 holds a NUL byte
evaluate run --data csv:long.csv                    | {home}/long.csv, line 2
evaluate run --data csv:binary.csv                  | {home}/binary.csv is not UTF-8 text
evaluate run --data csv:{tmp}                       | {tmp} is not a file
evaluate run --data coco:deep.json                  | {home}/deep.json is not a COCO file
evaluate run --data coco:empty.json                 | {home}/empty.json is not a COCO file
evaluate run --data hub:meta                        | {home}/meta/metadata.jsonl, line 1 is not one JSON object
evaluate run --data hub:empty                       | {home}/empty holds neither parquet
evaluate run --data yolo:empty                      | {home}/empty holds no images/
evaluate run --data synthetic:nope                  | no synthetic set 'synthetic:nope'
evaluate run --data market1501:empty                | {home}/empty lacks bounding_box_train/
evaluate run --pattern '('                          | --pattern '(' is not a regular expression
evaluate run --pattern x                            | --pattern 'x' has no group
evaluate run --data csv:whole.csv --columns identity | --columns identity: cannot read 'identity'
evaluate run --data csv:whole.csv --columns identity=no | --columns identity=no: no such column
evaluate run --data csv:whole.csv --columns no=identity | --columns no=identity: cannot read 'no'
evaluate run --rerank nope                          | unknown re-ranking method 'nope'
evaluate run --rerank-options k1=5                  | --rerank-options are those of --rerank
evaluate run --rerank kwf --rerank-options k9=1     | kwf has no option 'k9'
evaluate run --rerank k-reciprocal --rerank-options k1=-5 | k1 is -5
evaluate run --rerank k-reciprocal --rerank-options k1=x | k1 is 'x'
evaluate run --by nope                              | --by nope: the queries of
evaluate run --strength 2                           | --strength 2: 2 is no number from 0
evaluate run --strength x                           | --strength x: x is no number
evaluate run --strength nan                         | --strength nan: nan is no number
evaluate run --strength 0,,1                        | --strength 0,,1: (nothing) is no number
evaluate run --strength 0,1 --zero-shot             | leave out --zero-shot
evaluate run --keep-means                           | --keep-means keeps the means of --centre-cameras
evaluate run --centre-cameras both                  | --centre-cameras
compare run                                         | RUN_B
compare zero-shot zero-shot                         | zero-shot against zero-shot
compare run run,run                                 | 'run,run' names run twice
compare run ,                                       | ',' names no run folder
compare run ''                                      | '' is empty
compare run nowhere                                 | nowhere is not a folder
compare run {long}                                  | {long}: File name too long
compare run no-weights                              | no-weights/adapter/adapter_model.safetensors is missing
compare run run --queries -4                        | --queries -4: must be at least 1
compare run run --changed -1                        | --changed -1: must be at least 0
compare run run --weight 2                          | --weight 2.0: must be at least 0 and at most 1
compare run run --weight nan                        | --weight nan: must be
compare run run --report plain.txt                  | --report plain.txt is a file
compare run zero-shot --fuse --data csv:whole.csv   | --fuse: csv:whole.csv has no val split
compare run zero-shot --data csv:no-gallery.csv     | csv:no-gallery.csv has query alone
compare run zero-shot --protocol nope               | unknown protocol 'nope'
compare run zero-shot --threads 100000              | --threads 100000: must be
calibrate run --strangers 0                         | --strangers 0: a share lies between 0 and 1
calibrate run --strangers 2                         | --strangers 2: a share
calibrate run --false-match -1                      | --false-match -1: a share
calibrate run --false-match nan                     | --false-match nan: a share
calibrate run --strangers 0.1 --false-match 0.1     | --strangers and --false-match both set the threshold
calibrate run --strength 3                          | --strength 3.0: must be at least 0 and at most 1
calibrate run --strength nan                        | --strength nan: must be
calibrate run --seed -1                             | --seed -1: must be at least 0
calibrate run --output plain.txt                    | --output plain.txt is a file
calibrate run --output plain.txt/x                  | --output plain.txt/x cannot be written
calibrate run --floor                               | --floor: a calibration is of the plain features
calibrate run --validate                            | --validate: folder:{home}/crops has no val split
calibrate run --curve wavy                          | --curve
calibrate run --by nope                             | --by nope: the queries
calibrate run --protocol nope                       | unknown protocol 'nope'
calibrate run --data csv:whole.csv --data folder:crops | calibrate takes one data set
calibrate nowhere                                   | nowhere is not a folder
calibrate tiny-clip                                 | tiny-clip is an untrained backbone
calibrate unfinished                                | unfinished holds no trained model yet
embed run '' --output {tmp}/g.parquet               | '' is empty
embed run crops --output ''                         | --output: '' is empty
embed run crops                                     | --output
embed run --output {tmp}/g.parquet                  | name what to embed
embed run crops --output {tmp}                      | --output {tmp} is a folder: give a file
embed run crops --output plain.txt/g.parquet        | --output plain.txt/g.parquet cannot be written
embed run crops --output {tmp}/{long}               | {long} cannot be written (File name too long)
embed run crops --output {tmp}/g --batch-size 0     | --batch-size 0: give 1 to 256
embed run crops --output {tmp}/g --batch-size 257   | --batch-size 257: give 1 to 256
embed run crops --output {tmp}/g --threads 100000   | --threads 100000: must be
embed run crops --output {tmp}/g --strength 2       | --strength 2.0: must be
embed run crops --output {tmp}/g --strength nan     | --strength nan: must be
embed run crops --output {tmp}/g --split nope       | --split nope is a part of a data set, and crops is none
embed run folder:crops --output {tmp}/g --split no  | folder:crops has no split 'no'
embed run nowhere --output {tmp}/g                  | nowhere: no such file or folder
embed run {long} --output {tmp}/g                   | {long}: File name too long
embed run {nul} --output {tmp}/g                    | 'a\x00b' holds a NUL character
embed run empty --output {tmp}/g                    | no images below empty
embed run 'crops/*.gif' --output {tmp}/g            | crops/*.gif: the glob finds nothing
embed run crops --output {tmp}/g --pattern '('      | --pattern '(' is not a regular expression
embed run crops --output {tmp}/g --columns identity=x | --columns works with csv:
embed run synthetic:nope --output {tmp}/g           | no synthetic set 'synthetic:nope'
embed run crops --output {tmp}/g --centre-cameras train | --centre-cameras train: run holds no camera means
embed nowhere crops --output {tmp}/g                | nowhere is not a folder
embed deep crops --output {tmp}/g                   | deep/config.json is not valid JSON
embed no-weights crops --output {tmp}/g             | no-weights/adapter/adapter_model.safetensors is missing
search run --gallery g.parquet                      | --image or --text: give query images
search run --gallery g.parquet --text ''            | --text: '' is empty
search run --gallery g.parquet --text ' '           | --text ' ': the sentence is empty
search run --gallery g.parquet --text a --image speck.png | --image or --text: give one of them
search run --gallery g.parquet --image nowhere.png  | --image nowhere.png: no such file
search run --gallery g.parquet --image {long}.png   | {long}.png: File name too long
search run --gallery g.parquet --image crops        | --image crops: is a folder
search run --gallery g.parquet --image empty.png    | the image empty.png cannot be used
search run --gallery g.parquet --image torn.png     | the image torn.png cannot be used
search run --gallery g.parquet --image speck.png    | the image speck.png cannot be used: 2x2 pixels, too small
search run --gallery g.parquet --image plain.txt    | the image plain.txt cannot be used
search run --gallery nowhere.parquet --text a       | nowhere.parquet is no file
search run --gallery empty.parquet --text a         | empty.parquet is no parquet file, or damaged
search run --gallery no-rows.parquet --text a       | no-rows.parquet holds no images
search run --gallery torn.parquet --text a          | torn.parquet is no parquet file, or damaged
search run --gallery plain.txt --text a             | plain.txt is no parquet file, or damaged
search run --gallery empty --text a                 | empty is a folder: name the file
search run --gallery {long} --text a                | {long}: File name too long
search run --gallery g.parquet --text a --top 0     | --top 0: must be at least 1
search run --gallery g.parquet --text a --top 10    | --top 10: give 1 to 9
search run --gallery g.parquet --text a --top 99999999999999999999 | --top 99999999999999999999: give 1 to 9
search run --gallery g.parquet --text a --camera 9  | no camera 9 in g.parquet
search run --gallery g.parquet --text a --not-camera 1 2 3 | no image of g.parquet passes the camera filter
search run --gallery g.parquet --text a --prior 0   | --prior 0: a share lies between 0 and 1
search run --gallery g.parquet --text a --prior nan | --prior nan: a share
search run --gallery g.parquet --text a --report plain.txt | --report plain.txt is a file
search run --gallery g.parquet --text a --centre-cameras gallery | --centre-cameras: no camera took a sentence
search run --gallery g.parquet --text a --query-camera 1 | --query-camera says which mean
search run --gallery g.parquet --text a --strength -1 | --strength -1.0: must be
search run --gallery g.parquet --text a --threads 0 | --threads 0: must be
search no-weights --gallery g.parquet --text a      | no-weights/adapter/adapter_model.safetensors is missing
publish run ''                                      | '' is empty
publish run alice                                   | 'alice' has no owner
publish run a/b/c                                   | 'a/b/c' is no name for a repository
publish run alice/demo --license 'MIT License' --dry-run | --license MIT License: give an identifier
publish nowhere alice/demo --dry-run                | nowhere is not a folder
publish empty alice/demo                            | empty is not a run folder
publish unfinished alice/demo                       | unfinished holds no trained model yet
publish figures alice/demo --dry-run                | figures/metrics.json is damaged
publish {long} alice/demo --dry-run                 | {long}: File name too long
publish run alice/demo --base-model nope --dry-run  | nope is no name of a backbone
publish run alice/demo --include-crops --dry-run    | --include-crops: there is no run/report/ranked_lists.png
export run --format merged                          | --output
export run --output {tmp}/x                         | --format
export run --format tflite --output {tmp}/x         | --format
export run --format merged --output plain.txt       | --output plain.txt is a file
export run --format merged --output crops           | --output crops is in use
export run --format merged --output {tmp}/{long}    | {long} cannot be written (File name too long)
export run --format merged --output {tmp}/x --strength 2 | strength 2.0: give a number from 0
export run --format onnx --output {tmp}/x --strength nan | strength nan: give a number
export nowhere --format merged --output {tmp}/x     | nowhere is not a folder
export unfinished --format merged --output {tmp}/x  | unfinished holds no trained model yet
export deep --format onnx --output {tmp}/x          | deep/config.json is not valid JSON
export tiny-clip --format merged --output {tmp}/x   | tiny-clip is untrained and has no adapter
export colour --format onnx --output {tmp}/x        | colour has no weights to export
import nowhere.pth --output {tmp}/x                 | there is no file nowhere.pth
import empty.pth --output {tmp}/x                   | empty.pth is not a file of plain weights
import plain.txt --output {tmp}/x                   | plain.txt is not a file of plain weights
import empty --output {tmp}/x                       | there is no file empty
import other.pth --output {tmp}/x                   | import of other.pth: none of its weights is image_encoder
import {long}.pth --output {tmp}/x                  | {long}.pth: File name too long
import other.pth --output plain.txt                 | --output plain.txt is a file
import other.pth --output crops                     | --output crops is in use
import other.pth --output {tmp}/x --image-size 0 0  | --image-size 0 0: each side has 8 to 4096 pixels
import other.pth --output {tmp}/x --image-size 5    | --image-size
import other.pth --output {tmp}/x --stride -1       | --stride -1: must be
import other.pth --output {tmp}/x --views 0         | --views 0: must be
import other.pth --output {tmp}/x --sie-coefficient nan | --sie-coefficient nan: must be
matrix                                              | name at least one run folder
matrix nowhere                                      | nowhere is not a folder
matrix run                                          | run has no metrics.json yet
matrix run run                                      | run is named twice
matrix deep figures                                 | deep/config.json is not valid JSON
matrix figures --metric nope                        | --metric
matrix run --csv plain.txt/x.csv                    | --csv plain.txt/x.csv cannot be written
matrix run --csv empty                              | --csv empty is a folder: give a file
matrix run --folds                                  | --folds: name the runs of all folds
matrix run figures --folds --csv x.csv              | leave out --metric and --csv
data                                                | check, convert, split, occlude
data nope                                           | nope
data check nope:x                                   | unknown data 'nope:x'
data check folder:{tmp}/nowhere                     | {tmp}/nowhere does not exist
data check folder:crops --threads 0                 | --threads 0: must be
data check folder:crops --threads 5000              | --threads 5000: must be
data check folder:crops --json empty                | --json empty is a folder: give a file
data check folder:crops --json plain.txt/x          | --json plain.txt/x cannot be written
data check folder:crops --sheet {tmp}/x.nope        | x.nope cannot be written (its name says no format)
data check folder:crops --pattern '('               | --pattern '(' is not a regular expression
data check csv:empty.csv                            | empty.csv is empty
data check csv:binary.csv                           | binary.csv is not UTF-8 text
data check folder:empty                             | {home}/empty
data convert folder:crops --output plain.txt        | --output plain.txt is a file
data convert folder:crops --output crops            | --output crops holds something else
data convert folder:crops --output {tmp}/{long}     | {long} cannot be written (File name too long)
data convert csv:gone.csv --output {tmp}/x          | {home}/gone.csv, line 2: no such image
data convert csv:nul.csv --output {tmp}/x           | {home}/nul.csv, line 2 holds a NUL byte
data convert folder:crops --output {tmp}/x --noun '' | --noun: '' is empty
data convert folder:crops --output {tmp}/x --noun ' ' | the noun is empty
data split folder:crops --output plain.txt          | --output plain.txt is a file
data split folder:crops --output {tmp}/x --test 0   | --test 0 --val 0: shares lie between 0 and 1
data split folder:crops --output {tmp}/x --test nan | --test nan --val 0: shares
data split folder:crops --output {tmp}/x --val -0.1 | --test 0.3 --val -0.1: shares
data split folder:crops --output {tmp}/x --cross-validate 1 | --cross-validate 1: must be at least 2
data split folder:crops --output {tmp}/x --cross-validate 100000 | --cross-validate 100000: must be
data split folder:crops --output {tmp}/x --cross-validate 3 --test 0.2 | leave out --test
data split folder:crops --output {tmp}/x --cross-validate 50 | --cross-validate 50: give at least 2 folds
data split market1501:empty --output {tmp}/x        | {home}/empty lacks
data occlude folder:crops --output plain.txt        | --output plain.txt is a file
data occlude folder:crops --output crops            | --output crops holds something already
data occlude folder:crops --output {tmp}/x --severity 1 | --severity 1: a share of the image
data occlude folder:crops --output {tmp}/x --severity nan | --severity nan: a share
data occlude folder:crops --output {tmp}/x --seed -1 | --seed -1: must be at least 0
data occlude folder:crops --output {tmp}/x --fill 1 2 3 | --fill is the colour of --condition mask
data occlude folder:crops --output {tmp}/x --condition mask --fill 1 2 300 | --fill 1 2 300: three values
data occlude folder:crops --output {tmp}/x --condition mask --occluders crops | --occluders crops: --condition mask
data occlude folder:crops --output {tmp}/x --occluders nowhere | the folder of occluders nowhere is not there
data occlude folder:crops --output {tmp}/x --occluders empty | empty holds no occluders
data occlude folder:crops --output {tmp}/x --splits nope | --splits nope: folder:crops has
nope                                                | subcommands: evaluate
"""
CASES = [tuple(part.strip() for part in line.rsplit(" | ", 1)) for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """A run, data, and everything that is wrong in one way each."""
    home = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    rows = [HEADER]
    for n in range(24):
        file = home / "crops" / ("train" if n < 12 else "test") / f"{n // 4:04d}_c{n % 4 + 1}s1_000001_00.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8)).save(file)
        rows.append(f"crops/{file.parent.name}/{file.name},p{n // 4},{n % 4 + 1},{file.parent.name}")
    train, test = rows[1:13], rows[13:]
    tables = {
        "whole.csv": [*train, *test],
        "head.csv": [],
        "only-train.csv": train,
        "no-gallery.csv": [row.replace(",test", ",query") for row in test],
        "no-query.csv": [row.replace(",test", ",gallery") for row in test],
        **{f"{name}.csv": [f"{file}.png,p0,1,test"] for name, file in (("gone", "no"), ("nul", NUL), ("long", LONG))},
    }
    for name, lines in tables.items():
        (home / name).write_text("\n".join([HEADER, *lines]) + "\n")
    for name in ("empty.csv", "empty.parquet", "empty.json", "empty.pth", "empty.png"):
        (home / name).touch()
    for name in ("empty", "meta/train", "figures"):
        (home / name).mkdir(parents=True)
    (home / "plain.txt").write_text("some text")
    (home / "binary.csv").write_bytes(bytes(range(256)) * 9)
    for name in ("deep.json", "meta/metadata.jsonl", "figures/metrics.json"):
        (home / name).write_text(DEEP)
    (home / "torn.png").write_bytes((home / "crops/test/0003_c1s1_000001_00.png").read_bytes()[:60])
    Image.new("RGB", (2, 2)).save(home / "speck.png")
    write_gallery(home / "g.parquet", unit(rng.standard_normal((9, 8))), cameras=[1, 2, 3] * 3)
    write_gallery(home / "no-rows.parquet", np.empty((0, 8)))
    (home / "torn.parquet").write_bytes((home / "g.parquet").read_bytes()[:-40])
    torch.save({"x": torch.ones(2)}, home / "other.pth")
    make_run(home / "run", tiny_folder("clip"), "lora", [f"folder:{home / 'crops'}"])
    text = (home / "run" / "config.json").read_text()
    for name in ("figures", "long-data", "no-data"):
        shutil.copytree(home / "run", home / name, dirs_exist_ok=True)
    for name, change in RUNS.items():
        (home / name).mkdir(exist_ok=True)
        config = json.loads(text)
        (home / name / "config.json").write_text(change(config) or json.dumps(config))
    return home


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr("clipreid.hub.load", refuse)
    monkeypatch.setattr("clipreid.hub.load_untrained", refuse)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("command", "message"), CASES, ids=[command for command, _ in CASES])
def test_mistakes(
    command: str, message: str, home: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"home": str(home), "tmp": str(tmp_path), "long": LONG, "nul": NUL}
    monkeypatch.chdir(home)
    before = listing(home)
    with pytest.raises(SystemExit) as ended:
        main([word.format(**names) for word in shlex.split(command)])
    said = capsys.readouterr()
    if command.startswith("data check") and ended.value.code == 1:  # what is wrong with the data is what was asked for
        said = type(said)("", said.out)
    else:
        assert ended.value.code == 2
    assert message.format(**names) in said.err
    assert "Traceback" not in said.err
    assert listing(home) == before
    assert list(tmp_path.iterdir()) == []


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies below a folder: sizes and times."""
    return {str(file): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in folder.rglob("*")}


def test_the_table_is_long_and_covers_all_commands() -> None:
    assert len(CASES) >= 250
    assert {command.split()[0] for command, _ in CASES} >= {
        *("evaluate", "compare", "calibrate", "embed", "search", "publish", "export", "import", "matrix", "data"),
    }
