"""What each network is and costs:  python scripts/models.py [output=results/models.md] [only=[resnet32,resnet50]]

Parameters, multiply-adds, width of the features and memory for the gradient, counted on the network itself at the size
of its images, beside the paper's figures; and ISDA's theoretical cost, Table 1's: 5 C A over the multiply-adds of a
forward pass. Nothing is trained and nothing measured: the counter is PyTorch's own.
"""

import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarking import conclude
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isda_repro.config import CONF_DIR, build_model, compose
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.models import Network
from isda_repro.options import parse_options

REPORTED: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR.parent / "isda_repro" / "tables" / "reported.yaml"))
PAPERS_NAMES = {
    "resnet32": "ResNet-32",
    "resnet110": "ResNet-110",
    "se_resnet110": "SE-ResNet-110",
    "wrn16_8": "Wide-ResNet-16-8",
    "wrn28_10": "Wide-ResNet-28-10",
    "resnext29_8x64d": "ResNeXt-29, 8x64d",
    "densenet_bc100_12": "DenseNet-BC-100-12",
    "densenet_bc190_40": "DenseNet-BC-190-40",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
    "densenet121": "DenseNet-BC-121",
    "densenet265": "DenseNet-BC-265",
    "resnext50_32x4d": "ResNeXt-50, 32x4d",
    "resnext101_32x8d": "ResNeXt-101, 32x8d",
}
VARIANTS = [  # the authors' fewer first channels, and DenseNets that compute concatenations again
    *((model, "faithful=official") for model in ("densenet121", "densenet265", "densenet_bc190_40")),
    *((model, "model.checkpointed=true") for model in ("densenet_bc100_12", "densenet_bc190_40")),
]
V100_TFLOPS = 3 * 2 * 5_243.3e6 * 50_000 * 200 / (3 * 3600 + 41 * 60) / 1e12
ON_GTX_980 = [  # from hysts' README: a network as `cost_of` takes it, epochs, hours; and those with layers like its
    (("resnet110",), 160, 3 + 6 / 60, ("resnet20", "resnet32", "resnet110", "se_resnet110")),
    (("wrn28_10",), 200, 16 + 10 / 60, ("wrn16_8", "wrn28_10")),
    (("resnext29_8x64d",), 300, 42 + 50 / 60, ("resnext29_8x64d",)),
    (("densenet_bc100_12",), 300, 15 + 20 / 60, ("densenet_bc100_12",)),
    (("shake_shake26_2x32d",), 1800, 33 + 49 / 60, ("shake_shake26_2x32d",)),
    (("shake_shake26_2x112d", "model.width=96"), 1800, 101 + 32 / 60, ("shake_shake26_2x112d",)),
]
CIFAR, IMAGENET = (10, 32, 50_000), (1000, 224, 1_281_167)  # classes, pixels, training images

