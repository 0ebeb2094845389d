"""Images per second, forward and backward, of each network: ours against torchvision's, timm's or a plain form of it.

    python benchmarks/network_speed.py                                     # half an hour on 2 cores
    python benchmarks/network_speed.py output=results/benchmarks/models_cpu.md      # also writes what it prints
    python benchmarks/network_speed.py only=[resnet32,wrn16_8] compiled=[resnet32]

Both forms have the same weights and images, and take turns; each ratio is the median over the turns of the ratio within
a turn. A copy of ours takes its turn too: what it differs from ours by is noise. Then, of ours, what channels_last,
bf16 and torch.compile add, and what DenseNet's checkpoints cost and save. On a GPU if there is one. Exits 1 if a
network of ours is slower than the other form.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from models import CIFAR, IMAGENET, bytes_for_gradient, on_imagenet
from reference.plain_networks import plain_network, same_weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isda_repro.config import CONF_DIR, build_model, compose
from isda_repro.config.options import parse_options
from isda_repro.errors import UserError, one_sentence_errors
from isda_repro.measurements import THREADS, conclude, machine
from isda_repro.models import Network, NetworkOutput

PAIR_TURNS, FORM_TURNS, TURN_SECONDS = 16, 6, 1.0
BAR = 0.95  # equal: a copy of a network differs from it by as much as a few percent on a machine of two cores
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH_MULTIPLY_ADDS = 2e10 if DEVICE.type == "cpu" else 1e12  # of one forward pass: a second or less
LARGEST_BATCH = 128


@dataclass
class Options:
    """What is typed behind the script; ``compiled``: networks that are compiled too, minutes each on a CPU."""

    output: str | None = None
    only: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=lambda: ["resnet32", "wrn16_8", "resnet50"])


class Batch(NamedTuple):
    """Noise."""

    images: Tensor
    targets: Tensor


Step = Callable[[Batch], None]


def step_of(network: nn.Module, bf16: bool = False, compiled: bool = False) -> Step:
    """Forward, cross-entropy, backward."""
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
    """Images per second in a turn."""
    images, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < TURN_SECONDS:
        step(batch)
        images += len(batch.images)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - begin)


def in_turns(steps: dict[str, tuple[Step, Batch]], turns: int) -> dict[str, list[float]]:
    """The rates of several forms, one after the other in each turn, forwards and backwards; warmed up before."""
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
    """Median of the ratios within the turns."""
    return statistics.median(one / other for one, other in zip(rates[name], rates[base], strict=True))


def network_of(model: str, *overrides: str) -> Network:
    """Ours, in training."""
    torch.manual_seed(0)
    classes, pixels, _ = IMAGENET if on_imagenet(model) else CIFAR
    size = [f"model.image_size={pixels}"] if on_imagenet(model) else []
    network: Network = build_model(compose([f"model={model}", *size, *overrides]), classes)
    return network.to(DEVICE).train()


def batch_for(model: str, network: Network) -> Batch:
    """As large as a second allows, 128 at most."""
    classes, pixels, _ = IMAGENET if on_imagenet(model) else CIFAR
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
    """The same images in the other layout."""
    return Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.targets)


def measure(model: str, compiled: bool) -> tuple[str, float]:
    """A line of the table, and ours over the other form."""
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
    """What DenseNet's checkpoints cost in time, and what they save of memory for the gradient."""
    plain, thrifty = network_of(model), network_of(model, "model.checkpointed=true")
    batch = batch_for(model, plain)
    rates = in_turns({"plain": (step_of(plain), batch), "checkpointed": (step_of(thrifty), batch)}, FORM_TURNS)
    one = batch.images[:1].clone()  # not a part of the whole batch's memory, which would be counted
    kept = [bytes_for_gradient(network, one) / 2**20 for network in (plain, thrifty)]
    return (
        f"| `{model} model.checkpointed=true` | {ratio(rates, 'checkpointed', 'plain'):.2f} | {kept[1]:.1f} | "
        f"{kept[0]:.1f} | {kept[1] / kept[0]:.0%} |"
    )


def report(models: Sequence[str], compiled: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines, and the names of those that miss the bar."""
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
    """Measure, report, hold the bar."""
    torch.set_num_threads(THREADS)
    options = parse_options(Options, sys.argv[1:])
    models = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml") if path.stem != "timm")
    if unknown := {*options.only, *options.compiled} - set(models):
        raise UserError(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(models)}")
    lines, slower = report([model for model in models if not options.only or model in options.only], options.compiled)
    conclude(lines, slower, None if options.output is None else Path(options.output))


if __name__ == "__main__":
    with one_sentence_errors():
        main()
