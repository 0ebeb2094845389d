"""Where on this machine runs can be at the same time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isda_repro.errors import UserError
from isda_repro.tables.sweep import SweepOptions


@dataclass(frozen=True)
class Places:
    """Where runs can be at the same time: the environment variables of each, and whether they share the terminal."""

    variables: tuple[Mapping[str, str], ...]

    @property
    def is_one(self) -> bool:
        """Then a run has the terminal to itself."""
        return len(self.variables) == 1


def places(options: SweepOptions, gpus: Sequence[str] | None = None) -> Places:
    """``jobs=`` of them, or on GPUs ``runs_per_gpu=`` on each; the processor's cores are divided among them.

    ``gpus`` are those to be used; None: all that PyTorch sees.

    Raises:
        UserError: a number that is none, or GPUs that are not there.
    """
    for name in ("jobs", "runs_per_gpu"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be a whole number from 1 on")
    if (options.jobs or 1) == 1 and options.runs_per_gpu is None:
        return Places(({},))
    gpus = _visible() if gpus is None else gpus
    if options.runs_per_gpu is not None and not gpus:
        raise UserError(f"runs_per_gpu={options.runs_per_gpu}, but PyTorch sees no GPU here: use jobs=")
    room = len(gpus) * (options.runs_per_gpu or 1)
    jobs = options.jobs or room
    if options.runs_per_gpu is not None and jobs > room:
        raise UserError(
            f"jobs={jobs}, but {len(gpus)} GPUs with runs_per_gpu={options.runs_per_gpu} have room for {room}: "
            "raise runs_per_gpu=, or leave jobs= out"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return Places(
        tuple(shared | ({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {}) for job in range(jobs))
    )


def _visible() -> list[str]:
    """The GPUs, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    import torch  # takes seconds, and is for sweeps on GPUs alone

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(index) for index in range(count)]  # CUDA ignores those behind one that is not there
