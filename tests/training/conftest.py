"""A run that is not interrupted."""

import pytest
from interrupted_runs import settings

from isda_repro.training.run import run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cfg = settings(folder)
    run(cfg)
    return folder / cfg.run_id
