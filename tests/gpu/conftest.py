"""``pytest -m gpu tests/gpu``; with ISDA_REHEARSE_GPU=1 the same tests run on a CPU, to show that they are sound."""

import contextlib

import pytest
import torch


@pytest.fixture
def device():
    """The GPU; in a rehearsal the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def on_gpu(device):
    """False in a rehearsal."""
    return device.type == "cuda"


@pytest.fixture
def no_waiting(on_gpu):
    """Within the block, whatever makes the host wait for the GPU is an error."""

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
