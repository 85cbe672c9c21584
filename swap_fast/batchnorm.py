"""Batch-norm running statistics: one set a slot, merged exactly, and computed anew in phase 3."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from swap_fast.comm import ALONE, Comm
from swap_fast.weights import Weights


class SlotStatistics:
    """The running statistics [slots of this rank, 2C] that each slot gathers over its own batches.

    A device of the paper's machine keeps its own (Horovod did not synchronise them), so that a
    slot does too, whichever process runs it.
    """

    def __init__(self, weights: Weights, num_slots: int, comm: Comm) -> None:
        self._weights, self._num_slots, self._comm = weights, num_slots, comm
        local = len(comm.slots(num_slots))
        self._values = weights.statistics.expand(local, -1).clone()

    def reset_(self) -> None:
        """Start every slot from the model's statistics."""
        self._values.copy_(self._weights.statistics.expand_as(self._values))

    def enter_(self, slot: int) -> None:
        """Put the statistics of this rank's slot number `slot` into the model."""
        self._weights.statistics.copy_(self._values[slot])

    def leave_(self, slot: int) -> None:
        """Take them back, updated by a forward pass."""
        self._values[slot].copy_(self._weights.statistics)

    def merge_(self) -> None:
        """Put the statistics of all slots' data taken together into the model.

        mean = E[mean_s] and var = E[var_s + mean_s^2] - mean^2 over the slots s, in float64: the
        same for any number of processes.
        """
        if self._num_slots == 1:
            return self.enter_(0)
        means, variances = self._values.double().chunk(2, dim=1)
        sums = torch.cat([means.sum(0), (variances + means.square()).sum(0)])
        mean, second = (self._comm.all_reduce_(sums) / self._num_slots).chunk(2)
        self._weights.statistics.copy_(torch.cat([mean, second - mean.square()]))


@contextmanager
def _momentum(norms: list[nn.modules.batchnorm._BatchNorm], value: float) -> Iterator[None]:
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def recompute_statistics_(
    weights: Weights,
    batches: Iterable[Tensor],
    comm: Comm = ALONE,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Compute the running statistics anew from the data (Algorithm 1, line 29).

    Each batch passes through the model in train mode; the statistics become the exact moments of
    every layer's input over all batches of all ranks, whatever their sizes: with n_b values a
    channel in batch b, mean = sum n_b mean_b / n and var = sum n_b (var_b + mean_b^2) / n - mean^2,
    made unbiased by n / (n - 1) as torch's running variances are. Sums are kept in float64.

    Arguments:
        batches: images [B, ...] of this rank's share of the data.
        autocast: makes the context of each forward pass.

    Whatever goes wrong, the model has its former statistics, momenta and mode again.

    Raises:
        ValueError: no data on any rank, or a batch with one value a channel.
    """
    statistics, norms = weights.statistics, weights.norms
    if not norms:
        return
    channels = [norm.num_features for norm in norms]
    positions = [1] * len(norms)  # values a channel in one image: H * W of each layer's input

    def count(layer: int, shape: torch.Size) -> None:
        positions[layer] = shape[2:].numel()

    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, layer=layer: count(layer, inputs[0].shape))
        for layer, norm in enumerate(norms)
    ]
    was_training, before = weights.model.training, statistics.clone()
    half = len(statistics) // 2
    sums = torch.zeros(len(statistics), dtype=torch.float64, device=statistics.device)
    totals = torch.zeros(len(norms), dtype=torch.float64)
    try:
        weights.model.train()
        # With momentum 1 a running statistic is the batch's own: the old one is added 0 times,
        # which an old NaN or infinity would survive.
        statistics.nan_to_num_()
        with _momentum(norms, 1.0):
            for images in batches:
                with autocast():
                    weights.model(images)
                n = torch.tensor([len(images) * p for p in positions], dtype=torch.float64)
                totals += n
                per_channel = _spread(n, channels).to(statistics.device)
                mean, unbiased = statistics.double().chunk(2)
                biased = unbiased * (per_channel - 1) / per_channel
                sums[:half] += per_channel * mean
                sums[half:] += per_channel * (biased + mean.square())
    except BaseException:
        statistics.copy_(before)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        weights.model.train(was_training)
    totals = comm.all_reduce_(totals.to(statistics.device)).cpu()
    if totals.min() < 2:
        statistics.copy_(before)
        raise ValueError(
            "batch-norm statistics: expected data with two values a channel or more, got "
            f"{int(totals.min())}; give the pass more images"
        )
    n = _spread(totals, channels).to(statistics.device)
    mean, second = (comm.all_reduce_(sums) / n.repeat(2)).chunk(2)
    variance = (second - mean.square()) * n / (n - 1)
    statistics.copy_(torch.cat([mean, variance]))


def _spread(per_layer: Tensor, channels: list[int]) -> Tensor:
    """Repeat a value of each layer for each of its channels: [layers] -> [C]."""
    return torch.repeat_interleave(per_layer, torch.tensor(channels))
