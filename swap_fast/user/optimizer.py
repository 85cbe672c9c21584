"""Any torch optimizer on the weights: its rates, its history, and how both are kept."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.training.weights import Weights

Make = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer of a list of parameters, or of groups of them."""

Groups = Callable[[nn.Module], Iterable[Any]]
"""What a model's optimizer is given in place of that list: parameters, or dicts of groups."""

PLAIN = bool | int | float | str | None


class OwnOptimizer:
    """A torch optimizer that follows a schedule, and starts anew with each phase and worker.

    Where groups have learning rates of their own, each keeps its ratio to the optimizer's: the
    schedule gives the one, and the others follow.

    Arguments:
        make: called anew at each reset, so that no history can stay.
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
        self._weights, self._make, self._groups = weights, make, groups
        self._largest_norm = largest_norm
        device = weights.theta.device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale_gradients)
        self.scaler.scale(torch.zeros((), device=device))  # its tensors are made on first use
        self._first_scale = self.scaler.state_dict()
        self._optimizer = self._new()
        self._check()
        default = self._optimizer.defaults.get("lr")
        # The optimizer's own learning rate; None where it has none above 0.
        self.learning_rate = float(default) if default and float(default) > 0 else None
        self._ratios = [
            float(group["lr"]) / (self.learning_rate or 1.0)
            for group in self._optimizer.param_groups
        ]

    def _new(self) -> torch.optim.Optimizer:
        trained = self._weights.trained
        if self._groups is None:
            return self._make(list(trained.values()))

        def known(parameter: Any) -> Any:
            return trained.get(parameter, parameter)

        return self._make(
            [
                entry | {"params": [known(p) for p in _listed(entry["params"])]}
                if isinstance(entry, dict)
                else known(entry)
                for entry in self._groups(self._weights.model)
            ]
        )

    def _check(self) -> None:
        optimizer = self._optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                "optimizer: expected a function that makes a torch.optim.Optimizer of parameters, "
                f"got one that makes {type(optimizer).__name__}"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("optimizer: expected one that needs no closure, got LBFGS")
        if any("lr" not in group for group in optimizer.param_groups):
            raise ValueError("optimizer: expected groups with a learning rate lr, got none")
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in self._weights.trained.values() if id(p) not in held]
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
            for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True)
        ]
        for group in groups:
            group.pop("lr", None)
        return {"name": type(self._optimizer).__name__, "groups": groups}

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next updates."""
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate * ratio)
            else:
                group["lr"] = learning_rate * ratio

    def scale(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is taken."""
        return self.scaler.scale(loss)

    def step(self) -> None:
        """One update from `weights.gradient`; in fp16 it waits for the device."""
        if self._largest_norm is not None:
            self.scaler.unscale_(self._optimizer)
            gradient = self._weights.gradient
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_((self._largest_norm / (norm + 1e-6)).clamp(max=1.0))
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._weights.refresh_()

    def history(self) -> Any:
        """A copy of what former gradients have left, for `reset_`."""
        return self.gather()

    def reset_(self, history: Any = None) -> None:
        """Start from no history of gradients, or from the one given."""
        self._optimizer = self._new()
        self.scaler.load_state_dict(self._first_scale)
        if history is not None:
            self.scatter_(*history)

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The groups' options and each parameter's state, on the host.

        Raises:
            ValueError: something in it is no tensor, number, text, list or mapping.
        """
        tensors: dict[str, Tensor] = {}
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self._optimizer.param_groups
        ]
        state = [self._optimizer.state.get(p, {}) for p in self._parameters()]
        kept = {
            "groups": _pack(groups, "optimizer.groups", tensors),
            "state": _pack(state, "optimizer.state", tensors),
        }
        return tensors, {"scaler": self.scaler.state_dict(), "optimizer": kept}

    def scatter_(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `gather` gave."""
        self.reset_()
        kept, device = values["optimizer"], self._weights.theta.device
        groups = _unpack(kept["groups"], tensors, device)
        for group, saved in zip(self._optimizer.param_groups, groups, strict=True):
            group.update(saved)
        states = _unpack(kept["state"], tensors, device)
        for parameter, state in zip(self._parameters(), states, strict=True):
            if state:
                self._optimizer.state[parameter] = state
        self.scaler.load_state_dict(values["scaler"])

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]


def _listed(parameters: Any) -> list[Any]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON keeps it, its tensors put aside by names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "on_host": value.device.type == "cpu"}
    if isinstance(value, Mapping):
        items = enumerate(value.items())
        return {"mapping": [[key, _pack(v, f"{name}.{i}", tensors)] for i, (key, v) in items]}
    if isinstance(value, (list, tuple)):
        entries = [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": entries}
    if isinstance(value, PLAIN):
        return value
    raise ValueError(
        f"optimizer: expected a state of tensors, numbers and texts, got a "
        f"{type(value).__name__} in it, which no checkpoint can keep; leave `folder` out"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]].clone()
        return tensor if value["on_host"] else tensor.to(device)
    if "mapping" in value:
        return {key: _unpack(each, tensors, device) for key, each in value["mapping"]}
    if "tuple" in value:
        return tuple(_unpack(each, tensors, device) for each in value["tuple"])
    return [_unpack(each, tensors, device) for each in value["list"]]
