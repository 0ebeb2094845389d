"""ISDA in a plain PyTorch loop, on scikit-learn's digits: python examples/plain_pytorch.py

What ISDA adds to a loop with cross-entropy is marked with a #.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from isda_repro.losses import ISDALoss  #

EPOCHS, BATCH_SIZE = 30, 64


def main() -> float:
    """Train, and return the error on test images in percent."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.tensor(part) for part in parts[2:])

    backbone, head = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU()), nn.Linear(32, 10)
    criterion = ISDALoss(
        num_classes=10, feature_dim=32, lambda_0=0.5
    )  # its statistics are buffers: .to(device), state_dict()
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.02, momentum=0.9)
    steps_per_epoch = len(train_labels) // BATCH_SIZE

    for epoch in range(EPOCHS):
        for step, batch in enumerate(torch.randperm(len(train_labels)).split(BATCH_SIZE)[:steps_per_epoch]):
            features = backbone(train_images[batch])
            progress = (epoch * steps_per_epoch + step) / (EPOCHS * steps_per_epoch)  # lambda = progress * lambda_0
            loss = criterion(features, head(features), train_labels[batch], head=head, progress=progress)  #
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    criterion.eval()  # plain cross-entropy
    with torch.no_grad():
        features = backbone(test_images)
        loss = criterion(features, head(features), test_labels, head=head, progress=1.0)
        error = 100 * (head(features).argmax(1) != test_labels).float().mean().item()
    print(f"test loss {loss:.3f}, error {error:.2f}%")
    return error


if __name__ == "__main__":
    main()
