"""ISDA in Lightning (pip install lightning), on scikit-learn's digits: python examples/lightning_module.py

The criterion is a submodule: Lightning moves it to the device, switches it between train() and eval(), and keeps its
statistics in the checkpoint. What ISDA adds is marked with a #.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from isda_repro.losses import ISDALoss  #


class Classifier(lightning.LightningModule):
    """A small network for the 64 pixels of a digit, trained with ISDA."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.criterion = ISDALoss(num_classes=10, feature_dim=32, lambda_0=0.5)  #

    def loss(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its logits; in evaluation mode the loss is plain cross-entropy."""
        images, targets = batch
        features = self.backbone(images)
        logits = self.head(features)
        progress = self.global_step / self.trainer.estimated_stepping_batches if self.training else 1.0  #
        return self.criterion(features, logits, targets, head=self.head, progress=progress), logits  #

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a training batch."""
        return self.loss(batch)[0]

    def test_step(self, batch: list[Tensor], index: int) -> None:
        """Log the loss and the error in percent."""
        loss, logits = self.loss(batch)
        self.log_dict({"loss": loss, "error": 100 * (logits.argmax(1) != batch[1]).float().mean()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD; the criterion has no parameters to optimise."""
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def main(**trainer_options: object) -> float:
    """Train, and return the error on test images in percent."""
    lightning.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=360, stratify=labels, random_state=0)
    sets = [
        TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
        for x, y in zip(parts[:2], parts[2:], strict=True)
    ]
    train, test = DataLoader(sets[0], batch_size=64, shuffle=True, drop_last=True), DataLoader(sets[1], batch_size=360)
    options = {"max_epochs": 30, "accelerator": "auto", "devices": 1, "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(**{**options, **trainer_options})
    classifier = Classifier()
    trainer.fit(classifier, train)
    (results,) = trainer.test(classifier, test)
    return results["error"]


if __name__ == "__main__":
    main()
