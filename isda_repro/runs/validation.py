"""What a result must be to enter a table, wherever it is from: whole, finite, at one with itself and with its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from isda_repro.config import run_names
from isda_repro.runs.records import METRICS, RecordError, Result, mean_of_last, read_result


def read_valid_result(path: Path) -> Result:
    """One result of a file.

    Raises:
        RecordError: damaged, not finite, or its settings are not those that its run id stands for.
    """
    result = read_result(path)
    ResultChecker()(result, str(path))
    return result


class ResultChecker:
    """Checks results; what all seeds of a cell have in common is kept, and named, once."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[bytes, Callable[[int], str]]] = {}

    def __call__(self, result: Result, origin: str) -> bytes:
        """What was asked of it, as ``asked`` has it.

        Raises:
            RecordError: it is not as it must be; ``origin`` says where.
        """
        with _named(origin):
            for problem in _contradictions(result):
                raise RecordError(f"{origin}: {problem}")
            body = asked(result.request, result.choices)
            if body not in self._known:
                self._known[body] = (body, run_names(result.request, result.choices))
            shared, name = self._known[body]
            if name(result.request["seed"]) != result.run_id:
                raise RecordError(f"{origin}: its settings, or this code's numerics, are not those of {result.run_id}")
        return shared


def asked(request: Mapping[str, Any], choices: Mapping[str, str]) -> bytes:
    """JSON of the request without the seed, and of the names chosen: what all seeds of a cell have in common."""
    common = {key: value for key, value in request.items() if key not in ("seed", "numerics_version")}
    return orjson.dumps([common, choices], option=orjson.OPT_SORT_KEYS)


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Whatever a foreign file has in place of numbers and lists."""
    try:
        yield
    except RecordError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecordError(f"{origin}: not as a result must be ({type(error).__name__}: {error})") from error


def _contradictions(result: Result) -> Iterator[str]:
    errors = result.curves["test_error"]
    for name, curve in result.curves.items():
        if len(curve) != result.epochs:
            yield f"its curve {name} has {len(curve)} entries for {result.epochs} epochs"
        if not math.isfinite(sum(curve)):
            yield f"its curve {name} is not finite"
    for name in METRICS:
        value = getattr(result, name)
        if value is not None and not math.isfinite(value):
            yield f"its {name} is {value!r}"
    stated = (result.test_error_last10, result.test_error_final, result.test_error_best)
    if stated != (mean_of_last(errors), errors[-1], min(errors)):
        yield "its test errors are not those of its curve"
    if result.curves.get("test_top5_error", [None])[-1] != result.test_top5_error_final:
        yield "its top-5 error is not that of its curve"
    if not result.segments or not all(isinstance(segment["precision"], str) for segment in result.segments):
        yield "it has no segment that would say in what precision it was trained"
    for name in ("epochs", "steps", "parameters", "feature_dim", "train_images", "test_images"):
        if type(getattr(result, name)) is not int:
            yield f"its {name} is {getattr(result, name)!r}"
    for name in ("timing", "environment"):
        if not isinstance(getattr(result, name), dict):
            yield f"its {name} is {getattr(result, name)!r}"
    if result.evaluated_on not in ("test", "holdout"):
        yield f"it was evaluated on {result.evaluated_on!r}"
    if type(result.request["seed"]) is not int:
        yield f"its seed is {result.request['seed']!r}"
