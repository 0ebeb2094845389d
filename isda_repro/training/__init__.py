"""The loop, evaluation, schedules, checkpoints and the run directory."""

from isda_repro.training.schedule import Cosine, MultiStep, Schedule

__all__ = ["Cosine", "MultiStep", "Schedule"]
