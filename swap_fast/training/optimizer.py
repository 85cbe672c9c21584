"""SGD with momentum on the weight vector: `Update` of Algorithm 1, lines 15 and 24."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.phase import Optimizer
from swap_fast.training.weights import Weights


class MomentumSGD:
    """torch's fused SGD over the one vector theta, with its state where a replay can reach it.

    With gradient g, weight decay d, momentum m and learning rate a (torch's semantics):
        g <- g + d theta;  v <- m v + g;  theta <- theta - a (g + m v)
    and theta <- theta - a v without Nesterov's form.

    The learning rate is a tensor on the device, so that no step reads it on the host. The velocity
    is made here, as zeros: left to torch, the fused kernel makes it without values, and a first
    step that overflows in fp16 would leave it so.

    Arguments:
        scale_gradients: whether the loss is scaled against underflow, and updates with a
            non-finite gradient are left out: for fp16.
    """

    def __init__(self, weights: Weights, config: Optimizer, *, scale_gradients: bool) -> None:
        theta, device = weights.theta, weights.theta.device
        self.velocity = torch.zeros_like(theta, requires_grad=False)
        # Each part of theta with its weight decay and the factor on its learning rate.
        end, factor = len(theta) - weights.num_apart, config.bias_lr_factor
        decay_apart = config.weight_decay / factor if config.decay_norms_and_biases else 0.0
        parts = [(slice(0, end), 1.0, config.weight_decay), (slice(end, None), factor, decay_apart)]
        self._rates: list[tuple[Tensor, float]] = []
        groups, vectors = [], []
        for part, factor, decay in parts if weights.num_apart else parts[:1]:
            vector = nn.Parameter(theta.detach()[part])
            vector.grad = weights.gradient[part]
            rate = torch.zeros((), device=device)
            vectors.append((vector, self.velocity[part]))
            self._rates.append((rate, factor))
            groups.append({"params": [vector], "lr": rate, "weight_decay": decay})
        self._sgd = torch.optim.SGD(
            groups, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
        for vector, velocity in vectors:
            self._sgd.state[vector]["momentum_buffer"] = velocity
        self.scaler = torch.amp.GradScaler(
            device.type,
            init_scale=config.loss_scale,
            growth_interval=2000 if config.loss_scale_grows else 2**31 - 1,
            enabled=scale_gradients,
        )
        # Its tensors are made on first use: here, not inside a captured step.
        self.scaler.scale(torch.zeros((), device=device))
        self._first_scale = self.scaler.state_dict()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates, on the device."""
        for rate, factor in self._rates:
            rate.fill_(learning_rate * factor)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is taken."""
        return self.scaler.scale(loss)

    def step(self) -> None:
        """One update from `weights.gradient`, without waiting for the device."""
        self.scaler.step(self._sgd)
        self.scaler.update()

    def reset_(self, velocity: Tensor | None = None) -> None:
        """Start from no history of gradients, or from the velocity [P] given, in place."""
        if velocity is None:
            self.velocity.zero_()
        else:
            self.velocity.copy_(velocity)
        self.scaler.load_state_dict(self._first_scale)

    def history(self) -> Tensor:
        """A copy of the velocity [P], for `reset_`."""
        return self.velocity.clone()

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the next update depends on, on the host."""
        return {"velocity": self.velocity.cpu()}, {"scaler": self.scaler.state_dict()}

    def scatter_(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `gather` gave."""
        self.reset_(tensors["velocity"])
        self.scaler.load_state_dict(values["scaler"])
