"""What is minimised: cross entropy of a model's logits, or a loss function of the user's."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Any]
"""Given the model and a batch: the mean loss, or (the mean loss, how many were right, of how many).
"""

Metric = Callable[[nn.Module, Any], tuple[Any, Any]]
"""Given the model and a test batch: a sum, and over how many."""


class Measured(NamedTuple):
    """What a forward pass says of a batch."""

    loss: Tensor
    """The mean, a scalar."""
    correct: Tensor | float | None
    """How many were right; None where the loss does not say."""
    total: Tensor | float | None
    """Of how many."""


class Objective:
    """The loss of a model on a batch, and what of it was right.

    Without a loss function a batch is (inputs..., targets): the model is called with the inputs and
    gives logits [B, C] or [B, C, ...] for targets [B] or [B, ...] of class numbers. Inputs are
    rounded to half precision where all of the model's parameters are of one such type.

    Arguments:
        loss: the user's; None: cross entropy.
    """

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        self._model, self._loss = model, loss
        types = {p.dtype for p in model.parameters() if p.is_floating_point()}
        (only,) = types if len(types) == 1 else (torch.float32,)
        self._half = only if only.itemsize == 2 else None

    def __call__(self, batch: Any) -> Measured:
        """Run the model on a batch.

        Raises:
            ValueError: a batch, logits or a loss of another form.
        """
        if self._loss is None:
            return self._cross_entropy(batch)
        said = self._loss(self._model, batch)
        loss, *counts = said if isinstance(said, tuple) else (said,)
        if not isinstance(loss, Tensor) or loss.dim() != 0 or len(counts) not in (0, 2):
            got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else _kind(loss)
            expected = "a mean loss, or (a mean loss, how many were right, of how many)"
            got += f" and {len(counts)} more values" if counts else ""
            raise ValueError(f"loss: expected {expected}, got {got}; take the loss's mean()")
        return Measured(loss, *(counts or (None, None)))

    def _cross_entropy(self, batch: Any) -> Measured:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise ValueError(
                f"batch: expected (inputs, targets) for the cross entropy, got {_kind(batch)}; "
                "pass loss=, a function of the model and a batch"
            )
        *inputs, targets = batch
        if self._half is not None:
            inputs = [self._rounded(given) for given in inputs]
        logits = self._model(*inputs)
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            got = f"{list(logits.shape)}" if isinstance(logits, Tensor) else _kind(logits)
            raise ValueError(
                f"model: expected logits [B, C] for the cross entropy, got {got}; pass loss=, a "
                "function of the model and a batch"
            )
        expected = (len(logits), *logits.shape[2:])
        if not isinstance(targets, Tensor) or tuple(targets.shape) != expected:
            got = f"{list(targets.shape)}" if isinstance(targets, Tensor) else _kind(targets)
            raise ValueError(
                f"targets: expected class numbers {list(expected)} for logits "
                f"{list(logits.shape)}, got {got}; pass loss=, a function of the model and a batch"
            )
        if targets.is_floating_point():
            raise ValueError(
                f"targets: expected class numbers, got {targets.dtype}; pass loss=, a function of "
                "the model and a batch"
            )
        targets = targets.long()
        exact = logits.float() if logits.dtype.itemsize == 2 else logits
        loss = nn.functional.cross_entropy(exact, targets)
        return Measured(loss, (logits.argmax(1) == targets).sum(), targets.numel())

    def _rounded(self, given: Any) -> Any:
        is_real = isinstance(given, Tensor) and given.is_floating_point()
        return given.to(self._half) if is_real else given


def batch_length(batch: Any) -> int:
    """The examples of a batch: the length of the first tensor in it.

    Raises:
        ValueError: it holds none.
    """
    for tensor in leaves(batch):
        if tensor.dim():
            return len(tensor)
    raise ValueError(f"batch: expected tensors [B, ...], got {_kind(batch)}")


def leaves(batch: Any) -> list[Tensor]:
    """All tensors of a batch, in their order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [tensor for value in batch.values() for tensor in leaves(value)]
    if isinstance(batch, (tuple, list)):
        return [tensor for value in batch for tensor in leaves(value)]
    return []


def transformed(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch with whatever can be moved changed, its tensors above all; the rest as it is."""
    if hasattr(batch, "to"):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: transformed(value, change) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(transformed(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(transformed(value, change) for value in batch)
    return batch


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch on a device; a kind of batch with a method `to` of its own moves itself."""

    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.to(device, non_blocking=True)
        return part.to(device)

    return transformed(batch, move)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
