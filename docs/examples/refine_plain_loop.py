"""Phases 2 and 3 of SWAP around a training loop of your own."""

import torch
from torch import nn

import swap_fast


def main(examples: int = 4000, epochs: int = 3) -> swap_fast.RefineResult:
    """Tell 4 kinds of points apart: train a model, then refine it on 4 workers."""
    points = torch.randn(examples, 2)
    kinds = (points > 0).long() @ torch.tensor([1, 2])
    held = examples // 4

    def fit(model: nn.Module, batch_size: int, peak_lr: float) -> None:
        """Your own loop: any optimizer, schedule and trainer."""
        optimizer = torch.optim.SGD(model.parameters(), lr=peak_lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs)
        model.train()
        for _ in range(epochs):
            for rows in (held + torch.randperm(examples - held)).split(batch_size):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(points[rows]), kinds[rows]).backward()
                optimizer.step()
            schedule.step()

    def accuracy(model: nn.Module) -> float:
        return (model(points[:held]).argmax(1) == kinds[:held]).double().mean().item()

    model = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    fit(model, batch_size=256, peak_lr=0.4)
    result = swap_fast.refine(
        model,
        lambda worker, copy: fit(copy, batch_size=64, peak_lr=0.1),
        workers=4,
        batches=points[held:].split(256),
        evaluate=accuracy,
    )
    print(f"workers {result.accuracy_before_averaging:.2%}, averaged {result.accuracy:.2%}")
    return result


if __name__ == "__main__":
    main().save("refined")
