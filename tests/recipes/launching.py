"""Helpers of the recipe tests: a painted street on disk, and the commands that users type."""

import csv
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from clipreid.data.synthetic.camera import make_camera, render
from clipreid.data.synthetic.people import caption, draw_person

ROOT = Path(__file__).parents[2]
WORN = ("hat", "top_colour")  # attributes of the painted people that tables have


def paint_street(root: Path, train: int = 10, test: int = 6) -> Path:
    """train/ and test/ with file names of Market-1501: `train` and `test` identities x 4 images at 4 cameras."""
    for split, first, count in (("train", 1, train), ("test", 101, test)):
        (root / split).mkdir(parents=True)
        for number in range(first, first + count):
            for camera in range(4):
                rng = np.random.default_rng([number, camera])
                seen = render(draw_person(np.random.default_rng(number)), make_camera("wall", camera), rng)
                Image.fromarray(seen).save(root / split / f"{number:04d}_c{camera + 1}s1_000001_00.jpg", quality=92)
    return root


def caption_street(root: Path) -> Path:
    """Writes street.csv beside the images of `paint_street`: the same data, with a caption and attributes of each."""
    with (root / "street.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "identity", "camera", "split", "caption", *(f"attribute.{name}" for name in WORN)])
        for image in sorted(root.glob("t*/*.jpg")):
            number, camera = image.name[:4], image.name[6]
            person = draw_person(np.random.default_rng(int(number)))
            said, wears = caption(person, float(camera)), person.attributes()
            worn = [wears.get(name, "") for name in WORN]
            lines.writerow([image.relative_to(root), number, camera, image.parent.name, said, *worn])
    return root


def write_attributes(root: Path, names: Sequence[str] = WORN) -> Path:
    """attributes.csv beside a painted street: what its people wear."""
    people = {path.name[:4] for path in root.glob("t*/*.jpg")}
    with open(root / "attributes.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["identity", *names])
        for identity in sorted(people):
            wears = draw_person(np.random.default_rng(int(identity))).attributes()
            writer.writerow([identity, *(wears.get(name, "") for name in names)])
    return root


def command(recipe: str, *flags: object, processes: int = 1) -> list[str]:
    """`accelerate launch` for one process; torchrun for several, for accelerate starts one on a CPU."""
    one = ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    several = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    starter = one if processes == 1 else several
    return [sys.executable, "-m", *starter, str(ROOT / "recipes" / recipe), *map(str, flags)]


def run_recipe(recipe: str, *flags: object) -> None:
    """`python recipes/RECIPE FLAGS` in this process: starting another one takes longer than a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / "recipes" / recipe), *map(str, flags)])
        runpy.run_path(sys.argv[0], run_name="__main__")


def load_recipe(name: str) -> ModuleType:
    """`recipes/NAME.py` as a module of this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
