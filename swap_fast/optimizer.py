"""Nesterov SGD on the weight vector: `Update` of Algorithm 1, lines 15 and 24."""

import torch
from torch import Tensor

from swap_fast.config import Optimizer
from swap_fast.weights import Weights


class NesterovSGD:
    """torch's fused SGD over the one vector theta, with its state where a replay can reach it.

    With gradient g, weight decay d, momentum m and learning rate a (torch's semantics):
        g <- g + d theta;  v <- m v + g;  theta <- theta - a (g + m v)

    The learning rate is a tensor on the device, so that no step reads it on the host. The velocity
    is made here, as zeros: left to torch, the fused kernel makes it without values, and a first
    step that overflows in fp16 would leave it so.

    Arguments:
        scale_gradients: whether the loss is scaled against underflow, and updates with a
            non-finite gradient are left out: for fp16.
    """

    def __init__(self, weights: Weights, config: Optimizer, *, scale_gradients: bool) -> None:
        theta = weights.theta
        self.learning_rate = torch.zeros((), device=theta.device)
        self.velocity = torch.zeros_like(theta, requires_grad=False)
        self._sgd = torch.optim.SGD(
            [theta],
            lr=self.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
            fused=True,
        )
        self._sgd.state[theta]["momentum_buffer"] = self.velocity
        self.scaler = torch.amp.GradScaler(theta.device.type, enabled=scale_gradients)
        # Its tensors are made on first use: here, not inside a captured step.
        self.scaler.scale(torch.zeros((), device=theta.device))
        self._first_scale = self.scaler.state_dict()

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
