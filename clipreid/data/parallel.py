"""The encoded images of a split through several threads: results in order, only a few blocks in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from clipreid.data.crops import Split

Result = TypeVar("Result")
BLOCK = 64  # images that one thread takes at a time


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_blocks(
    split: Split, work: Callable[[dict[str, Any]], Result], threads: int | None = None
) -> Iterator[list[Result]]:
    """`work` on every {"path", "bytes"} of the split, in order, in lists of up to `BLOCK` results.

    threads: default all cores. Pillow decodes and resizes without the interpreter lock. At most threads + 2 blocks
    are finished or in work ahead of the caller.
    """
    threads = threads or cores()
    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for images in split.encoded_batches(BLOCK):
                waiting.append(pool.submit(lambda these: [work(image) for image in these], images))
                if len(waiting) > threads + 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after Ctrl-C or an error nothing that has not begun is begun
            pool.shutdown(wait=False, cancel_futures=True)
