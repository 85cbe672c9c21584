"""Phases 2 and 3 of SWAP around a loop as timm's, on TREE/train/CLASS/*.jpg and TREE/val/..."""

import sys
from pathlib import Path

import timm
import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import swap_fast


def main(
    tree: Path,
    net: str = "resnet50",
    *,
    pretrained: bool = True,
    side: int = 224,
    batch: int = 64,
    epochs: int = 5,
    workers: int = 4,
    loader_processes: int = 4,
) -> swap_fast.RefineResult:
    """Fine-tune a net with large batches, then refine it on each worker with small ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_set = ImageFolder(tree / "train", create_transform(side, is_training=True))
    val_set = ImageFolder(tree / "val", create_transform(side))

    def loader(data: ImageFolder, size: int, *, train: bool) -> DataLoader:
        return DataLoader(data, size, shuffle=train, drop_last=train, num_workers=loader_processes)

    def fit(model: nn.Module, size: int, peak_lr: float) -> nn.Module:
        optimizer = create_optimizer_v2(model, opt="adamw", lr=peak_lr, weight_decay=0.05)
        schedule = CosineLRScheduler(optimizer, t_initial=epochs)
        average = ModelEmaV3(model, decay=0.9)
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)
        model.train()
        for epoch in range(epochs):
            schedule.step(epoch)
            for images, labels in loader(train_set, size, train=True):
                optimizer.zero_grad()
                loss(model(images.to(device)), labels.to(device)).backward()
                optimizer.step()
                average.update(model)
        return average.module

    def accuracy(model: nn.Module) -> float:
        right = sum(
            (model(images.to(device)).argmax(1) == labels.to(device)).sum().item()
            for images, labels in loader(val_set, batch, train=False)
        )
        return right / len(val_set)

    model = timm.create_model(net, pretrained=pretrained, num_classes=len(train_set.classes))
    return swap_fast.refine(
        fit(model.to(device), workers * batch, peak_lr=1e-3),
        lambda worker, copy: fit(copy, batch, peak_lr=2.5e-4),
        workers=workers,
        batches=loader(train_set, batch, train=True),
        evaluate=accuracy,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1])).save("refined-timm")
