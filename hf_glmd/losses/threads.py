"""Element-wise work on all cores, each core on rows of its own until it is done.

PyTorch's own parallelism makes all cores meet after every operation. Between matrix products that is many meetings for little
work, and where something else runs on the machine (data loaders, other jobs) each of them waits until the scheduler has brought
the last core back: measured on two busy cores, ten times longer than the work.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def on_each_core(work: Callable[[int, int], None]) -> None:
    """Calls `work(number, count)` for each of `count` cores, number = 0 ... count - 1, at once, and returns when all are done.

    PyTorch's operations inside of `work` use that core alone.
    """
    count = torch.get_num_threads()
    if count == 1:
        return work(0, 1)
    for done in [_workers(count, os.getpid()).submit(work, number, count) for number in range(count)]:
        done.result()


@functools.lru_cache(maxsize=1)
def _workers(count: int, process: int) -> ThreadPoolExecutor:
    """Threads whose PyTorch operations are not parallel. A forked process, which inherits no threads, gets its own."""
    all_started = threading.Barrier(count + 1)
    workers = ThreadPoolExecutor(count, "hf_glmd", initializer=_work_alone)
    for _ in range(count):
        workers.submit(all_started.wait)
    all_started.wait()
    # The number holds for the thread that sets it, and for threads that are yet to start: put back what those find.
    torch.set_num_threads(count)
    return workers


def _work_alone() -> None:
    torch.get_num_threads()  # the first call in a thread sets the common number, whatever has been set before
    torch.set_num_threads(1)


def has_fp32_products_of_low_precision(device: torch.device) -> bool:
    """Whether `torch.mm(..., out_dtype=torch.float32)` takes bf16 and fp16 there."""
    return device.type == "cuda" and torch.version.hip is None
