"""Fixtures of ``pytest -m gpu tests/gpu``; ISDA_REHEARSE_GPU=1 runs the same tests on a CPU, to check the tests."""

import contextlib

import pytest
import torch


@pytest.fixture
def device():
    """Return the GPU, or the CPU in a rehearsal."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def on_gpu(device):
    """Return False in a rehearsal on a CPU."""
    return device.type == "cuda"


@pytest.fixture
def no_waiting(on_gpu):
    """Return a context manager in which a synchronisation of the host with the GPU is an error."""

    @contextlib.contextmanager
    def block():
        if not on_gpu:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return block
