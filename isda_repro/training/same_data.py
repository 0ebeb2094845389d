"""A run goes on, and its weights are evaluated, with the classes that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isda_repro.data import DataError, Source

KEY = "data"


def description(source: Source) -> dict[str, Any]:
    """What is kept of the data beside weights."""
    return {
        "classes": list(source.class_names),
        "train_images": len(source.train),
        "test_images": len(source.test),
    }


def check_classes(state: Mapping[str, Any], source: Source, path: Path) -> None:
    """Whether the data has the classes of the weights in ``path``; older files do not say.

    Raises:
        DataError: it has others.
    """
    then, now = state.get(KEY, {}).get("classes"), list(source.class_names)
    if then is None or then == now:
        return
    differing = next((i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    named = [names[differing] if differing < len(names) else "none" for names in (then, now)]
    raise DataError(
        f"{path} was trained on other classes: {len(then)} of them, and {source.name} has {len(now)}; class "
        f"{differing} was {named[0]} and is {named[1]} now: give the folder it was trained on, or begin a run with "
        "another name (dataset.name=)"
    )


def check_unchanged(state: Mapping[str, Any], source: Source, path: Path) -> None:
    """As ``check_classes``, and whether there are as many images: else the steps of an epoch are others.

    Raises:
        DataError: something has changed.
    """
    check_classes(state, source, path)
    now = description(source)
    for key, then in state.get(KEY, {}).items():
        if then != now[key]:
            raise DataError(
                f"{path} is of a run with {then:,} {key.replace('_', ' ')}, and {source.name} has {now[key]:,} now: "
                "put the data back as it was, or delete the run's folder to begin anew"
            )
