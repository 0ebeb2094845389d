"""Metrics of a run: JSON lines, the progress bar, and W&B."""

from isda_repro.tracking.jsonl import JsonLines
from isda_repro.tracking.progress_bar import Progress
from isda_repro.tracking.tracker import Record, Tracker
from isda_repro.tracking.wandb import WandbTracker

__all__ = ["JsonLines", "Progress", "Record", "Tracker", "WandbTracker"]
