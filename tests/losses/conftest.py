"""The code path of accelerators, run on a CPU."""

import pytest
import torch


@pytest.fixture
def accelerator(monkeypatch):
    """Let the losses treat the CPU like an accelerator, whose values the host must not read, as in a compiled graph."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.fixture
def way(request):
    """Take the way of the parameter, "cpu" or "accelerator"."""
    if request.param == "accelerator":
        request.getfixturevalue("accelerator")
    return request.param
