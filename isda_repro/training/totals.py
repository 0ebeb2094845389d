"""What an epoch adds up to while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isda_repro.training.processes import ALONE, Processes
from isda_repro.training.step import StepResult


class RunningTotals:
    """Sums over an epoch, kept on the device: loss, errors, samples, and the first step whose loss was not finite.

    They are of this process's samples, until someone asks for those of all.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._samples = 0

    def reset(self) -> None:
        """Begin anew, in the same storage: a captured step goes on adding to it."""
        self._sums.zero_()
        self._first_bad_step.fill_(-1)
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """What has been added up, if all of it was finite."""
        return {"sums": self._sums.tolist(), "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self._samples = state["samples"]

    @torch.no_grad()
    def add(self, result: StepResult, targets: Tensor, step: int | Tensor) -> None:
        """Add one batch on the device; ``count`` adds its samples on the host, which a captured step cannot do."""
        wrong = (result.logits.argmax(1) != targets).sum()
        self._sums += torch.stack([result.loss.double() * len(targets), wrong.double()])
        bad = ~result.loss.isfinite() & (self._first_bad_step < 0)
        self._first_bad_step.copy_(torch.where(bad, step, self._first_bad_step))

    def count(self, samples: int) -> None:
        """Count the samples of the batch that ``add`` has added."""
        self._samples += samples

    def bad_step(self, processes: Processes) -> int | None:
        """A step of any process whose loss was not finite, its first one. Waits for the device, and for all of them."""
        step = processes.largest(1 + int(self._first_bad_step))
        return step - 1 if step else None

    def means(self, processes: Processes = ALONE) -> tuple[float, float]:
        """Mean loss, and error in percent, of these processes. Waits for the device, and for all of them."""
        sums = torch.cat([self._sums, self._sums.new_tensor([self._samples])])
        loss, errors, samples = processes.add_up(sums).tolist()
        return loss / max(1, samples), 100 * errors / max(1, samples)


def added_up(totals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of ``RunningTotals`` over all processes."""
    columns = zip(*(one["sums"] for one in totals), strict=True)
    return {"sums": [sum(column) for column in columns], "samples": sum(one["samples"] for one in totals)}
