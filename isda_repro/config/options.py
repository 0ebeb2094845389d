"""Command lines of scripts: ``key=value`` arguments parsed into a dataclass, with one-sentence errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isda_repro.console import UNPRINTABLE, say
from isda_repro.errors import UserError
from isda_repro.files import expanded

Options = TypeVar("Options")
LISTS = {"list[int]": "[1,2]", "list[float]": "[0.5,1]", "list": "[a=1,b=2]"}
"""Example of a list of each type, used if a field's metadata has no ``example``."""


TEXTS = ("str", "str | None", "<class 'str'>", "typing.Any")
"""Types of the options that are read as they were typed; ``Any`` is a text, or a list in brackets."""


def typed(value: object) -> str:
    """Format a value so that ``parse_options`` reads the same value again."""
    if isinstance(value, list):
        return f"[{','.join(_item(one) for one in value)}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "null" if value is None else str(value)


def _item(value: object) -> str:
    """Format one item of a list; text that YAML would read as something else is quoted."""
    try:
        is_plain = not isinstance(value, str) or OmegaConf.from_cli([f"x=[{value}]"]).x == [value]
    except Exception:  # OmegaConf's, or PyYAML's own hierarchy
        is_plain = False
    return str(value) if is_plain else "'" + str(value).replace("'", "''") + "'"


def _text(value: str) -> str | None:
    """Return a text as it was typed: YAML would read a number into ``007``, and a comment into ``a #1``.

    ``null``, nothing, quotes around the whole, and brackets at the beginning mean what they mean in YAML. ``~`` at the
    beginning is the user's home folder: every option that can begin so is a path.
    """
    if value in ("null", "", "~"):
        return None
    if value[0] in "[{" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return cast(str, OmegaConf.from_cli([f"x={value}"]).x)
    return str(expanded(value)) if value.startswith("~") else value


def _refuse_unprintable(value: object, argument: str) -> None:
    """Refuse control characters, such as newlines, which would end up in file names and job scripts."""
    for text in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
        if UNPRINTABLE.search(str(text)):
            raise UserError(f"{argument!a} has a control character, such as a newline: leave it out")


def help_if_asked(arguments: Sequence[str]) -> None:
    """Print the docstring of the script and exit if ``--help`` or ``-h`` is among the arguments."""
    if {"--help", "-h"} & set(arguments):
        say(cast(str, sys.modules["__main__"].__doc__).strip())
        raise SystemExit(0)


def parse_options(schema: type[Options], arguments: Sequence[str]) -> Options:
    """Fill the dataclass ``schema`` from the command line of a script.

    A field whose name would be a Python keyword ends in an underscore, which the command line leaves out. ``--help``
    prints the docstring of the script and exits.

    Raises:
        UserError: an unknown option, a value of the wrong type, or a mandatory option left out.
    """
    names = {field.name.removesuffix("_"): field.name for field in fields(cast(Any, schema))}
    types = {field.name.removesuffix("_"): str(field.type) for field in fields(cast(Any, schema))}
    examples = {field.name: field.metadata.get("example") for field in fields(cast(Any, schema))}
    known = list(types)
    help_if_asked(arguments)
    for argument in arguments:
        key = argument.partition("=")[0]
        if "=" not in argument:
            raise UserError(f"{argument!r} is not an option; options are written {'=, '.join(known)}=")
        if key not in known:
            hint = f"; settings of the runs go into set=[{argument}]" if "set" in known else ""
            raise UserError(f"unknown option {key}=; there are {'=, '.join(known)}={hint}")
    options = OmegaConf.structured(schema)
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            given = _text(value) if types[key] in TEXTS else OmegaConf.from_cli([f"x={value}"]).x
            _refuse_unprintable(given, argument)
            options = OmegaConf.merge(options, {names[key]: given})
        except UserError:
            raise
        except Exception as error:  # OmegaConf's, or PyYAML's own hierarchy
            of_type = next((shown for kind, shown in LISTS.items() if types[key].startswith(kind)), None)
            example = examples[names[key]] or of_type
            advice = "" if example is None else f" ({key}= takes a list: {key}={example})"
            reason = " ".join(str(error).splitlines()[:1])
            raise UserError(f"{argument} cannot be read: {reason}{advice}") from error
    try:
        if missing := sorted(OmegaConf.missing_keys(options)):
            missing = [name.removesuffix("_") for name in missing]
            raise UserError(f"{'=, '.join(missing)}= is missing; the options are {'=, '.join(known)}=")
        return cast(Options, OmegaConf.to_object(options))
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
