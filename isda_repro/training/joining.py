"""How a process joins those that were started with it, by torchrun or whatever sets its environment variables."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from isda_repro.errors import UserError
from isda_repro.training.processes import ALONE, Processes

PARENT_DEATH_SIGNAL = 1  # Linux's prctl option
LATE = ("Timed out waiting", "wait timeout after", "operation timeout")
LOST = ("closed by peer", "reset by peer", "Broken pipe", "pair closure", "failed to recv", "connect", "Socket")
MISUSED = ("Duplicate GPU", "ncclInvalidUsage", "ncclInvalidArgument")  # NCCL's words for what the command got wrong
LOOK_SECONDS = 0.02


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
        timeout = timedelta(minutes=timeout_minutes)
        store, *_ = next(rendezvous("env://", timeout=timeout))
        own = PrefixStore(_meet(store, here.rank, here.world_size, timeout), store)
        dist.init_process_group(backend, store=own, rank=here.rank, world_size=here.world_size, timeout=timeout)
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


def _meet(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that those who have been started together share, and nobody before them had.

    torchrun starts them anew after a failure, with the store as they left it: addresses of processes that are dead, in
    which PyTorch would look for its peers (pytorch issue 135712). So the first one makes up a name; each other answers
    under that name with one of its own, and goes ahead when the first has read just that.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if rank == 0:
        store.set("name", own)
        answers = [f"{own}/{other}" for other in range(1, world_size)]
        _until(lambda: store.check(answers), deadline)
        store.set(f"{own}/complete", " ".join(store.get(answer).decode() for answer in answers))
        return own
    name = ""

    def complete() -> bool:
        nonlocal name
        if store.check(["name"]) and (now := store.get("name").decode()) != name:
            name = now
            store.set(f"{name}/{rank}", own)
        return store.check([f"{name}/complete"]) and own in store.get(f"{name}/complete").decode().split()

    _until(complete, deadline)
    return name


def _until(is_so: Callable[[], bool], deadline: float) -> None:
    while not is_so():
        if time.monotonic() > deadline:
            raise dist.DistError(f"{LATE[0]} for all processes to start")
        time.sleep(LOOK_SECONDS)


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
        if any(word in reason for word in MISUSED):
            raise UserError(
                f"{who}: NCCL refuses its GPU ({reason.splitlines()[0]}): each process needs one of its own "
                "(torchrun --nproc_per_node=gpu), or compute=cpu"
            ) from error
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
