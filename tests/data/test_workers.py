"""Worker processes that do a task for each index."""

import multiprocessing
import os
import signal
from contextlib import closing

import pytest
import torch

from isda_repro.data.workers import in_processes
from isda_repro.errors import sentence_of


def square(index):
    return index**2, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order_from_as_many_processes(workers):
    indices = range(5, 200)
    squares, pids, threads = zip(*in_processes(workers, square, indices), strict=True)
    assert squares == tuple(index**2 for index in indices)
    assert len(set(pids)) == max(1, workers)
    assert workers < 2 or (os.getpid() not in pids and set(threads) == {1})
    assert list(in_processes(workers, square, range(0))) == []


def test_processes_end_with_the_iterator():
    before = set(multiprocessing.active_children())
    with closing(in_processes(2, square, range(1000))) as squares:
        assert next(squares)[0] == 0
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert not set(multiprocessing.active_children()) - before


def killed(index):
    if index == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def test_killed_worker_is_an_error_in_one_sentence():
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError) as caught:
        list(in_processes(2, killed, range(1000)))
    assert not set(multiprocessing.active_children()) - before, "the other has ended, although the error is still held"
    said = sentence_of(caught.value)
    assert "workers=" in said
    assert "\n" not in said
