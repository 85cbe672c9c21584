"""Small nets and data of a user's, for the tests of `swap_fast.swap` and `swap_fast.refine`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import swap_fast
from swap_fast.config.phase import Phase

torch.set_num_threads(1)

PHASE1 = Phase(global_batch_size=16, peak_lr=0.2, max_epochs=2, warmup_epochs=0.5)
PHASE2 = Phase(global_batch_size=8, peak_lr=0.1, max_epochs=2)


def blobs(num: int = 44, seed: int = 1, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Points [N, 6] around a centre for each class: learnable, and no two alike."""
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (num,), generator=generator)
    return centres[y] + 0.5 * torch.randn(num, 6, generator=generator), y


def net() -> nn.Module:
    """Two layers with batch norm between them.

    The first has no bias: its gradient would be 0 but for rounding, which Adam divides by itself.
    """
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))


def plain_net() -> nn.Module:
    """The same without batch norm."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def small_swap(make: Any = net, train: Any = None, test: Any = None, **options: Any) -> Any:
    """A run of two workers, on the CPU and silent."""
    said = {"workers": 2, "phase1": PHASE1, "phase2": PHASE2, "device": "cpu", "progress": False}
    data = blobs() if train is None else train
    return swap_fast.swap(make, data, test, **(said | options))


def bits(result: Any) -> dict[str, Tensor]:
    """All that the averaged model and the workers are, but counters of batches."""
    states = {"averaged": result.model.state_dict()}
    states |= {f"worker{w}": state for w, state in enumerate(result.worker_states)}
    return {
        f"{which}.{name}": tensor.clone()
        for which, state in states.items()
        for name, tensor in state.items()
        if "tracked" not in name
    }


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Tied(nn.Module):
    """Reads with the matrix that it writes with."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.read = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.read.weight = self.write.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.read(torch.tanh(self.write(x)))[:, :4]


class Compiled:
    """A net in each of torch.compile's forms, run by dynamo without a C++ compiler."""

    @staticmethod
    def wrapped() -> nn.Module:
        return torch.compile(net(), backend="aot_eager")

    @staticmethod
    def in_place() -> nn.Module:
        model = net()
        model.compile(backend="aot_eager")
        return model


def partly(dtype: torch.dtype) -> Any:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8).to(dtype), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x.to(dtype)).float()))

    return Mixed


class Averaging(nn.Module):
    """A net with a moving average of its own, put again in the place of the former one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain_net()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.body(x - self.mean)


def dropping() -> nn.Module:
    return nn.Sequential(net(), nn.Dropout(0.2))


# Of `swap_fast.refine`: data, a training loop, and what comes before it.

X, Y = blobs(64)
TEST = blobs(200, seed=2)
BATCHES = list(zip(X.split([20, 30, 14]), Y.split([20, 30, 14]), strict=True))
W = 3


def train(worker: int, model: nn.Module) -> None:
    """Two epochs, whose orders torch's generator draws."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(2):
        for rows in torch.randperm(len(X)).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[rows]).float(), Y[rows]).backward()
            optimizer.step()


def share(model: nn.Module) -> float:
    assert not model.training
    return float((model(TEST[0]).argmax(1) == TEST[1]).double().mean())


def started(make: Callable[[], nn.Module] = net) -> nn.Module:
    """Phase 1's model."""
    torch.manual_seed(0)
    model = make()
    train(0, model)
    return model


def small_refine(make: Any = net, how: Any = train, **options: Any) -> Any:
    """A silent call; the workers of so short a training need not share a basin."""
    said = {"workers": W, "batches": BATCHES, "basin_points": 0, "progress": False}
    model = make if isinstance(make, nn.Module) else started(make)
    return swap_fast.refine(model, how, **(said | options))
