"""The user's optimizer: any of torch's, at the learning rates of the schedule."""

from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.config.checks import typed
from swap_fast.training.optimizer import ScaledOptimizer
from swap_fast.training.state import PLAIN
from swap_fast.training.weights import Weights
from swap_fast.user.objective import kind_of

Make = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer of a list of parameters, or of groups of them."""

Groups = Callable[[nn.Module], Iterable[Any]]
"""What a model's optimizer is given in place of that list: parameters, or dicts of groups."""


class UserOptimizer(ScaledOptimizer):
    """A torch optimizer that follows a schedule, made again for each phase and worker.

    Where groups have learning rates of their own, each keeps its ratio to the optimizer's: the
    schedule gives the one, and the others follow. An optimizer's own rate of 0 has no effect.

    Arguments:
        make: called at each reset, so that no state can stay.
        groups: gives what `make` is given; None: the list of trainable parameters.
        scale_gradients: whether the loss is scaled against underflow: for fp16, of the forward
            pass or of parameters.
        largest_norm: clip the gradient of an update to this norm; None: do not.

    Raises:
        ValueError: no torch optimizer, one that cannot be used, or not all parameters in it.
    """

    def __init__(
        self,
        weights: Weights,
        make: Make,
        groups: Groups | None = None,
        *,
        scale_gradients: bool = False,
        largest_norm: float | None = None,
    ) -> None:
        self._trained, self._refresh = weights.trained, weights.refresh_
        self._model, self._groups, self._largest_norm = weights.model, groups, largest_norm
        if isinstance(make, torch.optim.Optimizer):
            name = type(make).__name__
            raise ValueError(
                f"optimizer: expected a function that makes one of parameters, got a {name} that "
                f"is made already; pass lambda parameters: {name}(parameters, lr=...)"
            )
        self._make = typed("optimizer", make, Make)
        optimizer = self._new()
        self._check(optimizer)
        default = optimizer.defaults.get("lr")
        # The optimizer's own learning rate; None where it has none above 0.
        self.learning_rate = float(default) if default and float(default) > 0 else None
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        own = None if default is None else float(default)
        ratios = [1.0 if rate == own else rate / (self.learning_rate or 1.0) for rate in rates]
        scaler = torch.amp.GradScaler(weights.theta.device.type, enabled=scale_gradients)
        super().__init__(weights, optimizer, ratios, scaler)

    def _new(self) -> torch.optim.Optimizer:
        trained: Mapping[Any, Any] = self._trained
        if self._groups is None:
            return self._make(list(trained.values()))

        def known(entry: Any) -> Any:
            if isinstance(entry, dict) and "params" in entry:
                listed = entry["params"]
                listed = [listed] if isinstance(listed, Tensor) else listed
                return entry | {"params": list(map(known, listed))}
            if isinstance(entry, Tensor):
                return trained.get(entry, entry)
            if isinstance(entry, tuple) and len(entry) == 2:  # with its name, as torch takes it
                return entry[0], known(entry[1])
            raise ValueError(
                "parameter_groups: expected parameters, or dicts with params, for the net, got "
                f"{kind_of(entry)}"
            )

        groups = self._groups(self._model)
        return self._make(list(map(known, groups if isinstance(groups, Iterable) else [groups])))

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                "optimizer: expected a function that makes a torch.optim.Optimizer of parameters, "
                f"got one that makes {type(optimizer).__name__}"
            )
        name = type(optimizer).__name__
        of_step = signature(optimizer.step).parameters.values()
        optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if any(each.default is each.empty and each.kind not in optional for each in of_step):
            raise ValueError(f"optimizer: expected one that needs no closure, got {name}")
        if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
            raise ValueError(
                f"optimizer: expected one that leaves its weights in the model, got {name}, which "
                "has other ones to train and to test with; take it without its schedule-free form"
            )
        if any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                "optimizer: expected groups with a learning rate lr, which the schedule sets, got "
                f"{name} with none; give it a number, such as lr=1e-3"
            )
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in self._trained.values() if id(p) not in held]
        if missing:
            raise ValueError(
                f"optimizer: expected every trainable parameter, got all but {len(missing)}; "
                "freeze these with requires_grad_(False) in make_model"
            )

    def describe(self) -> dict[str, Any]:
        """Its name, and its groups' options that are plain values, as JSON keeps them."""
        groups = [
            {name: value for name, value in group.items() if isinstance(value, PLAIN | tuple)}
            | {"lr_ratio": ratio, "parameters": sum(p.numel() for p in group["params"])}
            for group, ratio in zip(self._torch.param_groups, self._ratios, strict=True)
        ]
        for group in groups:
            group.pop("lr", None)
        return {"name": type(self._torch).__name__, "groups": groups}

    def step(self) -> None:
        """One update from `weights.gradient`; in fp16 it waits for the device."""
        if self._largest_norm is not None:
            self.scaler.unscale_(self._torch)
            gradient = self._weights.gradient
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((self._largest_norm / (norm + 1e-6)).clamp(max=1.0))
        super().step()
        self._refresh()

    def reset_(self) -> None:
        """Make the optimizer again, without any state."""
        self._torch = self._new()
        self.scaler.load_state_dict(self._first_scale)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy such a state into a new optimizer."""
        self._torch = self._new()
        super().load_state_dict(state)
