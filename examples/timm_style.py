"""ISDA in a training loop in timm's style, on scikit-learn's digits: python examples/timm_style.py

The model may be any one with a single linear classifier. The loop has mixed precision, gradient accumulation and timm's
schedule. What ISDA adds is marked with a #.
"""

import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from isda_repro.losses import ISDALoss  #

EPOCHS, BATCH_SIZE, ACCUMULATED = 12, 32, 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> float:
    """Train, and return the error on test images in percent."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16 - 0.3, dtype=torch.float32).view(-1, 1, 8, 8)
    images = torch.nn.functional.interpolate(images, size=32, mode="bilinear")
    train, test = train_test_split(torch.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    labels = torch.tensor(labels)

    model = timm.create_model("test_resnet", in_chans=1, num_classes=10).to(DEVICE)
    head = model.get_classifier()  #
    criterion = ISDALoss(num_classes=10, feature_dim=head.in_features, lambda_0=0.5).to(DEVICE)  #
    optimizer = create_optimizer_v2(model, opt="nesterov", lr=0.05, weight_decay=1e-4)
    scheduler = CosineLRScheduler(optimizer, t_initial=EPOCHS)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=DEVICE.type == "cuda")
    steps_per_epoch = len(train) // BATCH_SIZE

    for epoch in range(EPOCHS):
        model.train()
        for step, index in enumerate(torch.randperm(len(train)).split(BATCH_SIZE)[:steps_per_epoch]):
            batch, targets = images[train[index]].to(DEVICE), labels[train[index]].to(DEVICE)
            with torch.autocast(DEVICE.type, dtype=torch.float16 if scaler.is_enabled() else torch.bfloat16):
                features = model.forward_head(model.forward_features(batch), pre_logits=True)  # instead of model(batch)
                progress = (epoch + step / steps_per_epoch) / EPOCHS  #
                loss = criterion(features, head(features), targets, head=head, progress=progress)  # casts to fp32
            scaler.scale(loss / ACCUMULATED).backward()
            if (step + 1) % ACCUMULATED == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        scheduler.step(epoch + 1)

    model.eval()
    with torch.no_grad():
        error = 100 * (model(images[test].to(DEVICE)).argmax(1).cpu() != labels[test]).float().mean().item()
    print(f"error {error:.2f}%")
    return error


if __name__ == "__main__":
    main()
