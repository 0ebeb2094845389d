"""Parsing and validating the JSON of strangers: sizes, nesting, types, ranges, and text that can be shown anywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from isda_repro.console import UNSHOWABLE, one_line
from isda_repro.errors import UserError
from isda_repro.files import open_regular

MOST_BYTES = 32 * 2**20  # of a file: the result of a run of 100,000 epochs has 12 million
MOST_LEVELS = 16  # of objects and lists in each other
MOST_CHARACTERS = 1000  # of a message


class RecordError(UserError):
    """A record file is damaged, or is not of this project; the message names the file and the reason.

    The message is one line of text, whatever is in the file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message[:MOST_CHARACTERS]))


def read_json(path: Path) -> Any:
    """Read a JSON file of somebody else.

    Raises:
        OSError: it is missing, no regular file, or larger than ``MOST_BYTES``.
        ValueError: it is not JSON.
    """
    with open_regular(path, MOST_BYTES) as file:
        return parsed(file.read(os.fstat(file.fileno()).st_size))


def parsed(content: bytes) -> Any:
    """Parse JSON with orjson, and with Python's ``json`` what orjson rejects.

    ``json`` accepts NaN and text that cannot be encoded, which ``validated`` rejects by the name of the field. Its
    errors for invalid text say more. Of two members with the same name the later one counts.

    Raises:
        RecordError: the content is empty, or nested too deeply for Python.
        ValueError: it is not JSON, or not UTF-8.
    """
    if not content.strip():
        raise RecordError("empty")
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            return json.loads(content.decode("utf-8"))
        except RecursionError as error:
            raise RecordError("nested too deeply") from error


def _shown_anywhere(text: str) -> str:
    if not text.isprintable() and UNSHOWABLE.search(text):  # the first is faster
        raise ValueError("it has control characters, or characters that cannot be encoded")
    return text


def _plain(node: Any, level: int = 0) -> Any:
    """Return a tree of JSON unchanged if all of it can be written, hashed and shown again."""
    if level > MOST_LEVELS:
        raise ValueError("it is nested too deeply")
    for part in (*node, *node.values()) if isinstance(node, dict) else node:
        if isinstance(part, str):
            _shown_anywhere(part)
        elif isinstance(part, dict | list):
            _plain(part, level + 1)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"it has a number that is {part}")
        elif isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise ValueError("it has a number of more than 64 bits")
    return node


Text = Annotated[str, Field(max_length=MOST_CHARACTERS), AfterValidator(_shown_anywhere)]
Plain = Annotated[dict[str, Any], AfterValidator(_plain)]
Count = Annotated[int, Field(ge=0, le=2**53)]  # JavaScript's integers end there
Positive = Annotated[int, Field(ge=1, le=2**53)]
Percent = Annotated[float, Field(ge=0, le=100)]


@cache
def _model(record: type) -> type[BaseModel]:
    """Return the strict model of a dataclass: no conversions, no unknown fields, only finite numbers."""
    hints = get_type_hints(record, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], ... if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(record)
    }
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return create_model(record.__name__, __config__=strict, **fields)


def validated(record: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass, if each has the type and the range that its annotation states.

    Raises:
        RecordError: one does not; the message says which and why.
    """
    try:
        return dict(_model(record).model_validate(data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        raise RecordError(f"its {place}: {said}") from error


def reason(error: Exception) -> str:
    """Describe in a few words why a file could not be read."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "not text in UTF-8"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"no {error}" if isinstance(error, KeyError) else str(error)
