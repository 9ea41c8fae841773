"""One thread per process: models this small lose more by waiting for a second one than they gain, tenfold on a busy machine."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start


@pytest.fixture(autouse=True)
def one_thread():
    """Again before each test: a recipe that runs in this process takes all cores, and sums come out otherwise on two."""
    import torch

    torch.set_num_threads(1)
