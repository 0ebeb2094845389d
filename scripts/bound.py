"""Plot ISDA's closed form against explicit sampling, on the features of a finished ISDA run. From the repository root:

python scripts/bound.py run=runs/<run_id>                                     # one of table=demo, for example
python scripts/bound.py run=runs/<run_id> figure=results/figures/bound.png    # and .svg

For lambda from 0 to 1, the figure shows the closed form (equation 4), the expectation that it bounds (equation 3), and
the interval that holds 90% of the estimates with M draws per image (equation 2). They are computed on the first
evaluated images, with the network's head and the run's covariances. data_dir= gives the data folder if it has moved.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import MISSING
from torch import Tensor, nn

from isda_repro.config.options import parse_options
from isda_repro.losses import ClassStatistics
from isda_repro.losses.batch_classes import BatchClasses
from isda_repro.losses.covariances.quadratic import add_half_sigma2
from isda_repro.losses.sampled import covariance_root
from isda_repro.plotting import check_figure, write_figure

DRAWS = (1, 10, 100, 1000)
ESTIMATES = 100  # number of estimates per lambda; an estimate with M draws uses the first M of the 1000
SAMPLES = 64
LAMBDAS = torch.linspace(0, 1, 9)  # the grid of the paper ends there


@dataclass
class BoundOptions:
    """Options of this script."""

    run: str = MISSING
    figure: str = "runs/bound.png"
    data_dir: str | None = None


class Curves(NamedTuple):
    """Cross-entropy at each lambda: the closed form, its expectation, and the 5% and 95% quantiles for each M."""

    closed: Tensor
    expected: Tensor
    bands: dict[int, Tensor]  # [2, lambdas]


class Features(NamedTuple):
    """Features and labels of a batch, with the head and the class covariances of the run."""

    features: Tensor
    targets: Tensor
    head: nn.Linear
    covariance: Tensor


def features_of(options: BoundOptions) -> Features:
    """Return the features of the first ``SAMPLES`` evaluated images of a run, with its head and covariances.

    Raises:
        UserError: the run does not have full covariances in unpacked form.
    """
    from isda_repro.evaluation import load_finished_run
    from isda_repro.training import builders

    run = load_finished_run(Path(options.run), "cpu", options.data_dir)
    if not isinstance(run.isda.statistics, ClassStatistics) or run.isda.covariance != "full":
        raise UserError(f"{options.run} has loss.covariance={run.isda.covariance}: this is for full ones, not packed")
    images, targets = next(iter(builders.build_loaders(run.cfg, run.source, run.compute)[1].epoch(0)))
    with torch.no_grad():
        features = run.network.eval()(images[:SAMPLES]).features
    return Features(features, targets[:SAMPLES], run.network.head, run.isda.statistics.covariance)


@torch.no_grad()
def curves(batch: Features) -> Curves:
    """Compute equation 4 exactly, and equations 2 and 3 from ``ESTIMATES`` times 1000 draws per image."""
    features, targets, head, covariance = batch
    classes = BatchClasses(None, targets)
    closed = [
        F.cross_entropy(add_half_sigma2(head(features), head.weight, covariance, classes, float(strength)), targets)
        for strength in LAMBDAS
    ]
    root_NAA = covariance_root(covariance)[targets].float()
    labels_NM = targets[:, None].expand(-1, DRAWS[-1])
    estimates: dict[int, list[Tensor]] = {draws: [] for draws in DRAWS}
    for _ in range(ESTIMATES):
        # logits of the noise at lambda = 1, [N, M, C]; at another lambda they are sqrt(lambda) times as large
        moved_NMC = torch.randn(len(targets), DRAWS[-1], features.shape[1]) @ (root_NAA.mT @ head.weight.T)
        of_lambdas = []
        for strength in LAMBDAS:
            logits_NMC = head(features)[:, None] + strength.sqrt() * moved_NMC
            of_lambdas.append(F.cross_entropy(logits_NMC.mT, labels_NM, reduction="none").mean(0))
        losses = torch.stack(of_lambdas, 1)  # [M, lambdas], means over the images
        for draws in DRAWS:
            estimates[draws].append(losses[:draws].mean(0))
    found = {draws: torch.stack(values) for draws, values in estimates.items()}
    bands = {draws: values.quantile(torch.tensor([0.05, 0.95]), 0) for draws, values in found.items()}
    return Curves(torch.stack(closed), found[DRAWS[-1]].mean(0), bands)


def figure_of(result: Curves) -> Figure:
    """Plot the curves in black and shades of grey."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for shade, (draws, band) in zip(("0.92", "0.82", "0.68", "0.45"), result.bands.items(), strict=True):
        label = f"90% of estimates with {draws} draw{'s' if draws > 1 else ''} an image"
        axes.fill_between(LAMBDAS, *band, color=shade, linewidth=0, label=label)
    axes.plot(LAMBDAS, result.expected, "k--", label="their expectation (equation 3)")
    axes.plot(LAMBDAS, result.closed, "k-", marker="o", markersize=3.5, label="closed form (equation 4)")
    axes.set(xlabel="λ", ylabel="cross-entropy", xlim=(0, float(LAMBDAS[-1])), ylim=(0, None))
    axes.legend(loc="upper left", fontsize=8.5)
    return figure


def main(arguments: list[str]) -> None:
    """Compute the curves, write the figure and print the numbers."""
    options = parse_options(BoundOptions, arguments)
    check_figure(Path(options.figure))
    torch.manual_seed(0)
    result = curves(features_of(options))
    paths = write_figure(Path(options.figure), lambda: figure_of(result))
    print("lambda  closed form  expectation  90% of estimates: " + ", ".join(f"M = {draws}" for draws in DRAWS))
    for index, strength in enumerate(LAMBDAS):
        bands = "  ".join(f"{band[0, index]:.3f}-{band[1, index]:.3f}" for band in result.bands.values())
        print(f"{strength:6.3f}  {result.closed[index]:11.3f}  {result.expected[index]:11.3f}  {bands}")
    print(f"figure: {paths[0]}")


if __name__ == "__main__":
    with one_sentence_errors():
        main(sys.argv[1:])
