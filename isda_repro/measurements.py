"""Helpers of scripts that measure: their argument, the lines about the machine, and the output of the report."""

import os
import platform
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from isda_repro.errors import UserError
from isda_repro.files import TEXTS, check_output, write_output
from isda_repro.models import Network
from isda_repro.training.compute import processor

THREADS = 2


def output_argument(arguments: list[str]) -> Path | None:
    """Parse ``output=FILE``, the only argument of a benchmark; None if it is not given.

    Raises:
        UserError: there is another argument, or ``output_path`` refuses the file.
    """
    match arguments:
        case []:
            return None
        case [argument] if argument.startswith("output="):
            return output_path(argument.removeprefix("output="))
        case _:
            raise UserError(f"the only argument is output=FILE, not {' '.join(arguments)}")


def output_path(name: str | None) -> Path | None:
    """Return the path of the report, if one is asked for.

    Raises:
        UserError: ``check_output`` refuses it, before hours of work.
    """
    if name is None:
        return None
    check_output(path := Path(name), TEXTS)
    return path


def machine() -> list[str]:
    """Return two lines of text: the hardware, and the versions of the software."""
    capability = torch.backends.cpu.get_cpu_capability()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision"))
    return [
        f"Hardware: {processor()[0]}, {os.cpu_count()} cores, {capability}; {torch.get_num_threads()} threads.",
        f"Versions: Python {platform.python_version()}, {versions}. {time.strftime('%Y-%m-%d')}.",
    ]


def bytes_for_gradient(network: Network, one: Tensor) -> int:
    """Return the bytes that autograd saves for one image in fp32, without weights; each storage counts once."""
    weights = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so that their addresses are not reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(one)
    return sum(storage.nbytes() for storage in kept.values())


def conclude(lines: Iterable[str], missed: Iterable[str], output: Path | None) -> None:
    """Print the report, write it to ``output`` if given, and exit with 1 and the missed bars if there are any.

    Args:
        lines: lines of the report.
        missed: descriptions of the performance bars that were missed.
        output: file of the report, or None.
    """
    text = "\n".join(lines)
    print(text)
    if output is not None:
        write_output(output, text + "\n")
    if bars := list(missed):
        sys.exit("Bar missed: " + "; ".join(bars))
