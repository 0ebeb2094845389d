"""Generators that nothing was done to."""

import pytest
from gan_runs import KINDS, settings

from isda_repro.gan.run import train_generator


@pytest.fixture(scope="package", params=KINDS)
def undisturbed(request, tmp_path_factory):
    """Their kind, and the folder that they were trained in."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cfg = settings(request.param, folder)
    train_generator(cfg)
    return request.param, folder / cfg.run_id
