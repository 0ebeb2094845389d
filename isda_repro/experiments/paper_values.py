"""The numbers that the paper prints, read from ``reported.yaml``, and the places where the paper contradicts itself.

The tables in that file have different shapes. Here each becomes a mapping from a row to its values, and each value has
a path. Rows and paths use the names of reported.yaml:

    table     row                                 path of a value
    table1:  ("ResNet-50",)           baseline | isda    top1_error | top5_error
    table2:  ("ResNet-32",)           cifar10 | cifar100    basic | isda
    table3:  ("cifar10", "Wide-ResNet-28-10")    cutout | autoaugment    basic | isda
    table4:  ("Large Margin",)        resnet110 | wrn28_10    cifar10 | cifar100
    table5:  ("Basic",)               cifar10 | cifar100
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

from omegaconf import OmegaConf

from isda_repro.errors import UserError

Names = tuple[str, ...]

PAPERS_NAMES = {
    "resnet32": "ResNet-32",
    "resnet110": "ResNet-110",
    "se_resnet110": "SE-ResNet-110",
    "wrn16_8": "Wide-ResNet-16-8",
    "wrn28_10": "Wide-ResNet-28-10",
    "resnext29_8x64d": "ResNeXt-29, 8x64d",
    "densenet_bc100_12": "DenseNet-BC-100-12",
    "densenet_bc190_40": "DenseNet-BC-190-40",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
    "densenet121": "DenseNet-BC-121",
    "densenet265": "DenseNet-BC-265",
    "resnext50_32x4d": "ResNeXt-50, 32x4d",
    "resnext101_32x8d": "ResNeXt-101, 32x8d",
}
"""Our names of the paper's networks, and those of reported.yaml."""


@dataclass(frozen=True)
class PaperValue:
    """A value that the paper prints: mean and standard deviation over ``n`` runs. A single run has no deviation."""

    mean: float
    std: float | None = None
    n: int = 3


@functools.cache
def reported() -> Mapping[str, Any]:
    """Return all of reported.yaml. The result is cached and shared: do not modify it."""
    text = (resources.files(__package__) / "reported.yaml").read_text(encoding="utf-8")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))


def on_imagenet(model: str) -> bool:
    """Return whether the paper's Table 1 (ImageNet) has the model."""
    return any(row["network"] == PAPERS_NAMES.get(model) for row in reported()["table1"]["rows"])


def paper_values(table: str) -> dict[Names, dict[Names, PaperValue | None]]:
    """Return the values of one of the paper's tables, by row and path; None where the paper prints a dash.

    Args:
        table: ``table1`` to ``table5``.

    Raises:
        UserError: reported.yaml has no values for this table.
    """
    node = reported().get(table)
    if not re.fullmatch(r"table[1-5]", table) or node is None:
        raise UserError(f"paper: reported.yaml has no values of {table}; it has those of table1 to table5")
    return {_row_name(row): dict(_values(node, row)) for row in node["rows"]}


def _row_name(row: Mapping[str, Any]) -> Names:
    return tuple(entry for entry in row.values() if isinstance(entry, str))


def _values(table: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[tuple[Names, PaperValue | None]]:
    """Yield the values of a row with their paths, skipping its other facts (parameters, costs, lambda_0)."""
    runs = row.get("runs", table.get("runs"))
    if "values" in row:  # listed in the order of the table's columns
        for name, value in zip(table["columns"], row["values"], strict=True):
            yield tuple(name.split("/")), paper_value(value, runs)
    for key, entry in row.items():
        if isinstance(entry, dict):
            yield from (((key, name), paper_value(value, runs)) for name, value in entry.items())
        elif isinstance(entry, list) and key != "values":  # listed in the order of the table's metrics
            for name, value in zip(table["metric"], entry, strict=True):
                yield (key, name), paper_value(value, runs)


def paper_value(value: Any, runs: int | None = None) -> PaperValue | None:
    """Parse a value: a mean, [mean, std], or null, which gives None.

    Args:
        value: the parsed YAML.
        runs: number of runs behind it. None means three if there is a standard deviation, otherwise one.

    Raises:
        UserError: the value has another form.
    """
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, 2) or not all(type(number) in (int, float) for number in numbers):
        raise UserError(f"{value} must be a number, [mean, std] or null")
    mean, std = (*map(float, numbers), None)[:2]
    return PaperValue(cast(float, mean), std, runs or (1 if std is None else 3))


@dataclass(frozen=True)
class Inconsistency:
    """A place where the paper contradicts itself."""

    where: str  # for example "4.3, Table 4"
    note: str

    @property
    def tables(self) -> Names:
        """Names in reported.yaml of the tables that ``where`` mentions."""
        named = re.search(r"Tables? (\d+(?:(?:, | and )\d+)*)", self.where)
        return tuple(f"table{number}" for number in re.findall(r"\d+", named[1])) if named else ()

    def __str__(self) -> str:
        return f"The paper, {self.where}: {self.note}"


def inconsistencies() -> tuple[Inconsistency, ...]:
    """Return all inconsistencies that reported.yaml lists."""
    return tuple(Inconsistency(**entry) for entry in reported()["inconsistencies_within_the_paper"])
