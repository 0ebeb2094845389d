import pytest
from omegaconf import OmegaConf

from isda_repro import config


@pytest.fixture(scope="session")
def composed():
    """Return ``composed("a=1 b=2")``, a copy of the composed configuration; composing takes 0.2 s and is done once."""
    known = {}

    def compose(overrides=""):
        if overrides not in known:
            known[overrides] = config.compose(overrides.split())
        return known[overrides].copy()

    return compose


@pytest.fixture(scope="session")
def settings(composed):
    """Return a function like ``composed`` whose result is plain containers without ``run_id``."""

    def plain(overrides="", **changed):
        node = composed(overrides)
        for key, value in changed.items():
            OmegaConf.update(node, key, value, force_add=True)
        known = OmegaConf.to_container(node)
        return {key: value for key, value in known.items() if key not in ("run_id", "numerics_version")}

    return plain
