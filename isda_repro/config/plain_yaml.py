"""Reader of YAML files that may come from somebody else: bounded in size and depth, without aliases, tags or code.

An alias can make a file of a kilobyte expand to gigabytes, and a tag chooses how a value is constructed. The events of
PyYAML's parser are checked before anything is constructed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from isda_repro.errors import UserError
from isda_repro.files import open_regular

MOST_BYTES = 100_000  # a frozen configuration has 5 kB, the largest table 10 kB
DEEPEST = 40
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # all but tab and newline


class UnreadableError(UserError):
    """A YAML file cannot be read; the message is the end of a sentence that begins with the file's name."""


def read_bounded(path: Path) -> str:
    """Return the text of a regular file of at most ``MOST_BYTES``.

    Raises:
        UnreadableError: it is a pipe or a device, too large, not UTF-8, or the system cannot read it.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UnreadableError(f"has more than {MOST_BYTES:,} bytes, which no configuration of this project has")
        return content.decode()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is not text in UTF-8: {error.reason} at byte {error.start}") from error


def parse_plain(text: str, *, scalar_aliases: bool = False) -> Any:
    """Parse YAML into plain containers. ``${...}`` and ``???`` are refused, which OmegaConf would give a meaning.

    Args:
        text: the content of a file.
        scalar_aliases: accept ``*name`` for a text or a number, as long as the whole stays below ``MOST_BYTES``.

    Raises:
        UnreadableError: it is no YAML, or has what is not accepted.
    """
    try:
        _check_events(text, scalar_aliases)
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except UnreadableError:
        raise
    except Exception as error:  # PyYAML's own hierarchy, OmegaConf's, and Python's for numbers and dates
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnreadableError(f"is not YAML: {reason}") from error


def _check_events(text: str, scalar_aliases: bool) -> None:
    """Raise UnreadableError at the first event of the YAML parser that is not accepted."""
    depth, size = 0, 0
    anchored: dict[str, int] = {}  # lengths of scalars that have a name
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise UnreadableError(f"nests deeper than {DEEPEST} levels in line {line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            if not scalar_aliases or event.anchor not in anchored:
                raise UnreadableError(f"has the alias *{event.anchor} in line {line}: write the value out")
            size += anchored[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            _check_scalar(event.value, line)
            size += len(event.value)
            if event.anchor:
                anchored[event.anchor] = len(event.value)
        if size > MOST_BYTES:
            raise UnreadableError(f"repeats more than {MOST_BYTES:,} characters by aliases")
        if getattr(event, "tag", None) not in (None, "!"):
            raise UnreadableError(f"has the tag {event.tag!a} in line {line}: only plain values are read")


def _check_scalar(value: str, line: int) -> None:
    if CONTROL.search(value):
        raise UnreadableError(f"has a control character in line {line}: {value[:60]!a}")
    if "${" in value or value == "???":
        raise UnreadableError(f"has {value[:60]!a} in line {line}: a value here is what it is, and refers to nothing")
