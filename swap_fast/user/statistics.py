"""Batch-norm statistics of any net computed anew, from what goes into its layers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from swap_fast.distributed import ALONE, Comm
from swap_fast.user.weights import OwnWeights


class ActivationPass:
    """Compute the running statistics anew from the data (Algorithm 1, line 29).

    Each batch passes through the model in train mode; the statistics become the exact moments of
    every layer's input over all batches of all ranks, as in `swap_fast.training.batchnorm`, with
    the variance over n - 1 as torch's is. They are taken from the inputs themselves, so that a
    batch may be anything, a layer may be used twice or not at all, and half precision loses
    nothing. A layer that stays in eval mode, as a frozen one may, keeps its own.

    Arguments:
        forward: runs `weights.model` on a batch.
    """

    def __init__(self, weights: OwnWeights, forward: Callable[[Any], object]) -> None:
        self._weights, self._forward = weights, forward

    @torch.no_grad()
    def __call__(self, batches: Iterable[Any], comm: Comm = ALONE) -> None:
        """Put the statistics of the data into the model.

        Whatever goes wrong, the model has its former statistics again.

        Raises:
            ValueError: a layer that the data reach had one value a channel.
        """
        weights, norms = self._weights, self._weights.norms
        if not norms:
            return
        before = weights.copy()[1]
        sizes = [norm.num_features for norm in norms]
        channels = sum(sizes)
        device = before.device
        # Of each channel: how many values, their sum, and the sum of their squares.
        sums = torch.zeros(3, channels, dtype=torch.float64, device=device)
        of_layers = sums.split(sizes, dim=1)

        def note(layer: int, given: Tensor) -> None:
            dims = [d for d in range(given.dim()) if d != 1]
            values = given.detach()
            values = values if values.dtype == torch.float64 else values.float()
            variance, mean = (t.double() for t in torch.var_mean(values, dims, correction=0))
            n = given.numel() / given.shape[1]
            own = torch.stack([torch.full_like(mean, n), n * mean, n * (variance + mean.square())])
            of_layers[layer].add_(own)

        try:
            with _in_train_mode(weights.model), _hooked(norms, note), _eager(weights.model):
                for batch in batches:
                    self._forward(batch)
        except BaseException:
            weights.set_statistics_(before)
            raise
        comm.all_reduce_(sums)
        reached = sums[0] > 0
        if bool((sums[0][reached] < 2).any()):
            weights.set_statistics_(before)
            raise ValueError(
                "batch-norm statistics: expected data with two values a channel or more, got 1; "
                "use more data"
            )
        n = sums[0].clamp(min=2.0)
        mean = sums[1] / n
        variance = (sums[2] / n - mean.square()) * n / (n - 1)
        made = before.clone()
        made[:channels] = torch.where(reached, mean, before[:channels].double())
        former = before[channels : 2 * channels].double()
        made[channels : 2 * channels] = torch.where(reached, variance, former)
        weights.set_statistics_(made)


@contextmanager
def _hooked(
    norms: list[nn.modules.batchnorm._BatchNorm], note: Callable[[int, Tensor], None]
) -> Iterator[None]:
    def before(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda norm, inputs: note(layer, inputs[0]) if norm.training else None

    hooks = [norm.register_forward_pre_hook(before(layer)) for layer, norm in enumerate(norms)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _in_train_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


def _eager(model: nn.Module) -> AbstractContextManager[object]:
    """A compiled net runs uncompiled: else it would pass over the hooks."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has been asked to make any part of the model."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )
