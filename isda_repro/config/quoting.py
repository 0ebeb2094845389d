"""Quoting for Hydra's grammar, so that a user can type a path as it is.

Hydra gives a meaning to ``= , ( ) [ ] { } ' "`` in a value, refuses letters outside of ASCII, and reads ``123`` as a
number. A value that is a path or a name has none of these meanings.
"""

from __future__ import annotations

import os
import re
from typing import Any

from isda_repro.config.checks import PATHS, ConfigError
from isda_repro.config.rules import CONF_DIR
from isda_repro.errors import UserError
from isda_repro.files import expanded

NAMES = ("dataset.name", "tracking.project", "tracking.entity", "tracking.group")


def quoted(text: str) -> str:
    """Quote a value, so that Hydra's grammar takes it literally."""
    doubled = re.sub(r"(\\+)('|$)", r"\1\1\2", text)  # backslashes count only before a quote
    return "'" + doubled.replace("'", "\\'") + "'"


def literal(argument: str, *, multirun: bool = False) -> str:
    """Return a setting of the command line as Hydra has to get it: quoted if its value is a path or a name.

    A value that already uses quotes or backslashes as Hydra's grammar has them is left alone, and so are ``null`` and
    ``${...}``. ``~`` at the beginning of a path becomes the user's home folder.

    Args:
        argument: ``key=value``; anything else is returned unchanged.
        multirun: a comma separates the values of several runs.

    Raises:
        ConfigError: a group gets a list; or, with ``multirun``, it cannot be told whether a comma separates values or
            is part of a path.
    """
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    if value.lstrip().startswith("[") and "." not in name and (CONF_DIR / name.partition("@")[0]).is_dir():
        raise ConfigError(f"{argument}: {name}= takes one name of a file in conf/{name}/")  # Hydra takes lists of them
    if not equals or name not in (*PATHS, *NAMES):
        return argument
    if name in PATHS and value.startswith("~"):
        try:
            value = str(expanded(value))
        except UserError as error:
            raise ConfigError(f"{name}={error}") from error
    if "${" in value and os.path.lexists(value):
        raise ConfigError(f"{argument}: ${{ refers to another setting; use a path without it, such as a symbolic link")
    read, is_sweep = _read_by_hydra(f"{key}={value}")
    if is_sweep and multirun:
        if os.path.lexists(value):
            raise ConfigError(f"{argument}: with -m a comma separates values; for one path type '{key}=\"{value}\"'")
        return f"{key}={value}"
    uses_grammar = isinstance(read, str) and re.search(r"""["'\\]""", value)
    if not is_sweep and (value == "null" or read == value or uses_grammar):
        return f"{key}={value}"
    return f"{key}={quoted(value)}"


def _read_by_hydra(argument: str) -> tuple[Any, bool]:
    """Return the value that Hydra reads, and whether it means several runs; ``...`` if it cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
        return override.value(), override.is_sweep_override()
    except HydraException:
        return ..., False


def advice(argument: str) -> str:
    """Return a sentence on an argument that Hydra's grammar cannot read, with the words to type if quotes help."""
    key, equals, value = argument.partition("=")
    typed = f"{key}={quoted(value)}" if '"' in value else f'{key}="{value}"'
    if not equals or _read_by_hydra(typed)[0] is ...:
        return f"{argument!r} cannot be read as a setting: settings are written key=value"
    shown = f"'{typed}'" if "'" not in typed else '"' + typed.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{argument!r} cannot be read: Hydra gives some of = , ( ) [ ] {{ }} a meaning; for one text type {shown}"
