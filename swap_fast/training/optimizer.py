"""What turns the gradient into an update: `Update` of Algorithm 1, lines 15 and 24."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.phase import Optimizer
from swap_fast.training.muon import Muon
from swap_fast.training.weights import Weights, split


class ScaledOptimizer(ABC):
    """A torch optimizer on the weights, its learning rates, and in fp16 the scale of the loss.

    An update with a gradient that is not finite is left out, and the scale is halved.

    Arguments:
        optimizer: of parameters whose gradients are views of `weights.gradient`.
        ratios: of each group's learning rate to the phase's.
        scaler: enabled for fp16 only.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        ratios: Sequence[float],
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._weights, self._torch, self._ratios = weights, optimizer, ratios
        self.scaler = scaler
        # The scaler's tensors are made on first use: here, not inside a captured step.
        self._one = torch.ones((), device=weights.theta.device)
        scaler.scale(self._one)
        self._first_scale = scaler.state_dict()
        # On the device: updates left out since the last reading.
        self.skipped = torch.zeros((), dtype=torch.float64, device=weights.theta.device)
        self._kernel: Callable[[], None] | None = None  # in place of torch's optimizer

    @property
    def is_fused(self) -> bool:
        """Whether an update takes gradients where they lie: see `Weights.loosen_`."""
        return self._kernel is not None

    def fuse_(self, dtype: torch.dtype | None) -> None:  # noqa: B027  # a user's has no kernels
        """Make each update by GPU kernels, where there are some for this optimizer.

        The weights, the state and the results are the same, so that it may be changed between
        updates; a captured step keeps what it was captured with.

        Arguments:
            dtype: of the forward pass; None: back to torch's optimizer.
        """

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates; where it is a tensor, on the device."""
        for group, ratio in zip(self._torch.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate * ratio)
            else:
                group["lr"] = learning_rate * ratio

    def learning_rates(self, of_updates: Sequence[float]) -> Tensor:
        """What `set_learning_rate` would set for some updates: fp32 [groups, updates]."""
        rates = [[rate * ratio for rate in of_updates] for ratio in self._ratios]
        return torch.tensor(rates, dtype=torch.float32)

    def take_learning_rates_(self, table: Tensor, update: Tensor) -> None:
        """Set the learning rates of an update whose number [1] is on the device, from such a table.

        For learning rates that are tensors; nothing waits, and a capture reads what is there then.
        """
        for group, rates in zip(self._torch.param_groups, table, strict=True):
            torch.index_select(rates, 0, update, out=group["lr"].view(1))

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is taken."""
        return self.scaler.scale(loss)

    @property
    def loss_scale(self) -> Tensor | None:
        """Its factor, float32 [] on the device; None: it is not scaled."""
        return self.scaler._scale if self.scaler.is_enabled() else None

    def step(self) -> None:
        """One update of the weights from `weights.gradient`, left out where that is not finite."""
        if self._kernel is not None:
            self._kernel()
            return
        before = self.scale(self._one)
        self.scaler.step(self._torch)
        self.scaler.update()
        if self.scaler.is_enabled():
            self.skipped += self.scale(self._one) < before  # it is halved then, and only then

    @abstractmethod
    def reset_(self) -> None:
        """Go back to the state before the first update, and to the first scale of the loss."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next update depends on, beside the weights and the gradient."""
        state = [dict(self._torch.state.get(p, {})) for p in self._parameters()]
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self._torch.param_groups
        ]
        return deepcopy({"state": state, "groups": groups, "scaler": self.scaler.state_dict()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy such a state in. Tensors that are there already keep their addresses."""
        for group, saved in zip(self._torch.param_groups, state["groups"], strict=True):
            _copy_in(group, saved)
        for parameter, saved in zip(self._parameters(), state["state"], strict=True):
            if saved:
                _copy_in(self._torch.state[parameter], saved)
        self.scaler.load_state_dict(state["scaler"])

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._torch.param_groups for p in group["params"]]


def _copy_in(into: dict[str, Any], saved: Mapping[str, Any]) -> None:
    for name, value in saved.items():
        mine = into.get(name)
        if isinstance(mine, Tensor) and isinstance(value, Tensor) and mine.shape == value.shape:
            mine.copy_(value)
        else:
            into[name] = deepcopy(value)


class FlatOptimizer(ScaledOptimizer):
    """A recipe's optimizer over theta, with its state where a replay can reach it.

    The learning rate is a tensor on the device, so that no step reads it on the host. The velocity
    is made here, as zeros: left to torch, the fused kernel makes it without values, and a first
    step that overflows in fp16 would leave it so. Nothing in an update waits for the device.

    Arguments:
        weights: with the groups of `config`.
        scale_gradients: whether the loss is scaled against underflow: for fp16.
    """

    def __init__(self, weights: Weights, config: Optimizer, *, scale_gradients: bool) -> None:
        theta, device = weights.theta, weights.theta.device
        self.velocity = torch.zeros_like(theta, requires_grad=False)  # [P]
        trained = [p for members in weights.groups.values() for p in members]
        velocities = dict(zip(trained, split(self.velocity, trained), strict=True))
        groups, ratios = [], []
        for name, group in config.groups.items():
            place, members = weights.places[name], weights.groups[name]
            if not members:
                continue
            if not group.orthogonalize:  # one vector: one kernel
                vector = nn.Parameter(theta.detach()[place])
                vector.grad, velocities[vector] = weights.gradient[place], self.velocity[place]
                members = [vector]
            options = {n: value for n, value in asdict(group).items() if n != "lr_factor"}
            groups.append({"params": members, "lr": torch.zeros((), device=device), **options})
            ratios.append(group.lr_factor)
        optimizer = self._make(groups, config)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = velocities[parameter]
        scaler = torch.amp.GradScaler(
            device.type,
            init_scale=config.loss_scale,
            growth_interval=2000 if config.loss_scale_grows else 2**31 - 1,
            enabled=scale_gradients,
        )
        super().__init__(weights, optimizer, ratios, scaler)
        self._own_kernel: Callable[[], None] | None = None

    @abstractmethod
    def _make(self, groups: list[dict[str, Any]], config: Optimizer) -> torch.optim.Optimizer:
        """The torch optimizer of these groups."""

    def fuse_(self, dtype: torch.dtype | None) -> None:
        """Use the kernels of `KernelUpdate`, or torch's optimizer."""
        if dtype is None:
            if self.is_fused:
                self._weights.tighten_()
            self._kernel = None
            return
        self._weights.loosen_(dtype)
        if self._own_kernel is None:  # one, which captured steps may share
            from swap_fast.training.update_kernel import KernelUpdate  # Triton is on Linux alone

            places = [p for n, p in self._weights.places.items() if self._weights.groups[n]]
            groups = list(zip(places, self._torch.param_groups, strict=True))
            self._own_kernel = KernelUpdate(
                self._weights, self.velocity, groups, self.scaler, self.skipped
            )
        self._kernel = self._own_kernel

    def reset_(self) -> None:
        """Go back to the state before the first update, in place."""
        self.velocity.zero_()
        self.scaler.load_state_dict(self._first_scale)


class MomentumSGD(FlatOptimizer):
    """torch's fused SGD over theta.

    With gradient g, weight decay d, momentum m and learning rate a (torch's semantics):
        g <- g + d theta;  v <- m v + g;  theta <- theta - a (g + m v)
    and theta <- theta - a v without Nesterov's form.
    """

    def _make(self, groups: list[dict[str, Any]], config: Optimizer) -> torch.optim.Optimizer:
        momentum, nesterov = config.momentum, config.nesterov
        return torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, fused=True)


class MuonAndSGD(FlatOptimizer):
    """Muon for the filters, and the same SGD for all other parameters."""

    def _make(self, groups: list[dict[str, Any]], config: Optimizer) -> torch.optim.Optimizer:
        return Muon(groups)


def recipe_optimizer(
    weights: Weights, config: Optimizer, *, scale_gradients: bool
) -> FlatOptimizer:
    """The optimizer of a recipe's configuration."""
    kind = MuonAndSGD if config.kind == "muon" else MomentumSGD
    return kind(weights, config, scale_gradients=scale_gradients)
