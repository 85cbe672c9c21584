"""Muon: SGD with momentum whose update of a matrix is made orthogonal (Jordan et al., 2024)."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from swap_fast.config.checks import typed

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of x <- a x + b x^3 + c x^5, which brings singular values of 0 to 1 near to 1."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices and filters, and torch's SGD for the parameters of other groups.

    A filter bank [n, c, h, w] counts as a matrix [n, c * h * w]. With gradient g, momentum m and
    learning rate a, an update of a matrix W of n rows is:
        v <- m v + g;  W <- W sqrt(n) / |W| - a orthogonal(g + m v)
    where `orthogonal` is that of `orthogonalize`. A group with `orthogonalize=False` has torch's
    Nesterov SGD, with its weight decay, in one fused kernel.

    Nothing in an update waits for the device, so that it can be captured: the learning rate may be
    a tensor, and `torch.amp.GradScaler` hands the scale and the overflow on as tensors. An update
    with a gradient that is not finite then leaves weights and momentum as they were.

    Arguments:
        params: parameters, or groups of them.
        lr: of matrices about the norm of a row's update; a tensor stays where it is.
        momentum: m, of each group.
        weight_decay: of groups that are not orthogonalized.
        orthogonalize: whether a group has Muon's update; its parameters have 2 or more dimensions.
        ns_steps: iterations of `orthogonalize`.
        normalize_weights: set each matrix to the norm sqrt(n) before its update.
        fp32: multiply matrices in fp32 instead of half precision.

    Raises:
        ValueError: a vector to orthogonalize, or a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
        ns_steps: int = 3,
        normalize_weights: bool = True,
        fp32: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "orthogonalize": orthogonalize,
            "ns_steps": ns_steps,
            "normalize_weights": normalize_weights,
            "fp32": fp32,
        }
        super().__init__(params, defaults)
        self._step_supports_amp_scaling = True  # see `_amp`

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its momentum: made in a step, it would not survive a replay."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name in ("momentum", "weight_decay"):
            group[name] = typed(f"Muon: {name}", group[name], float)
        group["ns_steps"] = typed("Muon: ns_steps", group["ns_steps"], int)
        lr = typed("Muon: lr", group["lr"], float | Tensor)
        for name, fits, expected in (
            ("lr", float(lr) >= 0, "0 or more"),
            ("momentum", 0 < group["momentum"] < 1, "between 0 and 1"),
            ("weight_decay", group["weight_decay"] >= 0, "0 or more"),
            ("ns_steps", group["ns_steps"] >= 1, "1 or more"),
        ):
            if not fits:
                raise ValueError(f"Muon: {name}: expected {expected}, got {group[name]}")
        for parameter in group["params"]:
            if group["orthogonalize"] and parameter.dim() < 2:
                raise ValueError(
                    "Muon: expected parameters of 2 or more dimensions, got shape "
                    f"{tuple(parameter.shape)}; put it into a group with orthogonalize=False"
                )
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients."""
        assert closure is None, "a gradient is taken once an update"
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if not group["orthogonalize"]:
                self._sgd(group, trained)
                continue
            alike = defaultdict(list)
            for parameter in trained:
                alike[parameter.shape, parameter.dtype, parameter.device].append(parameter)
            for parameters in alike.values():
                self._muon(group, parameters)

    @property
    def _amp(self) -> tuple[Tensor | None, Tensor | None]:
        """The loss's scale and whether a gradient overflowed, tensors that the device reads.

        GradScaler makes both attributes of the optimizer for the time of a step.
        """
        return getattr(self, "grad_scale", None), getattr(self, "found_inf", None)

    def _sgd(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not parameters:
            return
        scale, found_inf = self._amp
        sgd(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self.state[p]["momentum_buffer"] for p in parameters],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            dampening=0.0,
            nesterov=True,
            maximize=False,
            fused=True,
            grad_scale=scale,
            found_inf=found_inf,
        )

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Update parameters of one shape together: each product is one batched kernel."""
        momentum, shape = group["momentum"], parameters[0].shape
        scale, found_inf = self._amp
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        gradient = torch.stack([p.grad for p in parameters if p.grad is not None]).flatten(2)
        old_weight, old_velocity = (torch.stack(t).flatten(2) for t in (parameters, buffers))
        if scale is not None:
            gradient /= scale
        velocity = momentum * old_velocity + gradient  # [k, n, c * h * w], as all here
        direction = orthogonalize(
            gradient + momentum * velocity,
            group["ns_steps"],
            torch.float32 if group["fp32"] else half_of(gradient.device),
        )
        weight = old_weight
        if group["normalize_weights"]:
            weight = weight * (shape[0] ** 0.5 / _norm(weight))
        weight = weight - group["lr"] * direction
        if found_inf is not None:
            weight = torch.where(found_inf > 0, old_weight, weight)
            velocity = torch.where(found_inf > 0, old_velocity, velocity)
        for into, values in ((parameters, weight), (buffers, velocity)):
            torch._foreach_copy_(into, [each.view(shape) for each in values])


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Matrices U S' V^T with S' near 1, for G = U S V^T, by a Newton-Schulz iteration.

    After 5 steps the singular values are 0.7 to 1.2, but for those of less than a hundredth of
    G's norm, which need more.

    Arguments:
        matrices: G, [k, n, m].
        dtype: of the matrix products.
    """
    x = (matrices / _norm(matrices)).to(dtype)
    return newton_schulz(x, steps).to(matrices.dtype)


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """The iteration of `orthogonalize`, of matrices [k, n, m] of norm 1."""
    a, b, c = QUINTIC
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:  # the products of the shorter side are smaller
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _norm(matrices: Tensor) -> Tensor:
    """Of each of [k, n, m], in [k, 1, 1]; above 0."""
    return torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp_min(1e-12)


def half_of(device: torch.device) -> torch.dtype:
    """bf16; fp16 on GPUs older than sm_80, which have no bf16."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16
