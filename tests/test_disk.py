"""Files are written whole or not at all, and what the disk refuses is one message."""

import ast
import errno
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

import clipreid
from clipreid.disk import (
    CannotWrite,
    Unwritten,
    check_place,
    parse_json,
    read_json,
    whole_file,
    whole_folder,
    write_whole,
)
from clipreid.errors import UserError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
SAFE = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def half(writing: AbstractContextManager[Path], name: str, error: BaseException) -> None:
    """Writes, until something happens."""
    with writing as place:
        (place / name if name else place).write_text("half")
        raise error


@pytest.mark.parametrize("error", [FULL, SAFE, RuntimeError("a defect"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "a" / "metrics.json"
    write_whole(file, "old é")
    kind = CannotWrite if error in (FULL, SAFE) else type(error)
    with pytest.raises(kind) as caught:
        half(whole_file(file), "", error)
    assert (file.read_text(encoding="utf-8"), names(tmp_path)) == ("old é", ["a", "a/metrics.json"])
    if kind is CannotWrite:
        assert str(file) in str(caught.value)
        assert "No space left on device" in str(caught.value)


@pytest.mark.parametrize("error", [FULL, SAFE, RuntimeError("a defect")])
def test_after_an_error_a_folder_is_as_before(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises((CannotWrite, RuntimeError)):
            half(whole_folder(tmp_path / name), "model.onnx", error)
    assert names(tmp_path) == ["empty"]
    with whole_folder(tmp_path / "new") as folder:
        (folder / "model.onnx").write_text("whole")
        assert names(tmp_path / "new") != ["model.onnx"]
    assert names(tmp_path / "new") == ["model.onnx"]


def test_a_device_is_written_and_stays_one(tmp_path: Path) -> None:
    """`--csv /dev/null`, `--json /dev/stdout`: renaming onto them would replace them."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no such files here")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "text")
    assert os.read(end, 99) == b"text"
    os.close(end)
    write_whole(Path(os.devnull), "text")
    assert not Path(os.devnull).is_file()
    assert names(tmp_path) == ["pipe"]


def test_places_are_looked_at_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place, kind, message in (
        ("file", "folder", "is a file: give a folder"),
        ("file/x/y", "folder", r"cannot be written \(.*/file is a file\): give another folder"),
        ("file/x", "file", r"cannot be written \(.*/file is a file\): give another file"),
        (".", "file", "is a folder: give a file"),
        ("x" * 300, "folder", r"cannot be written \(File name too long\)"),
        ("a\0b", "folder", r"cannot be written \(.*null.*\)"),
    ):
        with pytest.raises(CannotWrite, match=rf"^--out .*{message}"):
            check_place("--out", tmp_path / place, kind)
    check_place("--out", tmp_path / "new" / "folder")
    check_place("--out", tmp_path / "new" / "file.csv", "file")
    check_place("--out", tmp_path / "file", "file")
    monkeypatch.setattr("os.access", lambda *_: False)  # permissions do not bind a test that runs as root
    with pytest.raises(CannotWrite, match=rf"no permission for {tmp_path}\): give another folder"):
        check_place("--out", tmp_path / "new")
    assert names(tmp_path) == ["file"]


def test_a_command_goes_on_and_says_everything_at_its_end() -> None:
    unwritten = Unwritten()
    unwritten.check()
    for text in ("first", "second", "first"):
        with unwritten.going_on():
            raise CannotWrite(text)
    with pytest.raises(RuntimeError), unwritten.going_on():
        raise RuntimeError("a defect is none of these")
    with pytest.raises(UserError, match=r"^first\nsecond$"):
        unwritten.check()


def test_json_has_one_kind_of_error(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "[", "", "9" * 5000, b"\xff\xfe"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
    (tmp_path / "a.json").write_text('{"ü": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"ü": "é"} == parse_json(json.dumps({"ü": "é"}))


def opened_by_locale(tree: ast.AST) -> list[int]:
    """The lines in which a text file is opened, read or written in the encoding of the locale."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        said = {keyword.arg for keyword in call.keywords}
        if name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute) and "encoding" not in said:
            found.append(call.lineno)
        if name == "open" and isinstance(call.func, ast.Name) and "encoding" not in said:
            mode: Any = call.args[1] if len(call.args) > 1 else ast.Constant("r")
            if "b" not in getattr(mode, "value", "b"):
                found.append(call.lineno)
    return found


def test_no_text_file_depends_on_the_locale() -> None:
    """`PYTHONUTF8=0 LC_ALL=C`: names and captions are UTF-8 all the same."""
    root = Path(clipreid.__file__).parents[1]
    files = [file for room in ("clipreid", "recipes") for file in (root / room).rglob("*.py")]
    assert len(files) > 150
    found = {str(file.relative_to(root)): opened_by_locale(ast.parse(file.read_text("utf-8"))) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}
    assert opened_by_locale(ast.parse("open('x')\nopen('x', 'rb')\nopen('x', encoding='utf-8')\np.read_text()")) == [
        1,
        4,
    ]
