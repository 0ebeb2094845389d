"""What happens in a run, told to people and to files: JSON lines, the progress bar, W&B."""

from isda_repro.tracking.jsonl import JsonLines
from isda_repro.tracking.progress_bar import Progress
from isda_repro.tracking.tracker import Record, Tracker
from isda_repro.tracking.wandb import WandbTracker

__all__ = ["JsonLines", "Progress", "Record", "Tracker", "WandbTracker"]
