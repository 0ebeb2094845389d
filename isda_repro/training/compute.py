"""Device, precision and memory format of a run: resolves every ``auto`` of ``compute=`` on this machine."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from isda_repro.errors import UserError
from isda_repro.training.distributed import Processes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Compute:
    """Resolved compute settings: the device and how it is used, without any ``auto`` left."""

    device: torch.device
    hardware: str
    precision: str  # fp32 | bf16
    tf32: bool
    channels_last: bool
    compile: bool
    deterministic: bool
    micro_batch: int | None
    sync_bn: bool = False
    cuda_graph: bool = False  # capture steps where that is possible; see static_step.py

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def machine(self) -> dict[str, Any]:
        """Return the description of this machine for ``environment.json``."""
        return {
            "cpu": processor()[0],
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(self.device),
            "hardware": self.hardware,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        }

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the network runs: bf16 autocast, disabled in fp32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def apply(self) -> None:
        """Set PyTorch's global switches for determinism, TF32 and cuDNN.

        Call it before anything has run on a GPU.
        """
        if self.device.type == "cuda":
            # cuBLAS is deterministic only with this variable. PyTorch reads it once, at the first matrix product of the
            # process, which may belong to an earlier run. On Hopper GPUs the value equals the default workspace size.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.matmul.allow_tf32 = False  # keeps the head and ISDA's covariances in fp32
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.device.type == "cpu":
            _keep_freed_memory()


def resolve_compute(options: Mapping[str, Any], local_rank: int | None = None) -> Compute:
    """Return the settings that this process uses, from the ``compute`` node of a configuration.

    ``precision=auto`` is bf16 where the processor multiplies it natively, and ``channels_last=auto`` is on everywhere:
    the fastest settings in results/benchmarks/train_cpu.md. ``compile=auto`` is off: on a CPU torch.compile gains
    nothing (same file) and takes 40 to 50 s to start; on a GPU it has not been measured.

    Args:
        options: the ``compute`` node.
        local_rank: number of this process on its host, which selects the GPU; None with a single process.

    Raises:
        UserError: a GPU is required and there is none, or none for this process.
    """
    device = _device(options["device"], local_rank)
    precision = options["precision"]
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "fp32"
    gpu = device.type == "cuda"
    cuda_graph = options.get("cuda_graph", "auto")  # a frozen file may be older than this setting
    if cuda_graph is True and not gpu:
        raise UserError("compute.cuda_graph=true needs a CUDA device, and this run has none: leave it at auto")
    return Compute(
        device=device,
        hardware=torch.cuda.get_device_name(device) if gpu else processor()[0],
        precision=precision,
        tf32=gpu if options["tf32"] == "auto" else options["tf32"] and gpu,
        channels_last=True if options["channels_last"] == "auto" else options["channels_last"],
        compile=False if options["compile"] == "auto" else options["compile"],
        deterministic=options["deterministic"],
        micro_batch=options["micro_batch"],
        sync_bn=bool(options.get("sync_bn")),
        cuda_graph=gpu and cuda_graph is not False,
    )


def refuse_differences(compute: Compute, processes: Processes) -> None:
    """Check that all processes of a run compute with the same settings.

    Raises:
        UserError: an ``auto`` was resolved differently on one process than on the main process.
    """
    names = [field.name for field in fields(compute) if field.name not in ("device", "hardware")]
    settled = {"device": compute.device.type} | {name: getattr(compute, name) for name in names}
    if found := processes.first_difference(settled):
        raise UserError(
            f"compute.{found.name} became {found.on_main} on rank 0 and {found.there} on rank {found.rank}, whose "
            "hardware is another: give it a value that suits both"
        )


def _device(name: str, local_rank: int | None) -> torch.device:
    available = torch.cuda.is_available()
    if name == "gpu" and not available:
        raise UserError(
            "compute.device=gpu, but PyTorch sees no GPU here: use compute=cpu, or install a driver for this PyTorch "
            f"({torch.__version__}, built for CUDA {torch.version.cuda})"
        )
    if not available or name == "cpu":
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU, there are {torch.cuda.device_count()} here: start as many processes "
            "(torchrun --nproc_per_node=gpu), or use compute=cpu"
        )
    return torch.device("cuda", local_rank)


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool({"avx512_bf16", "amx_bf16"} & processor()[1])


def _keep_freed_memory() -> None:
    """Make glibc keep large freed buffers for the next step instead of returning them to the system.

    Otherwise every step gets its memory back page by page. Five pairs of runs on a noisy machine (ResNet-32, bf16) gave
    0.92, 1.06, 1.41, 1.13 and 1.14 times the images/s.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError):
        return  # another C library, without this setting


@cache
def processor() -> tuple[str, frozenset[str]]:
    """Return the CPU's name and its feature flags as Linux lists them; on other systems no flags."""
    table = Path("/proc/cpuinfo")
    if not table.exists():
        return platform.processor() or platform.machine(), frozenset()
    pairs = (line.partition(":") for line in table.read_text().splitlines())
    fields = {key.strip(): value.strip() for key, separator, value in pairs if separator}
    return fields.get("model name", platform.machine()), frozenset(fields.get("flags", "").split())
