"""Images per second, forward and backward, of each network: ours against torchvision's, timm's or a plain form of it.

    python benchmarks/network_speed.py                                     # half an hour on 2 cores
    python benchmarks/network_speed.py output=results/benchmarks/models_cpu.md      # also writes what it prints
    python benchmarks/network_speed.py only=[resnet32,wrn16_8] compiled=[resnet32]

Both forms have the same weights and images, and take turns; each ratio is the median over the turns of the ratio within
a turn. A copy of our network takes turns too, and its difference from ours is the noise. Further columns show the gains
of channels_last, bf16 and torch.compile for our networks, and a second table the time and memory of DenseNet's
checkpoints. Uses a GPU if there is one. Exits 1 if a network of ours is slower than the other form.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from reference.plain_networks import plain_network, same_weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isda_repro.config import CONF_DIR, build_model, compose
from isda_repro.config.options import parse_options
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.experiments.paper_values import on_imagenet
from isda_repro.measurements import THREADS, bytes_for_gradient, conclude, machine, output_path
from isda_repro.models import Network, NetworkOutput
from isda_repro.tables.costs import DATASETS, Images

PAIR_TURNS, FORM_TURNS, TURN_SECONDS = 16, 6, 1.0
BAR = 0.95  # counts as equal: a copy of a network differs from it by a few percent on two cores
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH_MULTIPLY_ADDS = 2e10 if DEVICE.type == "cpu" else 1e12  # a forward pass of at most a second
LARGEST_BATCH = 128


@dataclass
class Options:
    """Options of the script.

    Attributes:
        output: Markdown file to write the report to.
        only: models to measure; empty: all.
        compiled: models that are also measured with torch.compile, which takes minutes each on a CPU.
    """

    output: str | None = None
    only: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=lambda: ["resnet32", "wrn16_8", "resnet50"])


class Batch(NamedTuple):
    """Random images and labels."""

    images: Tensor
    targets: Tensor


Step = Callable[[Batch], None]


def step_of(network: nn.Module, bf16: bool = False, compiled: bool = False) -> Step:
    """Return a training step without an optimizer: forward pass, cross-entropy, backward pass."""
    call = cast(nn.Module, torch.compile(network)) if compiled else network

    def step(batch: Batch) -> None:
        for parameter in network.parameters():
            parameter.grad = None
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            output: NetworkOutput | Tensor = call(batch.images)
        logits = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits.float(), batch.targets).backward()

    return step


def rate(step: Step, batch: Batch) -> float:
    """Return the images per second of a step, measured for ``TURN_SECONDS``."""
    images, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < TURN_SECONDS:
        step(batch)
        images += len(batch.images)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - begin)


def in_turns(steps: dict[str, tuple[Step, Batch]], turns: int) -> dict[str, list[float]]:
    """Return the rates of several forms, measured in turns after a warm-up; every second turn reverses the order."""
    for step, batch in steps.values():
        step(batch)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(turns):
        for name in order:
            rates[name].append(rate(*steps[name]))
        order.reverse()
    return rates


def ratio(rates: dict[str, list[float]], name: str, base: str) -> float:
    """Return the median over the turns of the ratio of two rates."""
    return statistics.median(one / other for one, other in zip(rates[name], rates[base], strict=True))


def images_of(model: str) -> Images:
    """Return the sizes of the data set of a model."""
    return DATASETS["imagenet" if on_imagenet(model) else "cifar10"]


def network_of(model: str, *overrides: str) -> Network:
    """Return our network of ``model=`` on the device, in training mode."""
    torch.manual_seed(0)
    images = images_of(model)
    size = [f"model.image_size={images.pixels}"] if on_imagenet(model) else []
    network: Network = build_model(compose([f"model={model}", *size, *overrides]), images.classes)
    return network.to(DEVICE).train()


def batch_for(model: str, network: Network) -> Batch:
    """Return a batch for a forward pass of about a second or less: a power of two from 4 to 128 images."""
    classes, _, pixels = images_of(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.randn(1, 3, pixels, pixels, device=DEVICE))
    network.train()
    size = 4
    while 2 * size <= min(LARGEST_BATCH, BATCH_MULTIPLY_ADDS / (counter.get_total_flops() / 2)):
        size *= 2
    images = torch.randn(size, 3, pixels, pixels, device=DEVICE)
    return Batch(images, torch.randint(classes, (size,), device=DEVICE))


def in_channels_last(batch: Batch) -> Batch:
    """Return the batch with its images in channels_last."""
    return Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.targets)


def measure(model: str, compiled: bool) -> tuple[str, float]:
    """Return the table row of a model, and the ratio of our rate to that of the reference."""
    ours = network_of(model)
    batch = batch_for(model, ours)
    theirs = plain_network(model, ours.head.out_features).to(DEVICE).train()
    same_weights(ours, theirs)
    networks = {"ours": ours, "theirs": theirs, "copy": copy.deepcopy(ours)}
    pair = in_turns({name: (step_of(network), batch) for name, network in networks.items()}, PAIR_TURNS)
    last = in_channels_last(batch)
    other = network_of(model).to(memory_format=torch.channels_last)
    forms = {
        "contiguous": (step_of(ours), batch),
        "channels_last": (step_of(other), last),
        "bf16": (step_of(other, bf16=True), last),
    }
    if compiled:
        forms["compiled"] = (step_of(other, bf16=True, compiled=True), last)
    rates = in_turns(forms, FORM_TURNS)
    own, against = statistics.median(pair["ours"]), ratio(pair, "ours", "theirs")
    gains = [
        f"{ratio(rates, name, 'contiguous'):.2f}" if name in rates else "" for name in (*list(forms)[1:3], "compiled")
    ]
    noise = f"{ratio(pair, 'copy', 'ours'):.2f}"
    cells = [f"`{model}`", str(len(batch.images)), f"{own:,.1f}", f"{against:.2f}", noise, *gains]
    return f"| {' | '.join(cells)} |", against


def checkpoint_line(model: str) -> str:
    """Return the table row of a DenseNet with checkpointing: its relative speed, and the memory for its gradient."""
    plain, thrifty = network_of(model), network_of(model, "model.checkpointed=true")
    batch = batch_for(model, plain)
    rates = in_turns({"plain": (step_of(plain), batch), "checkpointed": (step_of(thrifty), batch)}, FORM_TURNS)
    one = batch.images[:1].clone()  # a view would keep the memory of the whole batch, and count it
    kept = [bytes_for_gradient(network, one) / 2**20 for network in (plain, thrifty)]
    return (
        f"| `{model} model.checkpointed=true` | {ratio(rates, 'checkpointed', 'plain'):.2f} | {kept[1]:.1f} | "
        f"{kept[0]:.1f} | {kept[1] / kept[0]:.0%} |"
    )


def report(models: Sequence[str], compiled: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the lines of the report, and the names of models that miss the bar."""
    lines = [
        f"# Networks: images per second, forward and backward, {'CPU' if DEVICE.type == 'cpu' else 'GPU'}",
        "",
        "`python benchmarks/network_speed.py`: each network against torchvision's, timm's or a plain form of it",
        "(benchmarks/reference), both eager, contiguous, fp32, with the same weights: the median of the ratios in",
        f"{PAIR_TURNS} turns of {TURN_SECONDS:g} s or one step; equal is {BAR} or more. A copy of ours over ours, in",
        "the same turns, shows the noise. Then ours in other forms over ours contiguous in fp32, in",
        f"{FORM_TURNS} turns: fp32 in channels_last; bf16 in channels_last; that compiled. An empty cell was not",
        "tried. Images are 32 x 32 pixels, or 224 x 224 for Table 1's networks.",
        "",
        "| `model=` | batch | images/s | ours / theirs | copy / ours | channels_last | bf16 | compiled |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    slower = []
    for model in models:
        line, against = measure(model, model in compiled)
        print(line, flush=True)
        lines.append(line)
        if against < BAR:
            slower.append(f"{model} at {against:.2f} of the other form")
    densenets = [model for model in models if model.startswith("densenet")]
    if densenets:
        lines += [
            "",
            "DenseNet's checkpointed concatenations: images/s over those without; MiB kept for an image's gradient.",
            "",
            "| | images/s | MiB | MiB without | |",
            "| --- | ---: | ---: | ---: | ---: |",
            *map(checkpoint_line, densenets),
        ]
    return [*lines, "", *machine()], slower


def main() -> None:
    """Measure all models, print a report, write it if asked, and exit with 1 if a network of ours is slower."""
    torch.set_num_threads(THREADS)
    options = parse_options(Options, sys.argv[1:])
    output = output_path(options.output)
    models = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
    if unknown := {*options.only, *options.compiled} - set(models):
        raise UserError(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(models)}")
    lines, slower = report([model for model in models if not options.only or model in options.only], options.compiled)
    conclude(lines, slower, output)


if __name__ == "__main__":
    with one_sentence_errors():
        main()
