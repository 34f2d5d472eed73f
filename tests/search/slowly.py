"""What a process of its own does in `test_embedding`: embeds small blocks, and takes its time."""

import time

import torch

import clipreid
from clipreid.search import embed, embedding, find_images


def embed_slowly(run: str, crops: str, output: str, block: int, seconds: float) -> None:
    """seconds: added to each batch."""
    embedding.BLOCK, embedding.PAUSE = block, 0.05
    torch.set_num_threads(1)
    model = clipreid.load(run)
    parts = model.embed_parts

    def slow(crops: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(seconds)
        return parts(crops)

    model.embed_parts = slow
    embed(model, find_images([crops]), output, run="r")
