"""The parts of a run, each built from its node of a frozen configuration."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf

from isda_repro.checks import ConfigError
from isda_repro.config import build, build_model, cell_name, request, target_class
from isda_repro.data import ResidentLoader, Source
from isda_repro.losses import Criterion
from isda_repro.models import Network
from isda_repro.randomness import stream_seed
from isda_repro.tracking import Tracker, WandbTracker
from isda_repro.training.compute import Compute

TEST_BATCH_SIZE = 500  # the error does not depend on it; both CIFAR test sets are a whole number of them


def build_network(cfg: DictConfig, source: Source, compute: Compute) -> Network:
    """The network on its device, its weights drawn from a stream of their own: the same ones for every loss.

    ``model.weights`` is not read here, see ``isda_repro.training.weights``.

    Raises:
        ConfigError: it is made for images of another size.
    """
    size, (height, width) = cfg.model.get("image_size"), source.train.images.shape[-2:]
    if size is not None and (size, size) != (height, width):
        raise ConfigError(
            f"model.image_size={size}, but the images of {source.name} are {height} x {width} pixels: leave it out"
        )
    torch.manual_seed(stream_seed(cfg.seed, "initialisation"))
    network: Network = build_model(cfg, source.num_classes)
    if not target_class(cfg.loss).uses_head_bias:  # type: ignore[attr-defined]
        network.drop_head_bias()  # afterwards: what is drawn for the others stays as with every other loss
    network.to(device=compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]
    return network


def build_criterion(cfg: DictConfig, network: Network, compute: Compute) -> Criterion:
    """The loss on its device. What it draws to begin with leaves the network's weights as they were."""
    torch.manual_seed(stream_seed(cfg.seed, "criterion_initialisation"))
    head = network.head
    criterion: Criterion = build(cfg.loss, num_classes=head.out_features, feature_dim=head.in_features)
    return criterion.to(compute.device)


def build_loaders(cfg: DictConfig, source: Source, compute: Compute) -> tuple[ResidentLoader, ResidentLoader]:
    """The training images, shuffled and augmented, and those that are evaluated, as they are."""

    def loader(train: bool) -> ResidentLoader:
        return ResidentLoader(
            source.train if train else source.test,
            batch_size=cfg.recipe.batch_size if train else TEST_BATCH_SIZE,
            mean=cfg.dataset.mean,
            std=cfg.dataset.std,
            augmentation=build(cfg.augmentation) if train else None,
            shuffle=train,
            seed=cfg.seed,
            device=compute.device,
            memory_format=compute.memory_format,
        )

    return loader(train=True), loader(train=False)


def build_optimizer(cfg: DictConfig, network: Network, criterion: Criterion) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, weight decay on all of the network (Appendix B), and the criterion's own groups."""
    recipe = cfg.recipe
    groups = [{"params": list(network.parameters())}, *criterion.parameter_groups()]
    optimizer = torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def build_trackers(cfg: DictConfig, metrics: Path) -> list[Tracker]:
    """Those that are wanted beside ``metrics.jsonl``, the authority, and the bar: W&B."""
    trackers: list[Tracker] = []
    if cfg.tracking.mode != "none":
        asked = request(cfg)
        cell = OmegaConf.to_container(cfg.choice)
        trackers.append(
            WandbTracker(
                mode=cfg.tracking.mode,
                project=cfg.tracking.project,
                entity=cfg.tracking.entity,
                run_id=cfg.run_id,
                config={**asked, "choice": cell, "numerics_version": cfg.numerics_version},
                group=cell_name(cfg),
                metrics_path=metrics,
            )
        )
    return trackers


def call_network(network: Network, compute: Compute) -> torch.nn.Module:
    """What is called in training and evaluation: the network, compiled if that is wanted."""
    return cast(torch.nn.Module, torch.compile(network)) if compute.compile else network
