"""Several small runs at once against one after another: images/s of a whole sweep, start-up included.

    python benchmarks/packing.py [output=results/benchmarks/packing_cpu.md]

The sweep has four runs of ResNet-20 with ISDA on scikit-learn's digits. On a CPU it runs with ``jobs=1`` and
``jobs=2``; on a GPU with ``jobs=1``, ``runs_per_gpu=2`` and ``runs_per_gpu=4``. There is no bar, because the gain
depends on the machine.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from isda_repro.errors import one_sentence_errors
from isda_repro.measurements import conclude, machine, output_argument

ROOT = Path(__file__).resolve().parents[1]
SEEDS, EPOCHS, EPOCHS_ON_GPU = 4, 30, 400
TABLE = """
title: runs to be packed
metric: test_error_last10
seeds: {seeds}
set: [model=resnet20, dataset=digits, recipe.epochs={epochs}, tracking=none]
rows: [{{digits: []}}]
columns: [{{ISDA: loss=isda}}]
"""


def images_per_second(folder: Path, epochs: int, *options: str) -> tuple[float, list[float]]:
    """Run the sweep; return the images per second of the sweep, and of each of its runs while it trained."""
    folder.mkdir()
    table = folder / "table.yaml"
    table.write_text(TABLE.format(seeds=list(range(SEEDS)), epochs=epochs))
    command = [sys.executable, "scripts/sweep.py", f"table={table}", f"runs_dir={folder}/runs", *options]
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    results = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/result.json")]
    assert len(results) == SEEDS
    images = sum(result["train_images"] * result["epochs"] for result in results)
    return images / seconds, [result["timing"]["images_per_s"] for result in results]


def main() -> None:
    """Measure, print a report, and write it if asked."""
    output = output_argument(sys.argv[1:])
    gpu = torch.cuda.is_available()
    epochs = EPOCHS_ON_GPU if gpu else EPOCHS
    ways = ["jobs=1", "runs_per_gpu=2", "runs_per_gpu=4"] if gpu else ["jobs=1", "jobs=2"]
    lines = [
        "# Several small runs at once",
        "",
        f"`python benchmarks/packing.py`: {SEEDS} runs of ResNet-20 with ISDA on digits, {epochs} epochs each,",
        "as one sweep. Images/s of the whole sweep, start-up and evaluation included; and of one run while it trains.",
        "",
        "| sweep | images/s of all | over jobs=1 | images/s of a run |",
        "| --- | ---: | ---: | ---: |",
    ]
    first: float | None = None
    with tempfile.TemporaryDirectory() as name:
        images_per_second(Path(name) / "warm", 1, "jobs=1")  # the first imports take longer
        for way in ways:
            total, each = images_per_second(Path(name) / way, epochs, way)
            first = first or total
            lines.append(f"| `{way}` | {total:,.0f} | {total / first:.2f}x | {sum(each) / len(each):,.0f} |")
    where = [f"GPU: {torch.cuda.get_device_name()}."] if gpu else []
    conclude([*lines, "", *machine(), *where], [], output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
