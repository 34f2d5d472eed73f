"""What a run rests on besides its flags, kept in config.json and compared by content when the run is continued."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import clipreid
from clipreid.training.sets import RunData

RESIZED = ("image_size", "train_interpolation")  # other pixels of the same images: not compared
ALIKE = ("processes", "threads")  # with others the batches are the same, and sums are rounded otherwise
PACKAGES = (
    "torch", "torchvision", "transformers", "peft", "accelerate", "open_clip_torch", "timm", "datasets", "numpy",
    "pillow", "safetensors",
)  # fmt: skip
COUNTED = ("images", "identities", "cameras", "hash")


def content_of(data: RunData) -> dict[str, str]:
    """Hashes of the training images as they are trained on, in their order: "images" of the pixels, "labels" of
    identities, cameras, views and captions."""
    mixture = data.mixture
    captions = [caption for split in mixture.splits for caption in split.captions.tolist()]
    rows = zip(mixture.identities.tolist(), mixture.cameras.tolist(), mixture.views.tolist(), captions, strict=True)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode(errors="surrogateescape") + b"\n")
    return {"images": data.digest, "labels": digest.hexdigest()[:16]}


def machine_of(processes: int, device: torch.device) -> dict[str, Any]:
    """What the last bits of a training depend on besides data and flags."""
    return {
        "processes": processes,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "torch": torch.__version__,
        "clipreid": clipreid.__version__,
    }


def environment_of(device: torch.device) -> dict[str, str]:
    """What a run was made with, for people who want to repeat it; nothing of it is compared or published.

    Versions by package, python and platform; "device": the name of a GPU, with cuda; "commit" where clipreid runs from
    a clone, with "+" where files differ from it.
    """
    found = {"python": platform.python_version(), "platform": platform.platform(), "clipreid": clipreid.__version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    if commit := _commit(Path(clipreid.__file__).parents[1]):
        found["commit"] = commit
    return found


def _commit(root: Path) -> str:
    """The commit of a clone; "" where there is none, or no git."""
    if not (root / ".git").exists():
        return ""
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0].strip() + "+" * bool(said[1].strip())


def changed_data(before: Mapping[str, Any], now: Mapping[str, Any], scored: Collection[str]) -> list[str]:
    """A phrase for each thing that is not what it was, by the two records of config.json.

    scored: names of the data sets that already have figures. What an earlier version did not keep is not compared.
    """
    there, here = before.get("content", {}), now["content"]
    resized = any(before["run"].get(flag) != now["run"].get(flag) for flag in RESIZED)
    what = {
        "labels": "labels (identity, camera, view or caption of the training images)",
        "images": "training images (their pixels, or which of them belongs to whom)",
    }
    found = [
        f"{words}: hash {there[key]} there, {here[key]} now"
        for key, words in what.items()
        if there.get(key, here[key]) != here[key] and not (key == "images" and resized)
    ]
    trained = ["train"] if found or not there else []  # names of files alone do not matter
    for data, splits in before.get("fingerprint", {}).items():
        for split in (*trained, *(("query", "gallery") if data in scored else ())):
            if split not in splits:
                continue
            old, new = splits[split], now["fingerprint"].get(data, {}).get(split)
            if new not in (None, old):
                counts = [f"{key} {old[key]} there, {new[key]} now" for key in COUNTED if old[key] != new[key]]
                found.append(f"{split} of {data}: {'; '.join(counts)}")
    return found


def changed_machine(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Notes on what differs in two `machine_of`, the first perhaps without some keys."""
    notes = []
    for key in (key for key in here if there.get(key, here[key]) != here[key]):
        means = "the last digits may differ"
        if key in ALIKE:
            means = "the batches are the same, and it ends as it would have to about 1e-5, not to the last bit"
        notes.append(f"note: begun with {key} {there[key]}, continued with {here[key]}: {means}")
    return notes
