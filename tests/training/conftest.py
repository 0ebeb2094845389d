"""A finished run that nothing has interrupted."""

import pytest
from interrupted_runs import settings

from isda_repro.training.run import run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return the folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cfg = settings(folder)
    run(cfg)
    return folder / cfg.run_id
