"""ISDA for semantic segmentation, on scenes of digits (pip install scikit-learn): python examples/segmentation.py

Pixels of a digit have its class, others are background, and a border around each digit is ignored. Two losses train
with three seeds each. The same command continues what was interrupted. What ISDA adds is marked with a #.
"""

from itertools import product
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from isda_repro.losses import CrossEntropy, ISDALoss  #

CLASSES, WIDTH, IGNORED, BATCH_SIZE = 11, 32, -100, 8


def make_scenes(digits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return noisy scenes [count, 1, 32, 32] of nine digits [8, 8] each, and targets [count, 32, 32]."""
    images, targets = torch.zeros(count, 32, 32), torch.zeros(count, 32, 32, dtype=torch.int64)
    for scene, y, x in product(range(count), (1, 11, 21), (1, 11, 21)):
        which, (down, right) = int(torch.randint(len(digits), ())), torch.randint(3, (2,)).tolist()
        place = scene, slice(y + down, y + down + 8), slice(x + right, x + right + 8)
        images[place], targets[place] = digits[which], torch.where(digits[which] > 0.25, labels[which] + 1, 0)
    is_near = nn.functional.max_pool2d((targets > 0).float(), 3, stride=1, padding=1) > 0
    return (images + 0.3 * torch.randn(count, 32, 32))[:, None], targets.masked_fill(is_near & (targets == 0), IGNORED)


def train(criterion: nn.Module, scenes: list[Tensor], seed: int, epochs: int, checkpoint: Path) -> float:
    """Train, or continue the checkpoint; return the mean IoU in percent on scenes of digits that were held out."""
    torch.manual_seed(seed)
    images, targets, val_images, val_targets = scenes
    sizes = zip((1, *[WIDTH] * 4), (1, 1, 2, 2, 1), strict=True)  # channels and dilation of each layer
    layers = ((nn.Conv2d(c, WIDTH, 3, padding=d, dilation=d), nn.BatchNorm2d(WIDTH), nn.ReLU()) for c, d in sizes)
    backbone, head = nn.Sequential(*(one for layer in layers for one in layer)), nn.Conv2d(WIDTH, CLASSES, 1)
    network = nn.ModuleDict({"backbone": backbone, "head": head, "criterion": criterion})  # its statistics are buffers
    optimizer, first, iou = torch.optim.Adam(network.parameters()), 0, 0.0
    if checkpoint.exists():
        state, state_of_optimizer, first, iou = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state)
        optimizer.load_state_dict(state_of_optimizer)
    for epoch in range(first, epochs):
        torch.manual_seed(1000 * seed + epoch)  # a resumed epoch has the order of any other
        network.train()
        for step, batch in enumerate(order := torch.randperm(len(images)).split(BATCH_SIZE)):
            features = backbone(images[batch])  # [N, 32, 32, 32]; the logits are [N, 11, 32, 32]
            progress = (epoch + step / len(order)) / epochs  # lambda = progress * lambda_0
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - progress)
            loss = criterion(features, head(features), targets[batch], head=head, progress=progress)  #
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            pairs = (CLASSES * val_targets + head(backbone(val_images)).argmax(1))[val_targets != IGNORED]
        counts = torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES).double()
        iou = 100 * (counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag()).clamp(min=1)).mean().item()
        torch.save((network.state_dict(), optimizer.state_dict(), epoch + 1, iou), checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)  # never half a checkpoint
    return iou


def main(folder: str = "checkpoints", epochs: int = 12, seeds: int = 3, count: int = 256) -> dict[str, list[float]]:
    """Train with each loss and seed, or continue what is in ``folder``; return the mean IoUs in percent."""
    torch.manual_seed(0)
    digits, labels = (torch.tensor(one) for one in load_digits(return_X_y=True))
    digits, parts = digits.view(-1, 8, 8).float() / 16, torch.randperm(len(labels)).split([1437, 360])
    scenes = [one for part in parts for one in make_scenes(digits[part], labels[part], count)]
    found: dict[str, list[float]] = {"CE": [], "ISDA": []}
    Path(folder).mkdir(exist_ok=True)
    for name, seed in product(found, range(seeds)):
        criterion = CrossEntropy(CLASSES, WIDTH) if name == "CE" else ISDALoss(CLASSES, WIDTH, lambda_0=0.5)  #
        found[name].append(train(criterion, scenes, seed, epochs, Path(folder) / f"segmentation_{name}_{seed}.pt"))
        print(f"{name}, seed {seed}: mean IoU {found[name][-1]:.2f}%", flush=True)
    return found


if __name__ == "__main__":
    main()
