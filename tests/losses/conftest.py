"""The accelerator's ways on a CPU."""

import pytest
import torch


@pytest.fixture
def accelerator(monkeypatch):
    """The losses take the CPU for a device whose values are not to be asked for, as they do in a compiled graph."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
