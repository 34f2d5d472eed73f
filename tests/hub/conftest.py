"""The Hub on this machine that the tests of publishing and loading talk to, and runs to be spoiled."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

REPOSITORY = "alice/demo"
Refused = Callable[[str, str], None]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def alice(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The Hub, and this process logged in to it."""
    hub.here(monkeypatch, tmp_path / "home", token="alice-write")
    return hub


@pytest.fixture(scope="session", autouse=True)
def _curves_drawn_once() -> Iterator[None]:
    """Drawing is most of the time that a card takes, and most runs here have the same losses and figures."""
    from clipreid.hub import package

    with pytest.MonkeyPatch.context() as patch:
        drawn: dict[str, bytes | None] = {}
        draw = package.draw_curves

        def once(*what: Any) -> bytes | None:
            if repr(what) not in drawn:
                drawn[repr(what)] = draw(*what)
            return drawn[repr(what)]

        patch.setattr(package, "draw_curves", once)
        yield


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "run"
    from test_hub import make_run

    make_run("tiny-clip", folder)
    return folder


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound run, to be spoiled."""
    return shutil.copytree(sound, tmp_path / "run")


@pytest.fixture
def refused(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refused]:
    """`refused("folder", "repository" or OWNER/NAME, message)`: loading the run is refused, and leaves no trace; a
    folder is not exported and not published either."""
    mark = tmp_path / "executed"
    monkeypatch.chdir(tmp_path)
    hub.here(monkeypatch, tmp_path / "home")

    import clipreid
    from clipreid.cli.export import Export
    from clipreid.errors import UserError
    from clipreid.hub.package import package

    def check(where: str, message: str) -> None:
        before = listing(tmp_path)
        if where == "repository":
            hub.put(REPOSITORY, run)
        with pytest.raises(UserError, match=message):
            clipreid.load({"repository": REPOSITORY, "folder": run}.get(where, where))
        if where == "folder":
            with pytest.raises(UserError, match=message):
                Export(run=str(run), format="merged", output=tmp_path / "exported")()
            with pytest.raises(UserError):
                package(run, REPOSITORY)
        assert not mark.exists()
        assert listing(tmp_path) == before

    yield check
    assert not mark.exists()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies below a folder, without the Hub's cache: sizes and times."""
    found = (file for file in folder.rglob("*") if "home" not in file.relative_to(folder).parts)
    return {str(file): (file.lstat().st_size, file.lstat().st_mtime_ns) for file in found}
