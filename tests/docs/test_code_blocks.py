"""README and documentation: code blocks run, commands and flags exist, links lead somewhere (`pages.py`)."""

import json
import re
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tyro
from launching import paint_street
from pages import (
    FLAGS_OF_OTHERS,
    PAGES,
    ROOT,
    Block,
    Parsed,
    blocks,
    commands,
    flags_of,
    inline_code,
    parse,
    pieces,
    recipe_commands,
    recipes,
    slugs,
)

import clipreid
import clipreid.methods
from clipreid.backbones.record import backbone_record
from clipreid.cli import main
from clipreid.config import configure
from clipreid.hub import CONFIG, save_model
from clipreid.methods import clip_reid, method_names
from clipreid.training.launch import run_method
from clipreid.training.run import open_backbone

SUPPRESSED = tyro.conf.Suppress[int].__metadata__[0]  # type: ignore[attr-defined]
WORKED_EXAMPLE = ROOT / "docs" / "adding-a-method.md"
COMMANDS = [(str(block), words) for block in blocks("bash") if not block.mark for words in commands(block.code)]
COMMANDS += recipe_commands()
RUN_PAGES = sorted({block.page for block in blocks("python") if block.mark == "run"})
NAMES = ("a", "b", "query", "query/anna", "query/bert", "gallery/anna", "gallery/bert", "gallery/carl")


def name(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


# Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_says_what_is_done_with_it_and_compiles(block: Block) -> None:
    assert block.mark == "run" or re.match(r"(file|not run): \S", block.mark), (
        f"{block}: write <!-- run -->, <!-- file: PATH --> or <!-- not run: REASON --> above it (tests/docs/pages.py)"
    )
    compile(block.code, str(block), "exec")


def write_untrained_run(folder: Path) -> None:
    """A finished run of CLIP-ReID on tiny-clip, but for the training: its adapter is still zero."""
    flags, config = configure(clip_reid)
    flags, backbone = open_backbone(flags)
    folder.mkdir(parents=True)
    save_model(clip_reid.build(backbone, config), folder)
    record = {"method": "clip_reid", "config": asdict(config), "stages": ["stage1", "stage2"], "finished": True}
    record |= {"clipreid": clipreid.__version__, "backbone": backbone_record(backbone, flags.positions)}
    (folder / CONFIG).write_text(json.dumps(record))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume it: a run, some images, a gallery."""
    folder = tmp_path_factory.mktemp("reader")
    write_untrained_run(folder / "runs" / "demo")
    painted = sorted((paint_street(folder / "crops", train=1, test=2) / "test").glob("*.jpg"))
    for place, image in zip(NAMES, painted, strict=True):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / f"{place}.jpg").write_bytes(image.read_bytes())
    run, output = folder / "runs" / "demo", folder / "runs" / "gallery.parquet"
    main(["embed", str(run), str(folder / "gallery"), "--output", str(output)])
    return folder


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        if block.page == page and block.mark == "run":
            exec(compile(block.code, str(block), "exec"), namespace)


def test_the_worked_example_trains_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of a few steps, by the command line of the page's own recipe."""
    files = pieces(WORKED_EXAMPLE)
    assert list(files) == ["clipreid/methods/attentive.py", "recipes/attentive.py"]
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(clipreid.methods, "__path__", [*clipreid.methods.__path__, str(tmp_path / "clipreid/methods")])
    method = clipreid.methods.get_method("attentive")
    try:
        crops = paint_street(tmp_path / "crops", train=4, test=2)
        flags = {"data": (f"folder:{crops}",), "output": tmp_path / "run", "epochs": 1, "identities_per_batch": 4}
        flags |= {"image_size": (64, 32), "threads": 1}
        run = run_method(method, *configure(method, **flags))
        images = sorted((crops / "test").glob("*.jpg"))[:2]
        model = clipreid.load(tmp_path / "run")
        assert type(model.aggregator).__name__ == "Attentive"
        assert model.embed(images).shape == (2, run.backbone.image.width + run.backbone.image.embed_dim)
        assert model.config.pooling == "attentive"
    finally:
        sys.modules.pop("clipreid.methods.attentive", None)


# Commands and flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=name)
def test_every_command_is_one_that_the_program_accepts(
    where: str, words: list[str], demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)  # --init reads the run that it names
    try:
        parse(words, monkeypatch)
    except Parsed:
        return
    except SystemExit:
        pytest.fail(f"{where}: {' '.join(words)}\n{capsys.readouterr().err}", pytrace=False)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("accelerate launch recipes/clipreid_stage2.py --no-such-flag", SystemExit),
        ("accelerate launch recipes/no_such_recipe.py", AssertionError),
        ("clipreid evaluate --report runs/report", SystemExit),  # RUN is missing
        ("torchrun -m clipreid embed runs/demo images", SystemExit),  # --output is missing
        ("no-such-program", AssertionError),
    ],
)
def test_a_wrong_command_is_noticed(line: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = commands(line)
    with pytest.raises(error):
        parse(words, monkeypatch)


def test_every_flag_that_is_named_in_the_text_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["clipreid", "--help"], monkeypatch)
    subcommands = re.search(r"\{([\w,]+)\}", capsys.readouterr().out)
    assert subcommands
    programs = [["clipreid", word] for word in subcommands[1].split(",") if word != "data"]
    programs += [["clipreid", "data", word] for word in ("check", "convert", "split", "occlude", "caption")]
    programs += [["python", f"recipes/{file.name}"] for file in recipes()]
    programs += [["python", "docs/make_images.py"]]
    flags = {" ".join(words): flags_of(words, monkeypatch, capsys) for words in programs}
    flags["python -m clipreid.data.synthetic"] = {"--sheet"}
    known = set().union(FLAGS_OF_OTHERS, {"--pooling"}, *flags.values())  # the last one: of the worked example
    for page in PAGES:
        for code in inline_code(page):
            where = f"{page.relative_to(ROOT)}: `{code}`"
            used = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
            assert used <= known, f"{where}: no flag {', '.join(sorted(used - known))}"
            if re.match(r"clipreid [a-z]", code):
                owners = [own for program, own in flags.items() if f"{code} ".startswith(f"{program} ")]
                assert owners, f"{where}: no such subcommand"
                assert used <= owners[0], f"{where}: no flag {', '.join(sorted(used - owners[0]))}"


# Pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", method_names())
def test_every_method_has_a_page_with_its_flags_and_results(method: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{method}.md").read_text()
    assert f"<!-- flags: clipreid/methods/{method}.py Config -->\n" in text
    assert f"<!-- presets: clipreid/methods/{method}.py -->\n" in text
    assert "## Reference results" in text


@pytest.mark.parametrize("method", method_names())
def test_the_table_of_flags_names_every_flag(method: str) -> None:
    on_page = runpy.run_path(str(ROOT / "docs" / "flags.py"))["on_page_markdown"]
    table = on_page((ROOT / "docs" / "methods" / f"{method}.md").read_text())
    shown = set(re.findall(r"^\| `--([\w-]+)`", table, re.M))
    config = clipreid.methods.get_method(method).Config
    hints = get_type_hints(config, include_extras=True)
    hidden = {name for name, hint in hints.items() if SUPPRESSED in getattr(hint, "__metadata__", ())}
    own = vars(config)["__annotations__"].keys()  # what it inherits is on the other method's page
    assert shown == {name.replace("_", "-") for name in own - hidden}


def test_the_readme_is_short_and_keeps_the_tested_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    tested = re.search(r"grep -qxF '([^']+)' README.md", (ROOT / ".ci" / "run").read_text())
    assert tested
    assert tested[1] in lines


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    """Those of the site are checked by `mkdocs build --strict`."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / page).read_text()):
        place, _, anchor = target.partition("#")
        file = ROOT / (place or page)
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in slugs(file), f"{page} links to {target}, which has no such heading"
