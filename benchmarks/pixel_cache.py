"""The decode-once cache with many crops: built, killed at half and continued, shared by two processes, made stale.

    python benchmarks/pixel_cache.py                                  # 100,000 crops, about 6 GB of disk for a while
    python benchmarks/pixel_cache.py --images 2000 --csv small.csv

Every step is a process of its own, so that its peak memory is its own too. The images are coloured noise in JPEG
files of 128 x 64, as large as those of Market-1501, with its names. Prints a table and writes it to the CSV; ends in an
error when a step decoded other than it should, or when two steps disagree about the pixels.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

CSV = Path(__file__).with_suffix(".csv")
BLOCK = 64
CHILD = """
import json, resource, sys, time, zlib
from clipreid.data import cache, load_data, pixel_cache
plain, decoded = cache.to_crop, []
def counting(*arguments):
    decoded.append(1)
    return plain(*arguments)
cache.to_crop = counting
begun = time.perf_counter()
split = load_data(f"folder:{sys.argv[1]}").splits["train"]
read = time.perf_counter()
built = pixel_cache(split, (256, 128), progress=False)
seconds = time.perf_counter() - read
crc = zlib.crc32(built.pixels[::997].numpy().tobytes())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps({"read": read - begun, "seconds": seconds, "decoded": len(decoded), "rss": peak, "crc": crc}))
"""


@dataclass(frozen=True)
class Config:
    images: int = 100_000
    folder: Path | None = None  # where images and cache lie for the while; default: the system's temporary folder
    csv: Path = CSV


def paint(folder: Path, number: int) -> None:
    """One crop of coloured noise, coarse and fine."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 255, (8, 4, 3), dtype=np.uint8)).resize((64, 128))
    fine = random.integers(-12, 13, (128, 64, 3))
    pixels = (np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number // 20:04d}_c{number % 6 + 1}s1_{number:06d}_00.jpg", quality=90)


def start(home: Path, images: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"CLIPREID_CACHE": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(images)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a step failed with status {process.returncode}")
    return json.loads(output.splitlines()[-1])


def kill_at_half(home: Path, images: Path, count: int) -> int:
    """Kills a build once half of the images are decoded; returns how many blocks it had finished."""
    process = start(home, images)
    while True:
        blocks = sum(file.read_text().count("\n") for file in home.glob("pixels/*.building/journal.jsonl"))
        if 2 * BLOCK * blocks >= count:
            process.kill()
            process.communicate()
            return sum(file.read_text().count("\n") for file in home.glob("pixels/*.building/journal.jsonl"))
        if process.poll() is not None:
            raise SystemExit("the build ended before it could be killed: take more --images")
        time.sleep(0.05)


def steps(count: int, root: Path) -> list[dict[str, object]]:
    images, train, home = root / "crops", root / "crops" / "train", root / "cache"
    train.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: paint(train, number), range(count)))
    rows: list[dict[str, object]] = []

    def note(step: str, expected: int, *found: dict[str, float]) -> None:
        decoded, seconds = sum(int(each["decoded"]) for each in found), max(each["seconds"] for each in found)
        if decoded != expected or len({each["crc"] for each in found}) != 1:
            raise SystemExit(f"{step}: {decoded:,d} images decoded, {expected:,d} expected; or other pixels")
        rows.append(
            {
                "images": count,
                "step": step,
                "seconds": round(seconds, 2),
                "decoded": decoded,
                "read_seconds": round(found[0]["read"], 2),
                "peak_rss_mb": round(max(each["rss"] for each in found)),
                "crc": int(found[0]["crc"]),
                "cores": os.cpu_count(),
            }
        )
        print(f"{step}: {rows[-1]}", flush=True)

    note("built", count, finish(start(home, images)))
    note("opened again", 0, finish(start(home, images)))
    shutil.rmtree(home)
    kept = BLOCK * kill_at_half(home, images, count)
    note("continued after a kill at half", count - kept, finish(start(home, images)))
    shutil.rmtree(home)
    note("two processes at once", count, *map(finish, [start(home, images), start(home, images)]))
    if len({row["crc"] for row in rows}) != 1:
        raise SystemExit(f"the steps disagree about the pixels: {rows}")
    os.utime(next(train.iterdir()), ns=(1, 1))
    note("made anew: one file has changed", count, finish(start(home, images)))
    return rows


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory(dir=config.folder, prefix="pixel-cache-") as root:
        rows = steps(config.images, Path(root))
    with open(config.csv, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n| {config.images:,d} crops to 256 x 128 | seconds | decoded | peak memory, MB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['step']} | {row['seconds']} | {row['decoded']:,d} | {row['peak_rss_mb']:,d} |")
    print(f"\nwritten: {config.csv}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