ABOVE = """\
# Networks: what they are and cost

`python scripts/models.py`, counted by PyTorch's flop counter on one image: 32 x 32 pixels and 10 classes, or 224 x 224
and 1,000 for Table 1's. Multiply-adds are those of convolutions and linear layers. MiB: what autograd keeps of an
image for the gradient, in fp32, eager. ISDA's cost is 5 C A over the forward multiply-adds, as in Table 1. PFLOP: the
whole recipe, three forward passes a step, two operations a multiply-add.

Hours are estimates from measurements that are not ours, all from the README of hysts/pytorch_image_classification. On a
GTX 980, CIFAR: the times of
{measured},
for as many epochs as ours; networks with layers like these take as long per multiply-add. On one V100: everything at
the {rate:.1f} TFLOP/s of Wide-ResNet-28-10 (200 epochs in 3 h 41, batches of 512), which networks of smaller layers are
far from reaching.

| `model=` | parameters | M | paper | multiply-adds, M | A | MiB | ISDA | paper | PFLOP | GTX 980, h | V100, h |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


@dataclass
class Options:
    """What is typed behind the script."""

    output: str | None = None
    only: list[str] = field(default_factory=list)


class Cost(NamedTuple):
    """Of one network: parameters, multiply-adds and bytes for the gradient of an image, A, and of its recipe."""

    parameters: int
    multiply_adds: int
    bytes_for_gradient: int
    feature_dim: int
    epochs: int
    petaflop: float


def on_imagenet(model: str) -> bool:
    """Whether the paper has it in Table 1."""
    return any(row["network"] == PAPERS_NAMES.get(model) for row in REPORTED["table1"]["rows"])


def cost_of(model: str, *overrides: str) -> Cost:
    """Count, on one image of noise."""
    classes, pixels, images = IMAGENET if on_imagenet(model) else CIFAR
    size = [f"model.image_size={pixels}"] if on_imagenet(model) else []
    cfg = compose([f"model={model}", *size, *overrides])
    network: Network = build_model(cfg, classes)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    one = torch.randn(1, 3, pixels, pixels)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(one)
    forward = counter.get_total_flops()
    # A training step costs three forward passes: the gradients of inputs and of weights are one each.
    petaflop = 3 * forward * images * cfg.recipe.epochs / 1e15
    kept = bytes_for_gradient(network, one)
    return Cost(parameters, forward // 2, kept, network.feature_dim, cfg.recipe.epochs, petaflop)


def bytes_for_gradient(network: Network, one: Tensor) -> int:
    """What autograd keeps of one image in fp32, weights apart; each storage once."""
    weights = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses from being used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(one)
    return sum(storage.nbytes() for storage in kept.values())


def row(model: str, *overrides: str) -> str:
    """A line of the table."""
    cost = cost_of(model, *overrides)
    classes = (IMAGENET if on_imagenet(model) else CIFAR)[0]
    said = paper(model)
    cells = [
        f"`{' '.join([model, *overrides])}`",
        f"{cost.parameters:,}",
        f"{cost.parameters / 1e6:.2f}",
        said.get("params_m", ""),
        f"{cost.multiply_adds / 1e6:,.1f}",
        f"{cost.feature_dim:,}",
        f"{cost.bytes_for_gradient / 2**20:,.1f}",
        f"{100 * 5 * classes * cost.feature_dim / cost.multiply_adds:.2f}%",
        f"{said['cost_theoretical_pct']:.2f}%" if "cost_theoretical_pct" in said else "",
        f"{cost.petaflop:,.0f}",
        written(hours_on_gtx_980(model, cost)),
        written(hours_on_v100(cost)),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def hours_on_v100(cost: Cost) -> float:
    """At the rate of the one measurement that there is."""
    return cost.petaflop * 1000 / V100_TFLOPS / 3600


def hours_on_gtx_980(model: str, cost: Cost) -> float | None:
    """At the measured rate of the network with such layers, if there is one."""
    for measured, epochs, hours, like_it in ON_GTX_980:
        if model in like_it:
            return hours / epochs * cost.epochs * cost.multiply_adds / multiply_adds(*measured)
    return None


@cache
def multiply_adds(model: str, *overrides: str) -> int:
    """Of an image."""
    return cost_of(model, *overrides).multiply_adds


def written(hours: float | None) -> str:
    """Two digits at least."""
    if hours is None:
        return ""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def published() -> str:
    """The times on the GTX 980."""
    return ",\n".join(
        f"`{' '.join(measured)}` ({int(hours)} h {round(hours % 1 * 60):02}, {epochs} epochs)"
        for measured, epochs, hours, _ in ON_GTX_980
    )


def paper(model: str) -> dict[str, Any]:
    """The paper's row."""
    rows = [*REPORTED["table1"]["rows"], *REPORTED["table2"]["rows"]]
    return next((one for one in rows if one["network"] == PAPERS_NAMES.get(model)), {})


def main() -> None:
    """Count all, print the table."""
    options = parse_options(Options, sys.argv[1:])
    models = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
    chosen = [model for model in models if not options.only or model in options.only]
    if unknown := set(options.only) - set(models):
        raise UserError(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(models)}")
    lines = [
        *ABOVE.format(rate=V100_TFLOPS, measured=published()).splitlines(),
        *(row(model) for model in chosen),
        *(row(model, override) for model, override in VARIANTS if model in chosen),
    ]
    conclude(lines, (), None if options.output is None else Path(options.output))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
