"""Builders for the parts of a run: each takes a frozen configuration and returns one object."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import joblib
import torch
from omegaconf import DictConfig

from isda_repro.config import (
    build,
    build_loss,
    build_model,
    compose_generator,
    generator_overrides,
    target_class,
)
from isda_repro.config.checks import TRAINING_SELECTION, ConfigError, generator_kind
from isda_repro.console import warn
from isda_repro.data import (
    AnySplit,
    InMemoryLoader,
    Loader,
    Mixup,
    Share,
    Source,
    Split,
    StoredSplit,
    StreamingLoader,
    Synthetic,
    stored_statistics,
)
from isda_repro.losses import IGNORED, Criterion, class_balanced_weights
from isda_repro.models import Network
from isda_repro.randomness import stream_seed
from isda_repro.training.compute import Compute
from isda_repro.training.ddp import wrap_ddp
from isda_repro.training.distributed import SINGLE_PROCESS, Processes

TEST_BATCH_SIZE = 500  # does not change the error; divides the size of both CIFAR test sets
STREAMED_TEST_BATCH_SIZE = 100  # larger images


def build_network(cfg: DictConfig, source: Source, compute: Compute) -> Network:
    """Return the network of ``cfg.model`` on its device, with freshly initialised weights.

    The weights are drawn from a random stream of their own, so that runs that differ only in the loss start from the
    same weights. ``model.weights`` is not read here; see ``isda_repro.models.weights``.

    Raises:
        ConfigError: the model is made for images of another size than those of ``source``.
    """
    size, (height, width) = cfg.model.get("image_size"), source.train.image_size
    if size is not None and (size, size) != (height, width):
        raise ConfigError(
            f"model.image_size={size}, but the images of {source.name} are {height} x {width} pixels: leave it out"
        )
    torch.manual_seed(stream_seed(cfg.seed, "initialisation"))
    network: Network = build_model(cfg, source.num_classes)
    if cfg.model.get("official_init") and not cfg.model.get("pretrained"):
        network.draw_official_init()
    if not target_class(cfg.loss).uses_head_bias:  # type: ignore[attr-defined]
        network.drop_head_bias()  # after construction, so that all other weights are the same draws as with any loss
    network.to(device=compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]
    return network


def build_criterion(
    cfg: DictConfig,
    network: Network,
    compute: Compute,
    processes: Processes = SINGLE_PROCESS,
    train_counts: Sequence[int] | None = None,
) -> Criterion:
    """Return the loss of ``cfg.loss`` on its device.

    Its initial parameters come from their own random stream, so that they do not change the network's weights. A loss
    with class statistics gets the process group, unless ``loss.sync`` is set.

    Args:
        cfg: the frozen configuration.
        network: the network whose features and head the loss takes.
        compute: device of the loss.
        processes: the processes that train together.
        train_counts: number of training images of each class, which ``loss.weight=balanced`` needs.

    Raises:
        ConfigError: the loss cannot be made with its settings, a class to be weighted has no image, or ``recipe.mixup``
            makes targets that the loss does not take.
    """
    if cfg.recipe.get("mixup") is not None and not target_class(cfg.loss).takes_probabilities:  # type: ignore[attr-defined]
        raise ConfigError(
            f"recipe.mixup={cfg.recipe.mixup} gives each image shares of two classes, and loss={cfg.choice.loss} takes "
            "one class alone: use loss=ce or isda, or leave recipe.mixup out"
        )
    torch.manual_seed(stream_seed(cfg.seed, "criterion_initialisation"))
    head = network.head
    arguments: dict[str, Any] = {"num_classes": head.out_features, "feature_dim": head.in_features}
    shares = target_class(cfg.loss).has_statistics and cfg.loss.get("sync") is None  # type: ignore[attr-defined]
    if processes.is_distributed and shares:
        arguments["process_group"] = processes.group
        if compute.device.type != "cpu":
            arguments["ignore_index"] = IGNORED  # the target of samples that only pad a process's share of the batch
    if cfg.loss.get("weight") == "balanced" and "label_smoothing" in cfg.loss:  # another loss's weight is refused below
        arguments["weight"] = _balanced(train_counts)
    criterion: Criterion = build_loss(cfg, **arguments)
    return criterion.to(compute.device)


def _balanced(train_counts: Sequence[int] | None) -> torch.Tensor:
    if train_counts is None or min(train_counts) < 1:
        raise ConfigError("loss.weight=balanced needs a training image of every class: raise dataset.train_limit=")
    return class_balanced_weights(train_counts)


Constants = tuple[Sequence[float], Sequence[float]]


def build_loaders(
    cfg: DictConfig, source: Source, compute: Compute, processes: Processes = SINGLE_PROCESS
) -> tuple[Loader, Loader]:
    """Return the loader of the training images, shuffled and augmented, and the loader of the evaluated images.

    Generated images are among the training images if the configuration asks for them.
    """
    options: dict[str, Any] = {"constants": normalisation_constants(cfg, source), "processes": processes}
    recipe = cfg.recipe
    passes = recipe.get("passes") or 1  # frozen files may be older than this setting
    generated = build_synthetic(cfg, source, compute)
    of_training: dict[str, Any] = {"batch_size": recipe.batch_size, "passes": passes, "synthetic": generated}
    if recipe.get("mixup") is not None:
        of_training["mixup"] = Mixup(recipe.mixup, source.num_classes)
    train = build_loader(cfg, source.train, compute, train=True, **of_training, **options)
    return train, build_loader(cfg, source.test, compute, train=False, **options)


def build_synthetic(cfg: DictConfig, source: Source, compute: Compute) -> Synthetic | None:
    """Return the generated images that are mixed into the training images, or None if ``cfg`` asks for none.

    Raises:
        UserError: the generator has not been trained, or makes images of another kind.
    """
    if generator_kind(cfg) is None:
        return None
    settings, dataset = cfg.synthetic, cfg.dataset
    folder = Path(cfg.runs_dir) / settings.generator
    if not (folder / "result.json").exists():
        raise ConfigError(f"synthetic={settings.kind} needs a trained generator in {folder}{_how_it_is_trained(cfg)}")
    wanted = {"kind": settings.kind, "dataset": cfg.choice.dataset}
    wanted |= {key: dataset.get(key) for key in TRAINING_SELECTION}
    generator = build(settings.source, folder=folder, device=compute.device, wanted=wanted)
    check_made_like(generator, source, folder)
    return Synthetic(generator, settings.fraction, covers_all=bool(settings.covers_all))


def check_made_like(generator: Any, source: Source, folder: Path) -> None:
    """Check that a generator's images have the size, channels and classes of the data.

    Raises:
        ConfigError: they differ.
    """
    made = (generator.num_classes, (generator.shape.image_size,) * 2, generator.shape.channels)
    if made != (source.num_classes, source.train.image_size, source.train.channels):
        raise ConfigError(f"{folder} makes images of another kind than those of {source.name}: train one on these")


def _how_it_is_trained(cfg: DictConfig) -> str:
    """Return the end of an error message: the command that trains the missing generator.

    There is no such command if the user has named a generator that does not follow from the settings.
    """
    overrides = generator_overrides(cfg)
    if compose_generator(overrides).run_id != cfg.synthetic.generator:
        return ", which synthetic.generator= names"
    return f": python scripts/train_gan.py {shlex.join([*overrides, f'runs_dir={cfg.runs_dir}'])} trains it"


def normalisation_constants(cfg: DictConfig, source: Source) -> Constants:
    """Return the mean and the standard deviation of each channel.

    A value of ``auto`` is replaced by the statistics of the training images.
    """
    mean, std = cfg.dataset.mean, cfg.dataset.std
    if "auto" not in (mean, std):
        return mean, std
    found_mean, found_std = stored_statistics(cast(StoredSplit, source.train))
    return found_mean if mean == "auto" else mean, found_std if std == "auto" else std


def build_loader(
    cfg: DictConfig,
    split: AnySplit,
    compute: Compute,
    constants: Constants,
    *,
    train: bool,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    passes: int = 1,
    processes: Processes = SINGLE_PROCESS,
    synthetic: Synthetic | None = None,
    mixup: Mixup | None = None,
) -> Loader:
    """Return a loader of one split, which yields augmented images if ``train`` is True.

    Each process loads its own share of every global batch.

    Args:
        cfg: the frozen configuration.
        split: images in memory or stored as files.
        compute: device and memory format of the batches.
        constants: mean and standard deviation per channel.
        train: True: augment the images, and crop them as in training. False: crop them as in evaluation.
        batch_size: images in a global batch; None: 500 for images in memory, 100 for files.
        shuffle: True: a new order in each epoch; None: the value of ``train``.
        passes: number of times that an epoch goes through the data.
        processes: the processes that share each batch.
        synthetic: generated images to mix in; only for images in memory.
        mixup: how to mix the images of each batch; None: not at all.

    Raises:
        ConfigError: ``synthetic`` is given for images that are read from files.
    """
    in_memory = isinstance(split, Split)
    options: dict[str, Any] = {
        "batch_size": batch_size or (TEST_BATCH_SIZE if in_memory else STREAMED_TEST_BATCH_SIZE),
        "mean": constants[0],
        "std": constants[1],
        "augmentation": build(cfg.augmentation) if train else None,
        "shuffle": train if shuffle is None else shuffle,
        "passes": passes,
        "seed": cfg.seed,
        "device": compute.device,
        "memory_format": compute.memory_format,
        "share": Share(processes.rank, processes.world_size),
        "mixup": mixup,
    }
    if isinstance(split, Split):
        return InMemoryLoader(split, synthetic=synthetic, **options)
    if synthetic is not None:
        raise ConfigError("synthetic= is for images in memory: dataset=cifar10, cifar100 or digits")
    return StreamingLoader(
        cast(StoredSplit, split),
        crop=build(cfg.dataset.train_crop if train else cfg.dataset.test_crop),
        workers=_workers(cfg.dataset.workers, processes),
        unreadable=cfg.dataset.unreadable,
        report=lambda where, reason: warn(f"{where} cannot be read as an image and is left out: {reason}"),
        **options,
    )


def _workers(workers: int | str, processes: Processes) -> int:
    """Return the number of worker processes of a loader.

    ``auto`` divides the cores that this process may use by the number of training processes on this host.
    """
    if workers != "auto":
        return int(workers)
    cores: int = joblib.cpu_count()
    return max(1, cores // processes.local_world_size)


def build_optimizer(cfg: DictConfig, network: Network, criterion: Criterion) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, and weight decay on all parameters of the network (Appendix B).

    The criterion adds parameter groups of its own. Each group keeps its initial rate under ``initial_lr``.

    On a GPU one fused kernel updates all weights and reads the learning rate from a tensor on the device, so that a
    captured step follows the schedule.
    """
    recipe, device = cfg.recipe, network.head.weight.device
    on_gpu = device.type == "cuda"
    groups = [{"params": list(network.parameters())}, *criterion.parameter_groups()]
    optimizer = torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True if on_gpu else None,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if on_gpu:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
    return optimizer


def call_network(
    network: Network, compute: Compute, processes: Processes = SINGLE_PROCESS
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the modules to call in evaluation and in training, in this order.

    They are the network and, with several processes, its DDP wrapper; both are compiled if ``compute.compile`` is set.
    """
    called = wrap_ddp(network, processes, compute) if processes.is_distributed else network
    if not compute.compile:
        return network, called
    compiled = cast(torch.nn.Module, torch.compile(network))
    return compiled, cast(torch.nn.Module, torch.compile(called)) if processes.is_distributed else compiled
