"""Flags that are given several times: none silently loses a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

from clipreid.errors import UserError
from clipreid.flags import gathered, parse_flags


@dataclass(frozen=True)
class Look:
    """Looks."""

    run: Positional[str]
    image: tuple[str, ...] = ()
    camera: Annotated[tuple[int, ...], arg(metavar="N")] = ()
    data: UseAppendAction[tuple[str, ...]] = ()
    pattern: str | None = None
    size: tuple[int, int] | None = None
    seed: Annotated[int, arg(aliases=["-s"])] = 0
    quick: bool = False


@dataclass(frozen=True)
class Other:
    """Does not look."""

    image: str = ""


def parse(*words: str) -> Look:
    return parse_flags(Look | Other, ["look", *words], config=(FlagCreatePairsOff,))


def test_flags_of_several_values_keep_all_of_them() -> None:
    found = parse("x", "--image", "a", "--camera", "1", "2", "--image=b", "--data", "d", "--camera", "3", "--data", "e")
    assert (found.image, found.camera, found.data, found.run) == (("a", "b"), (1, 2, 3), ("d", "e"), "x")


def test_flags_of_one_value_refuse_two() -> None:
    with pytest.raises(UserError, match="--pattern is given twice, 'a' and 'b', and takes one value: give it once"):
        parse("x", "--pattern", "a", "--quick", "--pattern", "b")
    with pytest.raises(UserError, match="--size is given twice, '4 2' and '4 3'"):
        parse("x", "--size", "4", "2", "--size", "4", "3")
    with pytest.raises(UserError, match="-s is given twice, '1' and '2'"):
        parse("x", "--seed", "1", "-s", "2")
    with pytest.raises(UserError, match="--image is given twice"):
        parse_flags(Look | Other, ["other", "--image", "a", "--image", "b"])


def test_the_same_value_twice_and_switches_are_nothing_to_refuse() -> None:
    found = parse("x", "--seed", "-3", "--seed=-3", "--quick", "--quick")
    assert (found.seed, found.quick) == (-3, True)


def test_a_recipe_has_the_same_rule() -> None:
    @dataclass(frozen=True)
    class Both:
        look: Look
        other: Annotated[int, arg(aliases=["-o"])] = 1

    words = ["x", "--camera", "1", "--camera", "2", "-o", "4"]
    assert gathered(Both, words) == ["x", "--camera", "1", "2", "-o", "4"]
    found = parse_flags(Both, words, config=(OmitArgPrefixes,))
    assert (found.look.camera, found.other) == ((1, 2), 4)


def test_every_flag_of_the_commands_loses_nothing() -> None:
    """Of the whole command line: a flag takes several values, is appended, or refuses a second one."""
    from clipreid.cli import COMMANDS

    for words in (["evaluate", "r"], ["compare", "a", "b"], ["embed", "r", "x"], ["data", "check", "x"]):
        with pytest.raises(UserError, match="--threads is given twice"):
            gathered(COMMANDS, [*words, "--threads", "1", "--threads", "2"])
    assert gathered(COMMANDS, ["search", "r", "--not-camera", "1", "--not_camera", "2"])[2:] == [
        "--not-camera",
        "1",
        "2",
    ]
