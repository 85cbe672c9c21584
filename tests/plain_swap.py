"""Algorithm 1 in plain torch, with nothing of the project: copies of a net, and a loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Rate = Callable[[float], float]


@dataclass
class PlainPhase:
    """What the plain implementation is told of a phase."""

    batch: int
    epochs: int
    rate: Rate
    replicas: int = 1
    tau: float | None = None


@dataclass
class PlainSwap:
    """A whole run on tensors x [N, ...] and class numbers y [N]."""

    make: Callable[[], nn.Module]
    x: Tensor
    y: Tensor
    workers: int
    phase1: PlainPhase
    phase2: PlainPhase
    optimizer: Callable[[Any], torch.optim.Optimizer]
    seed: int = 0
    keep_history: bool = False
    largest_norm: float | None = None
    accuracies: list[float] = field(default_factory=list)
    """Train accuracies, epoch by epoch."""
    history: dict[str, Any] = field(default_factory=dict)

    def run(self) -> tuple[nn.Module, list[nn.Module]]:
        torch.manual_seed(self.seed)
        start = self.train(self.make(), 1, 0)
        workers = [self.train(copy.deepcopy(start), 2, w) for w in range(self.workers)]
        averaged = copy.deepcopy(workers[0])
        with torch.no_grad():
            for name, parameter in averaged.named_parameters():
                copies = [worker.get_parameter(name).double() for worker in workers]
                parameter.copy_(torch.stack(copies).mean(0))
        self.recompute(averaged)
        return averaged, workers

    def order(self, *where: int) -> Tensor:
        random = np.random.default_rng(np.random.SeedSequence((self.seed, *where)))
        return torch.from_numpy(random.permutation(len(self.x)))

    def train(self, model: nn.Module, number: int, worker: int) -> nn.Module:
        phase = self.phase1 if number == 1 else self.phase2
        optimizer = self.optimizer(model.parameters())
        if number == 2 and self.keep_history:
            optimizer.load_state_dict(copy.deepcopy(self.history))
        base, micro = optimizer.param_groups[0]["lr"], phase.batch // phase.replicas
        steps = len(self.x) // phase.batch
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        buffers = [b for n in norms for b in (n.running_mean, n.running_var)]
        replicas = [[b.clone() for b in buffers] for _ in range(phase.replicas)]
        model.train()
        for epoch in range(phase.epochs):
            order, correct = self.order(number, worker, epoch), 0
            for step in range(steps):
                rate = phase.rate(epoch + (step + 1) / steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate * (group.get("own_ratio", 1.0))
                optimizer.zero_grad()
                for replica in range(phase.replicas):
                    for b, kept in zip(buffers, replicas[replica], strict=True):
                        b.copy_(kept)
                    first = step * phase.batch + replica * micro
                    chosen = order[first : first + micro]
                    logits = model(self.x[chosen])
                    loss = nn.functional.cross_entropy(logits, self.y[chosen])
                    (loss / phase.replicas).backward()
                    correct += int((logits.argmax(1) == self.y[chosen]).sum())
                    replicas[replica] = [b.clone() for b in buffers]
                if self.largest_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.largest_norm)
                optimizer.step()
            self.accuracies.append(correct / (steps * phase.batch))
            if phase.tau is not None and self.accuracies[-1] > phase.tau:
                break
        if number == 1:
            for group in optimizer.param_groups:
                group["lr"] = base
            self.history = copy.deepcopy(optimizer.state_dict())
        for i in range(0, len(buffers), 2):
            means = torch.stack([s[i] for s in replicas])
            seconds = torch.stack([s[i + 1] + s[i] ** 2 for s in replicas]).mean(0)
            buffers[i].copy_(means.mean(0))
            buffers[i + 1].copy_(seconds - means.mean(0) ** 2)
        return model

    def recompute(self, model: nn.Module) -> None:
        """Every norm's moments over all that goes into it: the values themselves are kept."""
        seen: dict[nn.Module, list[Tensor]] = {}
        hooks = [
            m.register_forward_pre_hook(
                lambda norm, given: seen.setdefault(norm, []).append(given[0].detach())
            )
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ]
        size = max(
            self.phase1.batch // self.phase1.replicas, self.phase2.batch // self.phase2.replicas
        )
        model.train()
        with torch.no_grad():
            for chosen in self.order(3, 0, 0).split(size):
                model(self.x[chosen])
        for hook in hooks:
            hook.remove()
        for norm, given in seen.items():
            values = torch.cat([each.transpose(0, 1).flatten(1) for each in given], dim=1)
            norm.running_mean.copy_(values.mean(1))
            norm.running_var.copy_(values.var(1))
