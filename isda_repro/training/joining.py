"""How a process joins those that were started with it, by torchrun or whatever sets its environment variables."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from isda_repro.errors import UserError
from isda_repro.training.processes import ALONE, Processes

PARENT_DEATH_SIGNAL = 1  # Linux's prctl option
LOST = ("closed by peer", "reset by peer", "Broken pipe", "pair closure", "failed to recv", "socket closed", "NCCL")
LATE = ("Timed out", "timed out", "timeout", "Timeout")


class LostContactError(UserError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def joined(timeout_minutes: float) -> Iterator[Processes]:
    """This process among those that were started with it.

    Args:
        timeout_minutes: how long one waits for another before it takes it for hung.

    Raises:
        LostContactError: one has ended, or does not answer in time.
        UserError: the environment variables of torchrun are there, but not all, or name more GPUs than there are.
    """
    here = _environment()
    if here is None:
        yield ALONE
        return
    _end_with_launcher()
    gpus = torch.cuda.is_available()
    if gpus and here.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(here.local_rank)
    with _explained(here, timeout_minutes):
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
        here.group = dist.group.WORLD
        yield here
        dist.destroy_process_group()  # not after an error: NCCL would wait for those that are gone


def _environment() -> Processes | None:
    """What torchrun says; None where it has started one process, or none of this."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={world_size}, but {', '.join(missing)} is not set: start several processes by torchrun "
            "--nproc_per_node=N train.py ..., or unset WORLD_SIZE"
        )
    rank, world, local_rank = (int(os.environ[name]) for name in names[:3])
    return Processes(rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def _end_with_launcher() -> None:
    """When torchrun is killed, its processes would train on, unseen; so they are asked to save and stop."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def _explained(here: Processes, timeout_minutes: float) -> Iterator[None]:
    """What PyTorch says of a peer that has gone is several lines of C++."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        reason = str(error)
        who = f"rank {here.rank} of {here.world_size}"
        if any(word in reason for word in LATE):
            raise LostContactError(
                f"{who} has waited {timeout_minutes:g} minutes for another rank, which hangs (a stopped process, a "
                "file system that does not answer): the same command goes on from the last checkpoint; "
                "compute.timeout_minutes= is how long to wait"
            ) from error
        if isinstance(error, dist.DistError) or any(word in reason for word in LOST):
            raise LostContactError(
                f"{who} has lost contact to another rank, whose own error stands before this one or in its node's log "
                "(none, if it was killed): the same command goes on from the last checkpoint"
            ) from error
        raise
