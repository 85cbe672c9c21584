"""SWAP in five lines: a net, tensors, and what comes out."""

import torch
from torch import nn

import swap_fast


def main(examples: int = 4000) -> swap_fast.SwapResult:
    """Tell 4 kinds of points apart."""
    points = torch.randn(examples, 2)
    kinds = (points > 0).long() @ torch.tensor([1, 2])
    held = examples // 4
    train, test = (points[held:], kinds[held:]), (points[:held], kinds[:held])

    def make_model() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))

    result = swap_fast.swap(make_model, train, test, workers=4)
    print(f"workers {result.accuracy_before_averaging:.2%}, averaged {result.accuracy:.2%}")
    return result


if __name__ == "__main__":
    main().save("swapped")
