"""Work on all cores: every part is done once, by threads without parallelism of their own."""

import os
import threading

import pytest
import torch

from hf_glmd.losses.threads import on_each_core


@pytest.fixture(params=[1, 3])
def cores(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_core_does_its_part_alone(cores):
    seen, meeting = [], threading.Barrier(cores)

    def work(number: int, count: int) -> None:
        meeting.wait(timeout=30)  # which nobody passes unless all are at work
        seen.append((number, count, torch.get_num_threads()))

    for _ in range(2):
        on_each_core(work)
    assert sorted(seen) == sorted([(number, cores, 1) for number in range(cores)] * 2)


def test_other_threads_keep_their_parallelism(cores):
    on_each_core(lambda number, count: None)
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == cores and later == [cores]


def test_what_is_raised_arrives(cores):
    def work(number: int, count: int) -> None:
        raise ValueError(f"core {number}")

    with pytest.raises(ValueError, match="core 0"):
        on_each_core(work)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_has_its_own_threads(cores):
    on_each_core(lambda number, count: None)
    child = os.fork()
    if child == 0:
        done = []
        on_each_core(lambda number, count: done.append(number))
        os._exit(0 if len(done) == cores else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
