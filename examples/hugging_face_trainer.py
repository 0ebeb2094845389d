"""ISDA in Hugging Face's Trainer (pip install transformers accelerate): python examples/hugging_face_trainer.py

The features of ISDA need not be those of images: this classifies the 30 measurements of scikit-learn's breast cancer
data (pip install scikit-learn). The criterion is a submodule of the model, so that the Trainer moves it, switches it
between train() and eval(), and saves it. The same command continues an interrupted training. What ISDA adds is marked
with a #. On several GPUs start it by torchrun: the criterion refuses DataParallel, which the Trainer uses without it.
"""

import os
from pathlib import Path

if "LOCAL_RANK" not in os.environ:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU, set before torch is imported

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from isda_repro.losses import ISDALoss  #


class Classifier(nn.Module):
    """A small network for the rows of a table, trained with ISDA; a ``PreTrainedModel`` is changed in the same way."""

    def __init__(self, columns: int, processes: torch.distributed.ProcessGroup | None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(columns, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(32, 2)
        self.criterion = ISDALoss(num_classes=2, feature_dim=32, lambda_0=0.5, process_group=processes)  #

    def forward(self, inputs: Tensor, labels: Tensor | None = None, progress: float = 1.0) -> dict[str, Tensor]:
        """Return the loss, if there are labels, and the logits; in evaluation mode the loss is cross-entropy."""
        features = self.backbone(inputs)
        logits = self.head(features)
        if labels is None:
            return {"logits": logits}
        loss = self.criterion(features, logits, labels, head=self.head, progress=progress)  #
        return {"loss": loss, "logits": logits}


class ISDATrainer(Trainer):
    """A Trainer that tells the model which share of the training is over."""

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: object) -> object:
        """Return the loss of a batch, and the outputs if they are asked for."""
        progress = self.state.global_step / self.state.max_steps if model.training else 1.0  #
        outputs = model(**inputs, progress=progress)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


def metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return the error in percent."""
    return {"error": 100 * float((prediction.predictions.argmax(1) != prediction.label_ids).mean())}


def main(folder: str = "checkpoints/hugging_face", epochs: int = 10) -> float:
    """Train, or continue what is in ``folder``; return the error on held-out rows in percent."""
    set_seed(0)
    rows, labels = load_breast_cancer(return_X_y=True)
    train, val, train_labels, val_labels = train_test_split(rows, labels, stratify=labels, random_state=0)
    scaler = StandardScaler().fit(train)
    train_set, val_set = (
        [{"inputs": torch.tensor(x, dtype=torch.float32), "labels": int(y)} for x, y in zip(*part, strict=True)]
        for part in ((scaler.transform(train), train_labels), (scaler.transform(val), val_labels))
    )
    options = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 32}
    options |= {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "report_to": "none"}
    arguments = TrainingArguments(folder, num_train_epochs=epochs, **options)
    model = Classifier(rows.shape[1], torch.distributed.group.WORLD if arguments.world_size > 1 else None)  #
    trainer = ISDATrainer(model, arguments, train_dataset=train_set, eval_dataset=val_set, compute_metrics=metrics)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if Path(folder).is_dir() else None)
    return trainer.evaluate()["eval_error"]


if __name__ == "__main__":
    main()
