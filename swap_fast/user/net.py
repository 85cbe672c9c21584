"""The user's net: what is refused of it, and what it does not take."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from swap_fast.config.checks import one_line, typed
from swap_fast.config.phase import Phase
from swap_fast.record import EpochRow
from swap_fast.training.callback import Callback
from swap_fast.training.state import Progress
from swap_fast.training.weights import Weights
from swap_fast.user.batch import batch_length, leaves, transformed
from swap_fast.user.data import (
    BatchesAsGiven,
    Data,
    Placement,
    one_pass,
)
from swap_fast.user.objective import Objective, kind_of

_TRAINED: WeakSet[nn.Module] = WeakSet()
"""Nets that a run has trained: one may not be the start of another by mistake."""


def mark_trained(model: nn.Module) -> None:
    """Note that a run trains this net from here on."""
    _TRAINED.add(bare(model))


def make_net(make_model: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """The net at its initial weights, on its device.

    Raises:
        ValueError: no function, or one whose result is no net, a wrapped one, one that was trained
            before, or one whose state is more than tensors.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise ValueError(
            f"make_model: expected a function that makes the net, got {kind_of(make_model)}; pass "
            "the class, or lambda: Net(...)"
        )
    make_model = typed("make_model", make_model, Callable[[], nn.Module])
    torch.manual_seed(seed)
    model = make_model()
    if not isinstance(model, nn.Module):
        raise ValueError(
            "make_model: expected a function that returns an nn.Module, got one that returns "
            f"{kind_of(model)}"
        )
    refuse_wrapped(model, "make_model")
    if bare(model) in _TRAINED:
        raise ValueError(
            "make_model: expected a new net from each call, got one that swap has trained before; "
            "return copy.deepcopy(net)"
        )
    refuse_extra_state(bare(model), "make_model")
    return model.to(device)


def refuse_wrapped(model: nn.Module, name: str) -> None:
    """Refuse a net within a module that has it as its `module`, and one in shards.

    Raises:
        ValueError: it is in one of torch's, or sharded over processes.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        raise ValueError(
            f"{name}: expected the bare net, got it in {kind_of(model)}; give its .module"
        )
    if isinstance(model, nn.Module) and any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise ValueError(
            f"{name}: expected the bare net, got it in shards over processes (FSDP2); give a net "
            "that has loaded its full state dict"
        )


def refuse_extra_state(model: nn.Module, name: str) -> None:
    """Refuse a net whose state no file of tensors holds.

    Raises:
        ValueError: its `get_extra_state` gives what is no tensor.
    """
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: expected a net whose state is tensors, got {kind_of(value)} in it, "
                f"{key}; keep it in a buffer, or leave get_extra_state out"
            )


class FrozenValues(Callback):
    """Sees that frozen parameters stay as they are, as an averaging teacher's do not.

    They are no part of theta: a worker would go on from the one before it, and the average have
    the last worker's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._frozen = {
            name: parameter
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad and parameter.is_floating_point()
        }
        self._sums: list[float] = []

    def _read(self) -> list[float]:
        sums = [p.detach().sum(dtype=torch.float64) for p in self._frozen.values()]
        return torch.stack(sums).nan_to_num().tolist() if sums else []

    def on_begin(self, progress: Progress) -> None:
        self._sums = self._read()

    def on_epoch_end(self, row: EpochRow) -> None:
        """Compare their sums. Waits for the device, off the clock.

        Raises:
            ValueError: names the first that has changed.
        """
        pairs = zip(self._frozen, self._read(), self._sums, strict=True)
        if (name := next((n for n, now, before in pairs if now != before), None)) is not None:
            raise ValueError(
                f"parameter {name}: expected a frozen one to keep its values, got one that the net "
                "changes itself; register it as a buffer, of which each worker has its own and the "
                "average the mean"
            )


def bare(model: nn.Module) -> nn.Module:
    """The net itself, where torch.compile has put it in a module of its own."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module), "torch's own name of what it compiles"
    return inner


def refuse_lone_examples(
    phases: Mapping[str, Phase],
    weights: Weights,
    objective: Objective,
    data: Data,
    place: Placement,
) -> None:
    """Try the net on one example, where a device may get one alone, before anything is trained.

    Raises:
        ValueError: its batch norm has one value a channel then, of which there is no variance.
    """
    alone = [
        f"{name}.global_batch_size: expected 2 examples or more for each device, got 1"
        for name, phase in phases.items()
        if phase.micro_batch_size == 1
    ]
    if isinstance(data, BatchesAsGiven) and data.ends_alone:
        alone.append(
            f"{data.name}: expected 2 examples or more in every batch, got 1 in the last; pass "
            "drop_last=True to its DataLoader"
        )
    if not alone or not weights.norms:
        return
    before, loose = weights.copy(), weights.unaveraged_buffers()
    (batch, *_) = islice(one_pass(data, place, batch_size=1, shuffled=False), 1)
    length = batch_length(batch)

    def first(part: Any) -> Any:
        is_column = isinstance(part, Tensor) and part.dim() > 0 and len(part) == length
        return part[:1] if is_column else part

    try:
        with torch.no_grad():
            objective(transformed(batch, first))
    except ValueError as error:
        raise ValueError(f"{alone[0]}; the net fails on one alone: {error}") from None
    finally:
        weights.load_(*before)
        weights.set_unaveraged_buffers_(loose)


@contextmanager
def explained(name: str, batch: Any, model: nn.Module, remedy: str) -> Iterator[None]:
    """What the net raises on a batch, as one line that names the data, their types and the net's.

    Arguments:
        remedy: what to change.

    Raises:
        ValueError: in place of any other exception, but for a lack of memory.
    """
    try:
        yield
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        got = ", ".join(f"{_type(each)} {list(each.shape)}" for each in leaves(batch))
        own = sorted({_type(parameter) for parameter in model.parameters()})
        raise ValueError(
            f"{name}: expected a batch that the net takes, whose parameters are "
            f"{' and '.join(own)}, got {got}: {one_line(error, 160)}; change {remedy}"
        ) from error


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
