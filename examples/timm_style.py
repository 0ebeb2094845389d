"""ISDA in timm's style, on digits (pip install timm scikit-learn): python examples/timm_style.py

The model may be any one with a single linear classifier. The loop has timm's Mixup and schedule, mixed precision and
gradient accumulation. The same command continues an interrupted training. What ISDA adds is marked with a #.
"""

from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from isda_repro.losses import ISDALoss  #

BATCH_SIZE, ACCUMULATED = 32, 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(folder: str = "checkpoints", epochs: int = 12) -> float:
    """Train, or continue what is in ``folder``; return the error on held-out images in percent."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16 - 0.3, dtype=torch.float32).view(-1, 1, 8, 8)
    images = torch.nn.functional.interpolate(images, size=32, mode="bilinear").to(DEVICE)
    train, val = train_test_split(torch.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    labels = torch.tensor(labels, device=DEVICE)

    model = timm.create_model("test_resnet", in_chans=1, num_classes=10).to(DEVICE)
    head = model.get_classifier()  #
    criterion = ISDALoss(num_classes=10, feature_dim=head.in_features, lambda_0=0.5).to(DEVICE)  #
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=0.0, label_smoothing=0.0, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="nesterov", lr=0.05, weight_decay=1e-4)
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=DEVICE.type == "cuda")
    steps_per_epoch = len(train) // BATCH_SIZE

    checkpoint, first_epoch, error = Path(folder) / "timm_style.pt", 0, 100.0
    stateful = {"model": model, "criterion": criterion, "optimizer": optimizer, "scaler": scaler}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE, weights_only=True)
        first_epoch, error = saved["epoch"], saved["error"]
        for name, one in stateful.items():
            one.load_state_dict(saved[name])
    scheduler.step(first_epoch)  # it has no other state

    for epoch in range(first_epoch, epochs):
        torch.manual_seed(epoch)  # of the order, so that a resumed epoch has the order of any other
        np.random.seed(epoch)  # of Mixup
        model.train()
        for step, index in enumerate(torch.randperm(len(train)).split(BATCH_SIZE)[:steps_per_epoch]):
            batch, targets = mixup(images[train[index]], labels[train[index]])  # targets: probabilities [N, C]
            with torch.autocast(DEVICE.type, dtype=torch.float16 if scaler.is_enabled() else torch.bfloat16):
                features = model.forward_head(model.forward_features(batch), pre_logits=True)  # instead of model(batch)
                progress = (epoch + step / steps_per_epoch) / epochs  #
                loss = criterion(features, head(features), targets, head=head, progress=progress)  # casts to fp32
            scaler.scale(loss / ACCUMULATED).backward()
            if (step + 1) % ACCUMULATED == 0 or step + 1 == steps_per_epoch:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        scheduler.step(epoch + 1)

        model.eval()
        with torch.no_grad():
            error = 100 * (model(images[val]).argmax(1) != labels[val]).float().mean().item()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, validation error {error:.2f}%")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        states = {name: one.state_dict() for name, one in stateful.items()}
        torch.save({"epoch": epoch + 1, "error": error, **states}, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)  # never half a checkpoint
    return error


if __name__ == "__main__":
    main()
