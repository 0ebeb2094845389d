"""ISDA in Lightning (pip install lightning scikit-learn), on digits: python examples/lightning_module.py

The criterion is a submodule: Lightning moves it to the device, switches it between train() and eval(), and keeps its
statistics in the checkpoint. The same command continues an interrupted training. What ISDA adds is marked with a #.
"""

from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Log the loss and the error in percent."""
        loss, logits = self.loss(batch)
        error = 100 * (logits.argmax(1) != batch[1]).float().mean()
        self.log_dict({"val_loss": loss, "val_error": error}, prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        """Return SGD with a cosine schedule; ISDA has no parameters to optimise."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def main(folder: str = "checkpoints/lightning", epochs: int = 30, **trainer_options: object) -> float:
    """Train, or continue what is in ``folder``; return the error on held-out images in percent."""
    lightning.seed_everything(0)
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=360, stratify=labels, random_state=0)
    train_set, val_set = (
        TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
        for x, y in zip(parts[:2], parts[2:], strict=True)
    )
    order = DistributedSampler(train_set, num_replicas=1, rank=0, seed=0)  # Lightning tells it the epoch: can resume
    train = DataLoader(train_set, batch_size=64, sampler=order, drop_last=True)
    val = DataLoader(val_set, batch_size=360)

    saving = ModelCheckpoint(folder, save_last=True)
    last = Path(folder) / "last.ckpt"
    options = {"accelerator": "auto", "devices": 1, "logger": False, **trainer_options}
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[saving], **options)
    classifier = Classifier()
    trainer.fit(classifier, train, val, ckpt_path=last if last.exists() else None)
    (results,) = trainer.validate(classifier, val)
    return results["val_error"]


if __name__ == "__main__":
    main()
