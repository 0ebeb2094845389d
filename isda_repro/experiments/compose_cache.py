"""Cache of composed configurations on disk, because composing a large table takes seconds.

An entry is found again under everything that it depends on: its overrides, the files of ``conf/`` except the tables
(which only contain overrides), the code that resolves and checks configurations, the versions of Hydra and OmegaConf,
the working directory and ``ISDA_DATA``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from isda_repro.config import CONF_DIR
from isda_repro.experiments.plan import Compose
from isda_repro.files import atomic_write

CODE = ("config/*.py",)


class ComposeCache:
    """Callable like ``compose`` that stores its results in ``folder``, which can be deleted at any time.

    Configurations that depend on a file of weights or on a folder of images are not stored: the content of the file,
    and the name of the folder to which a link leads, are part of the run's name.
    """

    def __init__(self, compose: Compose, folder: Path) -> None:
        self._compose, self._path = compose, folder / f"composed-{_digest()}.json"
        self._known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self._known = json.loads(self._path.read_text(encoding="utf-8"))
        self._is_new = False

    def __call__(self, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Return what ``compose`` returns, as a plain dictionary.

        Building OmegaConf objects for hundreds of configurations would take a second.
        """
        key = "\n".join(overrides)
        if key in self._known:
            return cast(dict[str, Any], self._known[key])
        frozen = self._compose(list(overrides))
        settings = frozen if isinstance(frozen, dict) else cast(dict[str, Any], OmegaConf.to_container(frozen))
        is_of_folder = settings.get("choice", {}).get("dataset") == "folder"
        if not is_of_folder and settings.get("model", {}).get("weights") is None:  # a generator's has no model
            self._known[key], self._is_new = settings, True
        return settings

    def keep(self) -> None:
        """Write the cache to disk if it has new entries. A cache that cannot be written is silently skipped."""
        if not self._is_new:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                file.write(json.dumps(self._known).encode())


def _digest() -> str:
    """Return a digest of everything besides the overrides on which a composed configuration depends."""
    digest = hashlib.sha256()
    code = [path for pattern in CODE for path in sorted(Path(__file__).parents[1].glob(pattern))]
    composed = (path for path in CONF_DIR.rglob("*.yaml") if path.parent.name != "table")
    for path in [*sorted(composed), *code]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    surroundings = (str(CONF_DIR), str(Path.cwd()), os.environ.get("ISDA_DATA", ""))
    versions = (version("hydra-core"), version("omegaconf"))
    digest.update("\0".join((*surroundings, *versions)).encode())
    return digest.hexdigest()[:16]
