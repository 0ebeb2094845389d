"""Finished generator runs that nothing has disturbed, one of each kind."""

import pytest
from gan_runs import settings
from matplotlib.figure import Figure

from isda_repro.gan.run import train_generator


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch):
    """Skip drawing of curves, which takes longer than the runs; test_pictures.py draws some."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory):
    """Return ``undisturbed(kind)``, the folder of a finished run of that kind; each is trained once."""
    folder, found = tmp_path_factory.mktemp("undisturbed"), {}

    def of_kind(kind):
        if kind not in found:
            cfg = settings(kind, folder)
            train_generator(cfg)
            found[kind] = folder / cfg.run_id
        return found[kind]

    return of_kind
