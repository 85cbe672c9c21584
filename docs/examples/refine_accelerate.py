"""Phases 2 and 3 of SWAP around a training loop with Hugging Face's accelerate."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import swap_fast


def main(examples: int = 4000, epochs: int = 3) -> swap_fast.RefineResult:
    """Tell 4 kinds of points apart: train with large batches, then refine on 4 workers."""
    points = torch.randn(examples, 2)
    kinds = (points > 0).long() @ torch.tensor([1, 2])
    held = examples // 4
    train_set = TensorDataset(points[held:], kinds[held:])

    def fit(model: nn.Module, batch_size: int, peak_lr: float) -> nn.Module:
        accelerator = Accelerator()
        net, optimizer, batches = accelerator.prepare(
            model,
            torch.optim.SGD(model.parameters(), lr=peak_lr, momentum=0.9),
            DataLoader(train_set, batch_size, shuffle=True),
        )
        schedule = accelerator.prepare(
            torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(batches))
        )
        net.train()
        for _ in range(epochs):
            for inputs, labels in batches:
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(net(inputs), labels))
                optimizer.step()
                schedule.step()
        return accelerator.unwrap_model(net)

    def accuracy(model: nn.Module) -> float:
        device = next(model.parameters()).device
        found = model(points[:held].to(device)).argmax(1).cpu()
        return (found == kinds[:held]).double().mean().item()

    model = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    result = swap_fast.refine(
        fit(model, batch_size=256, peak_lr=0.4),
        lambda worker, copy: fit(copy, batch_size=64, peak_lr=0.1),
        workers=4,
        batches=DataLoader(train_set, 256),
        evaluate=accuracy,
    )
    print(f"workers {result.accuracy_before_averaging:.2%}, averaged {result.accuracy:.2%}")
    return result


if __name__ == "__main__":
    main().save("refined-accelerate")
