"""A user cache for each test, and a small folder of images."""

import pytest
from pictures import make_folder

from isda_repro.data import load_folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Return the project's folder in a user cache that is empty."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "isda_repro"


@pytest.fixture
def source(tmp_path):
    return load_folder("pets", make_folder(tmp_path / "pets"), image_size=16)
