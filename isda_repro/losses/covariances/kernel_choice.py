"""The choice between ISDA's Triton kernels and plain torch.

The kernels are the default on every CUDA device on which they run: results/gpu/ has measurements of both forms.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor

from isda_repro.losses.covariances.class_statistics import ClassStatistics

MOST_CLASSES = 2**16 - 1  # a grid's second and third axis are no longer; samples are on the first
MOST_SAMPLES = 2**14  # the kernel that sorts them compares each with every other one
TRIED_CLASSES, TRIED_FEATURES = 128, 64


def check_kernels(kernels: bool | None, covariance: str) -> None:
    """Check the argument ``kernels`` of a loss with this form of covariance.

    Raises:
        ValueError: it is no bool or None; or it is True, and the covariances are not square and full, or there is no
            CUDA device or no Triton.
    """
    if kernels not in (None, True, False):
        raise ValueError(f"kernels={kernels} must be true, false or null")
    if not kernels:
        return
    if covariance != "full":
        raise ValueError(f"kernels=True is for square matrices of covariance='full', and not for {covariance} ones")
    if not (torch.cuda.is_available() or _is_interpreted()):
        raise ValueError("kernels=True needs a CUDA device, and PyTorch finds none; leave it out for plain torch")
    try:
        import isda_repro.losses.covariances.kernels  # noqa: F401
    except ImportError as error:
        raise ValueError(f"kernels=True needs Triton, which cannot be imported ({error}): pip install triton") from None


def takes_kernels(kernels: bool | None, logits: Tensor, statistics: ClassStatistics, samples: int) -> bool:
    """Return True if the kernels compute this batch.

    Args:
        kernels: the argument of the loss. None: use them on a CUDA device if they run there.
        logits: [N, C].
        statistics: those of the loss.
        samples: number of samples in the batches of all processes that share the statistics.
    """
    if kernels is False or torch.compiler.is_compiling() or not (logits.is_cuda or (kernels and _is_interpreted())):
        return False
    fits = logits.shape[1] <= MOST_CLASSES and samples <= MOST_SAMPLES
    fits = fits and all(
        one.dtype == logits.dtype == torch.float32 and one.is_contiguous()
        for one in (statistics.mean, statistics.covariance)
    )
    return fits and (kernels is True or _can_run(logits.device))


_RUNS: dict[torch.device, bool] = {}


def _can_run(device: torch.device) -> bool:
    """Return True if the kernels run on a CUDA device; they are not tried while a CUDA graph is being captured."""
    if device not in _RUNS and not torch.cuda.is_current_stream_capturing():
        _RUNS[device] = _tried_on(device)
    return _RUNS.get(device, False)


def _tried_on(device: torch.device) -> bool:
    """Compile and run the kernels on one sample, and warn if that fails, for example without a C compiler.

    The number of classes is such that they are compiled in the form that needs most of a device's shared memory.
    """
    try:
        from isda_repro.losses.covariances import kernels

        statistics = ClassStatistics(TRIED_CLASSES, TRIED_FEATURES).to(device)
        weight, sample = (
            statistics.mean.new_zeros(TRIED_CLASSES, TRIED_FEATURES),
            torch.zeros(1, TRIED_FEATURES, device=device),
        )
        with torch.cuda.device_of(sample):  # Triton launches on the current device
            batch = kernels.update(statistics, sample, torch.zeros(1, dtype=torch.int64, device=device))
            kernels.add_half_sigma2(sample @ weight.T, weight, statistics.covariance, batch, 0.0)
    except Exception as error:  # Triton reports a missing compiler, driver or file by many types of exceptions
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(f"ISDALoss uses plain torch, because its Triton kernels do not run here: {reason}", stacklevel=2)
        return False
    return True


def _is_interpreted() -> bool:
    """Return True if Triton interprets its kernels on the CPU, slowly, as the tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"
