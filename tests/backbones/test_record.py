"""The hash of a backbone: the same on every machine, another one for whatever changes the features."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipreid.backbones import load_backbone
from clipreid.backbones.record import backbone_print
from clipreid.model import ReIDModel
from clipreid.search.format import model_print

Folder = Callable[[str], Path]


def test_how_a_machine_rounds_the_resizing_of_positions_does_not_matter(tiny_folder: Folder) -> None:
    backbones = [load_backbone(f"hf:{tiny_folder('siglip')}", image_size=(88, 40)) for _ in range(2)]
    with torch.no_grad():
        backbones[1].image.embeddings.position_embedding.weight.mul_(1 + 1e-7)
    assert len({backbone_print(backbone) for backbone in backbones}) == 1
    assert len({model_print(ReIDModel(backbone, "head")) for backbone in backbones}) == 1


def test_prints_are_equal_on_other_kinds_of_cpu(tiny_folder: Folder) -> None:
    """torch with the vector instructions of this one, and in another process without any."""
    code = f"""
from clipreid.backbones import load_backbone
from clipreid.backbones.record import backbone_print
from clipreid.model import ReIDModel
from clipreid.search.format import model_print

backbone = load_backbone("hf:{tiny_folder("siglip")}", image_size=(88, 40))
said = backbone_print(backbone), model_print(ReIDModel(backbone, "head"))
"""
    here: dict[str, Any] = {}
    exec(code, here)
    line = [sys.executable, "-c", f"{code}print(*said)"]
    env = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(one) for one in here["said"]]


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu"}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 1}], ids=lambda c: next(iter(c))
)
def test_settings_that_change_features_change_the_print(tiny_folder: Folder, tmp_path: Path, change: dict) -> None:
    folder = shutil.copytree(tiny_folder("clip"), tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    assert {key: config["vision_config"][key] for key in change} != change
    config["vision_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    one, other = (backbone_print(load_backbone(f"hf:{place}")) for place in (tiny_folder("clip"), folder))
    assert one != other


def test_the_last_value_of_any_weight_changes_the_print(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("clip"), tmp_path / "changed")
    state, before = load_file(folder / "model.safetensors"), backbone_print(load_backbone(f"hf:{folder}"))
    for name in ("vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"):
        state[name].view(-1)[-1] += 1
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        after = backbone_print(load_backbone(f"hf:{folder}"))
        assert after != before
        before = after


def test_size_and_stride_change_the_print_and_lora_does_not(tiny_folder: Folder) -> None:
    name = f"hf:{tiny_folder('clip')}"
    kinds: list[dict] = [{}, {"image_size": (64, 64)}, {"stride": 6}]
    assert len({backbone_print(load_backbone(name, **kind)) for kind in kinds}) == 3
    backbone = load_backbone(name)
    before = backbone_print(backbone)
    ReIDModel(backbone, "lora")
    assert backbone_print(backbone) == before
