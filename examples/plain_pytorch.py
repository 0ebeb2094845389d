"""ISDA in a plain PyTorch loop, on digits (pip install scikit-learn): python examples/plain_pytorch.py

The loop validates and saves a checkpoint after each epoch. The same command continues an interrupted training. What
ISDA adds to a loop with cross-entropy is marked with a #.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from isda_repro.losses import ISDALoss  #

BATCH_SIZE = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(folder: str = "checkpoints", epochs: int = 30) -> float:
    """Train, or continue what is in ``folder``; return the error on held-out images in percent."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=360, stratify=labels, random_state=0)
    train_images, val_images = (torch.tensor(part, dtype=torch.float32, device=DEVICE) for part in parts[:2])
    train_labels, val_labels = (torch.tensor(part, device=DEVICE) for part in parts[2:])

    backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()).to(DEVICE)
    head = nn.Linear(32, 10).to(DEVICE)
    criterion = ISDALoss(num_classes=10, feature_dim=32, lambda_0=0.5).to(DEVICE)  # its statistics are buffers
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    steps_per_epoch = len(train_labels) // BATCH_SIZE

    checkpoint, first_epoch, error = Path(folder) / "plain_pytorch.pt", 0, 100.0
    stateful = {"backbone": backbone, "head": head, "optimizer": optimizer, "scheduler": scheduler}
    stateful["criterion"] = criterion  # or a resumed training starts with empty statistics
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE, weights_only=True)
        first_epoch, error = saved["epoch"], saved["error"]
        for name, one in stateful.items():
            one.load_state_dict(saved[name])

    for epoch in range(first_epoch, epochs):
        torch.manual_seed(epoch)  # a resumed epoch has the order, and would have the dropout, of any other
        backbone.train()
        criterion.train()
        for step, batch in enumerate(torch.randperm(len(train_labels)).split(BATCH_SIZE)[:steps_per_epoch]):
            features = backbone(train_images[batch])
            progress = (epoch + step / steps_per_epoch) / epochs  # lambda = progress * lambda_0
            loss = criterion(features, head(features), train_labels[batch], head=head, progress=progress)  #
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()

        backbone.eval()
        criterion.eval()  # plain cross-entropy
        with torch.no_grad():
            features = backbone(val_images)
            val_loss = criterion(features, head(features), val_labels, head=head, progress=1.0).item()
            error = 100 * (head(features).argmax(1) != val_labels).float().mean().item()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, validation loss {val_loss:.3f}, error {error:.2f}%")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        states = {name: one.state_dict() for name, one in stateful.items()}
        torch.save({"epoch": epoch + 1, "error": error, **states}, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)  # never half a checkpoint
    return error


if __name__ == "__main__":
    main()
