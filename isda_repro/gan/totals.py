"""What an epoch of a game adds up to while it is played."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isda_repro.training.processes import ALONE, Processes


class Totals:
    """Sums of losses and scores by name, over this process's images, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}  # each [2]: weighted by images, and these

    @torch.no_grad()
    def add(self, who: str, losses: Mapping[str, Tensor], samples: int) -> None:
        """Take in those of a step, each a mean over ``samples`` images."""
        for name, value in losses.items():
            if (key := f"{who}/{name}") not in self._sums:
                self._sums[key] = torch.zeros(2, dtype=torch.float64, device=self._device)
            self._sums[key][0] += value.double() * samples
            self._sums[key][1] += samples

    def is_bad(self, processes: Processes = ALONE) -> bool:
        """Whether a loss of any process was not finite. Waits for the device, and for all of them."""
        finite = all(bool(sums.isfinite().all()) for sums in self._sums.values())
        return bool(processes.largest(int(not finite)))

    def means(self, processes: Processes = ALONE) -> dict[str, float]:
        """By name, over these processes. Waits for the device, and for all of them."""
        return {name: total / images for name, (total, images) in self.of_all(processes).items()}

    def of_all(self, processes: Processes) -> dict[str, Any]:
        """The sums by name, over these processes."""
        added: dict[str, list[float]] = {}
        for own in processes.told_to_all({name: sums.tolist() for name, sums in self._sums.items()}):
            for name, (total, images) in own.items():
                before = added.get(name, [0.0, 0.0])
                added[name] = [before[0] + total, before[1] + images]
        return dict(sorted(added.items()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``of_all`` gave."""
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=self._device) for name, sums in state.items()
        }
