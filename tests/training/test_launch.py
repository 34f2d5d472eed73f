"""The command line of a method: its help, its aliases, its presets; and what a recipe says at its end."""

import importlib.util
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro
from launching import ROOT
from toys import toy_run

import clipreid
from clipreid.errors import UserError
from clipreid.methods import clip_reid, get_method, method_names
from clipreid.training import launch as launch_module
from clipreid.training.launch import parse, typed


def help_of(method: ModuleType, *args: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")  # one column of flags
    with pytest.raises(SystemExit) as stop:
        parse(method, "about", [*args, "--help"])
    assert stop.value.code == 0
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("name", method_names())
def test_help_has_no_riddles(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_of(get_method(name), capsys=capsys, monkeypatch=monkeypatch)
    assert "default: None" not in text
    assert "--pictures-per-identity" in text  # the name of 0.1.0 still works
    assert "--cameras" not in text  # comes from the data


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ((), {"rate": "0.004", "epochs": "4", "prompt-epochs": "15", "tuning": "lora", "pixels": "backbone"}),
        (("--tuning", "full"), {"rate": "0.0002", "tuning": "full"}),
        (("--preset", "paper"), {"rate": "0.0002", "epochs": "6", "milestones": "4 6", "pixels": "half"}),
        (("--backbone=hf:openai/clip-vit-base-patch16", "--preset=paper"), {"rate": "5e-06", "epochs": "60"}),
        (("--backbone", "hf:x/y"), {"rate": "0.0002", "prompt-rate": "0.00035", "least-steps": "0"}),
    ],
)
def test_help_shows_the_values_of_the_preset_that_is_named(
    args: tuple[str, ...], shown: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(clip_reid, *args, capsys=capsys, monkeypatch=monkeypatch)
    for flag, value in shown.items():
        found = re.search(rf"--{flag} [A-Z{{\[][^()]*(?:\((?!default)[^()]*\)[^()]*)*\(default: ([^)]*)\)", text)
        assert found, flag
        assert found[1] == value, flag


def test_what_is_typed_wins_over_presets() -> None:
    flags, config = parse(clip_reid, "", ["--preset", "paper", "--rate", "0.01", "--epochs", "3", "-P", "8", "-K", "2"])
    assert (flags.preset, flags.pixels) == ("paper", "half")
    assert (config.rate, config.epochs, config.least_steps) == (0.01, 3, 0)
    assert (config.identities_per_batch, config.images_per_identity) == (8, 2)
    assert parse(clip_reid, "", ["--pictures-per-identity", "3"])[1].images_per_identity == 3
    assert parse(clip_reid, "", [])[1].least_steps == 180
    assert parse(clip_reid, "", ["--preset", "paper", "--prompts", "none"])[1].weight_id == 1.0
    assert parse(clip_reid, "", ["--epochs", "9", "--least-steps", "7"])[1].least_steps == 7
    assert parse(clip_reid, "", ["--data", "a:b", "--data", "c:d"])[0].data == ("a:b", "c:d")


@pytest.mark.parametrize("wrong", [("--preset", "nonsense"), ("--tuning", "nonsense"), ("--no-such-flag", "1")])
def test_wrong_words_are_told_by_the_parser(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(clip_reid, "", list(wrong))
    assert stop.value.code != 0
    assert wrong[0] in capsys.readouterr().err


def test_typed_flags_by_the_name_of_their_setting() -> None:
    found = typed(["--prompt-epochs", "3", "--tuning=full", "-K", "2", "--resume", "--image-size", "64", "32"])
    assert found["prompt_epochs"] == "3"
    assert found["tuning"] == "full"
    assert found["images_per_identity"] == "2"
    assert "resume" in found


@pytest.mark.parametrize(("name", "kind"), [("zero_shot", "ZeroShot"), ("pretrain_tiny", "Config")])
def test_recipes_without_a_method_have_no_riddles_either(
    name: str, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, recipe)
    spec.loader.exec_module(recipe)
    with pytest.raises(SystemExit):
        tyro.cli(getattr(recipe, kind), args=["--help"])
    assert "default: None" not in " ".join(capsys.readouterr().out.split())


# The ends of a recipe ---------------------------------------------------------------------------------------------


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], list[Any]]:
    """`ending(error)`: what a recipe hands on, where the run ends with this error."""

    def end(error: BaseException | None) -> list[Any]:
        seen: list[Any] = []

        def run_method(*given: Any) -> None:
            seen.extend(given)
            if error is not None:
                raise error

        monkeypatch.setattr(launch_module, "run_method", run_method)
        monkeypatch.setattr(sys, "argv", ["recipes/x.py", "--seed", "7", "--epochs", "3"])
        launch_module.launch(clip_reid, "about", until="stage1")
        return seen

    return end


def test_the_flags_are_handed_on(ending: Any) -> None:
    method, flags, config, until, began = ending(None)
    assert began == clipreid.BEGAN
    assert (method, flags.seed, config.epochs, until) == (clip_reid, 7, 3, "stage1")


def test_what_the_user_can_mend_is_one_message_and_status_2(
    ending: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        ending(UserError("no such folder: /nowhere"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == "\nerror: no such folder: /nowhere\n"
    monkeypatch.setenv("RANK", "1")  # the others end too, and say nothing
    with pytest.raises(SystemExit) as caught:
        ending(UserError("no such folder: /nowhere"))
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


def test_an_interruption_says_how_to_go_on(ending: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ending(KeyboardInterrupt())
    assert caught.value.code == 130
    assert "--resume with the same --output continues" in capsys.readouterr().err


def test_sigterm_ends_as_an_interruption(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_method(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(launch_module, "run_method", run_method)
    monkeypatch.setattr(sys, "argv", ["recipes/x.py"])
    with pytest.raises(SystemExit) as caught:
        launch_module.launch(clip_reid, "about")
    assert caught.value.code == 143
    assert "--resume with the same --output continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_our_own_mistakes_keep_their_traceback(ending: Any) -> None:
    with pytest.raises(ValueError, match="a bug"):
        ending(ValueError("a bug"))


@pytest.mark.parametrize("more", [["--output", "runs/a b"], ["--output=runs/a b"], []])
def test_a_part_of_a_method_says_what_continues_it(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_run(tmp_path / "a b")
    words = ["--data", "folder:/x y", *more]
    monkeypatch.setattr(sys, "argv", ["recipes/clipreid_stage1.py", *words, "--resume", "--overwrite"])
    launch_module._say_next(run, "stage1")
    said = shlex.split(capsys.readouterr().out.splitlines()[-1])
    output = [] if more else ["--output", str(run.folder)]
    assert said == ["accelerate", "launch", clip_reid.RECIPE, *words, *output]
    assert (ROOT / clip_reid.RECIPE).is_file()


def test_run_is_another_word_for_init(tmp_path: Path) -> None:
    """Both take over backbone and settings of the run; what is no run is refused in one line."""
    old = Path(__file__).parents[1] / "hub" / "runs-0.1.0" / "clip-sie"
    for flag in ("--run", "--init"):
        flags, _ = parse(get_method("clip_reid"), "", [flag, str(old)])
        assert flags.init == old
        assert flags.backbone == "tiny-clip"
        with pytest.raises(UserError, match=r"not a folder|is no"):
            parse(get_method("clip_reid"), "", [flag, str(tmp_path / "nothing")])
