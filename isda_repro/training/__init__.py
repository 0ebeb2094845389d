"""Training loop, evaluation, learning-rate schedules, checkpoints, and the life of a run in its directory.

``run.run`` trains one classifier from a frozen configuration; start reading there.
"""

from isda_repro.training.schedule import Cosine, MultiStep, Schedule

__all__ = ["Cosine", "MultiStep", "Schedule"]
