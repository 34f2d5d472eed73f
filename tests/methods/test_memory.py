"""Memory of a training stays flat: measured over 2,000 steps."""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import paint_street
from soak import EVERY, soak
from tiny_models import write_tiny_folder

STEPS = 2000
SETTLED = 500  # steps: until then buffers and caches of torch grow to their size
MOST = 10.0  # MB from there on; 1,500 steps that keep one batch's features each would take more


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_2000_steps(tmp_path: Path) -> None:
    street = paint_street(tmp_path / "street", train=24, test=2)
    write_tiny_folder(tmp_path / "small", context=32, clipreid={"image_size": [64, 32], "raw_logits": False})
    context: Any = multiprocessing.get_context("forkserver")
    given = (street, f"hf:{tmp_path / 'small'}", tmp_path / "run", STEPS // 10, tmp_path / "memory.json")
    process = context.Process(target=soak, args=given)
    process.start()
    process.join(1800)
    assert process.exitcode == 0
    seen = json.loads((tmp_path / "memory.json").read_text("utf-8"))
    print(f"\nMB after every {EVERY} steps: {seen}")
    assert len(seen) >= STEPS // EVERY
    settled = seen[SETTLED // EVERY - 1 : STEPS // EVERY]
    assert max(settled) - settled[0] < MOST
