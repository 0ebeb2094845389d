"""Count the parameters, cost and memory of each network, and print a table of them.

    python scripts/models.py
    python scripts/models.py only=[resnet32,resnet50]
    python scripts/models.py output=results/models.md data=isda_repro/tables/costs.json      # both committed files

The table shows parameters, multiply-adds, the width of the features and the memory for the gradient, counted on the
network itself at the size of its images, next to the paper's figures. It also shows ISDA's theoretical cost as in
Table 1: 5 C A over the multiply-adds of a forward pass. Nothing is trained or timed; PyTorch's flop counter counts.
``data=`` writes the multiply-adds, from which isda_repro/tables/costs.py computes the cost of a run.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from isda_repro.errors import UserError, check_installation, one_sentence_errors

check_installation()

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from isda_repro.config import CONF_DIR, build_model, compose
from isda_repro.config.options import parse_options
from isda_repro.experiments.paper_values import PAPERS_NAMES, on_imagenet, reported
from isda_repro.files import check_output, write_output
from isda_repro.measurements import bytes_for_gradient, conclude, output_path
from isda_repro.models import Network
from isda_repro.tables import costs

VARIANTS = [  # the authors' fewer first channels, and DenseNets that recompute concatenations to save memory
    *((model, "faithful=official") for model in ("densenet121", "densenet265", "densenet_bc190_40")),
    *((model, "model.checkpointed=true") for model in ("densenet_bc100_12", "densenet_bc190_40")),
]
COUNTED_TOO = [  # only in costs.json: other networks whose size differs in the authors' code, and one that was timed
    *((model, "faithful=official") for model in ("densenet_bc100_12", "shake_shake26_2x32d", "shake_shake26_2x112d")),
    ("shake_shake26_2x112d", "model.width=96"),
]
CIFAR, IMAGENET = costs.DATASETS["cifar10"], costs.DATASETS["imagenet"]
SMALL = costs.DATASETS["digits"].pixels

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
    """Options of this script."""

    output: str | None = None
    data: str | None = None
    only: list[str] = field(default_factory=list)


class Counted(NamedTuple):
    """Parameters, multiply-adds, bytes per image for the gradient, feature width and recipe PFLOP of a network."""

    parameters: int
    multiply_adds: int
    bytes_for_gradient: int
    feature_dim: int
    petaflop: float


def built(model: str, *overrides: str) -> tuple[DictConfig, Network]:
    """Compose the configuration of a model, and build its network for the classes of its data set."""
    size = [f"model.image_size={IMAGENET.pixels}"] if on_imagenet(model) else []
    cfg = compose([f"model={model}", *size, *overrides])
    return cfg, build_model(cfg, (IMAGENET if on_imagenet(model) else CIFAR).classes)


def multiply_adds(network: Network, pixels: int) -> int:
    """Return the multiply-adds of the forward pass of one image, head included."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.randn(1, 3, pixels, pixels))
    return int(counter.get_total_flops()) // 2


def count(model: str, *overrides: str) -> Counted:
    """Count everything about a model on one image of noise."""
    images = IMAGENET if on_imagenet(model) else CIFAR
    cfg, network = built(model, *overrides)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    forward = multiply_adds(network, images.pixels)
    petaflop = costs.training_petaflop(forward, images.training * cfg.recipe.epochs)
    kept = bytes_for_gradient(network, torch.randn(1, 3, images.pixels, images.pixels))
    return Counted(parameters, forward, kept, network.feature_dim, petaflop)


def entry(model: str, *overrides: str) -> dict[str, Any]:
    """Return the entry of a network in costs.json: its multiply-adds at the image sizes that it is trained on."""
    cfg, network = built(model, *overrides)
    sizes = (CIFAR.pixels, IMAGENET.pixels) if on_imagenet(model) else (SMALL, CIFAR.pixels)
    weights, biases = network.head.weight.numel(), network.head.out_features
    return {
        "settings": costs.size_settings(OmegaConf.to_container(cfg.model)),  # type: ignore[arg-type]
        "feature_dim": network.feature_dim,
        "body_parameters": sum(parameter.numel() for parameter in network.parameters()) - weights - biases,
        "body_multiply_adds": {str(pixels): multiply_adds(network, pixels) - weights for pixels in sizes},
    }


def write_data(path: Path, models: list[str]) -> None:
    """Write costs.json with one line per network, so that diffs are readable."""
    variants = [one for one in (*VARIANTS, *COUNTED_TOO) if not one[1].startswith("model.checkpointed")]
    counted = {" ".join(one): entry(*one) for one in [*((model,) for model in models), *variants]}
    lines = (f"{json.dumps(name)}: {json.dumps(counted[name], sort_keys=True)}" for name in sorted(counted))
    write_output(path, "{\n" + ",\n".join(lines) + "\n}\n")


def row(model: str, *overrides: str) -> str:
    """Return a line of the table."""
    counted = count(model, *overrides)
    images = IMAGENET if on_imagenet(model) else CIFAR
    said = paper(model)
    hours = {one.gpu: costs.rounded(one.hours) for one in costs.estimates(model, counted.petaflop, images.pixels)}
    cells = [
        f"`{' '.join([model, *overrides])}`",
        f"{counted.parameters:,}",
        f"{counted.parameters / 1e6:.2f}",
        said.get("params_m", ""),
        f"{counted.multiply_adds / 1e6:,.1f}",
        f"{counted.feature_dim:,}",
        f"{counted.bytes_for_gradient / 2**20:,.1f}",
        f"{100 * 5 * images.classes * counted.feature_dim / counted.multiply_adds:.2f}%",
        f"{said['cost_theoretical_pct']:.2f}%" if "cost_theoretical_pct" in said else "",
        costs.counted(counted.petaflop),
        hours.get("GTX 980", ""),
        hours.get("V100", ""),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def published() -> str:
    """Return the published training times on the GTX 980 as text."""
    return ",\n".join(
        f"`{one.network}` ({int(one.hours)} h {round(one.hours % 1 * 60):02}, {one.epochs} epochs)"
        for one in costs.ON_GTX_980
    )


def paper(model: str) -> dict[str, Any]:
    """Return the paper's row about a model, or an empty dictionary."""
    rows = [*reported()["table1"]["rows"], *reported()["table2"]["rows"]]
    return next((one for one in rows if one["network"] == PAPERS_NAMES.get(model)), {})


def main() -> None:
    """Count the chosen models and print the table."""
    options = parse_options(Options, sys.argv[1:])
    output = output_path(options.output)
    models = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
    chosen = [model for model in models if not options.only or model in options.only]
    if unknown := set(options.only) - set(models):
        raise UserError(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(models)}")
    if options.data is not None:
        check_output(Path(options.data), [".json"])
        if options.only:
            raise UserError("data= is written of all models: leave out only=")
        write_data(Path(options.data), models)
    lines = [
        *ABOVE.format(rate=costs.rate(costs.ON_V100) / 3.6, measured=published()).splitlines(),
        *(row(model) for model in chosen),
        *(row(model, override) for model, override in VARIANTS if model in chosen),
    ]
    conclude(lines, (), output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
