"""What a person sees while generators are trained."""

from __future__ import annotations

from typing import Any

from isda_repro.tracking import Progress
from isda_repro.tracking.tracker import Record


class GanProgress(Progress):
    """The same bar and lines as a classifier's, with both losses and what the discriminator says."""

    def running_words(self, running: Any) -> str:
        """An epoch's losses so far."""
        discriminator, generator = (running.get(f"{who}/loss") for who in ("discriminator", "generator"))
        said = f"discriminator {discriminator:.3f}"
        return said if generator is None else f"{said}, generator {generator:.3f}"

    def epoch_words(self, record: Record) -> str:
        """What an epoch came to."""
        named = f"  class loss of generated {record['fake_class_loss']:.3f}" if "fake_class_loss" in record else ""
        codes = f"  of the codes {record['code_loss']:.3f}" if "code_loss" in record else ""
        generator = f", generator {record['generator_loss']:.4f}" if "generator_loss" in record else ""
        return (
            f"loss of discriminator {record['discriminator_loss']:.4f}{generator}  "
            f"real {record['real_score']:.3f}, generated {record['fake_score']:.3f}{named}{codes}"
        )
