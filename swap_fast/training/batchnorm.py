"""Batch-norm running statistics: a set a replica, merged exactly; recomputed in phase 3."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from swap_fast.distributed import ALONE, Comm
from swap_fast.training.capture import Captures
from swap_fast.training.weights import Weights


class ReplicaStatistics:
    """The running statistics [replicas of this rank, 2C] that each replica gathers over its own
    batches.

    A device of the paper's machine keeps its own (Horovod did not synchronise them), so that a
    replica does too, whichever process runs it.
    """

    def __init__(self, weights: Weights, num_replicas: int, comm: Comm) -> None:
        self._weights, self._num_replicas, self._comm = weights, num_replicas, comm
        local = len(comm.replicas(num_replicas))
        # [replicas of this rank, 2C]
        self.values = weights.statistics.expand(local, -1).clone()

    def reset_(self) -> None:
        """Start every replica from the model's statistics."""
        self.values.copy_(self._weights.statistics.expand_as(self.values))

    def swap_in(self, replica: int) -> None:
        """Put the statistics of this rank's replica number `replica` into the model."""
        self._weights.set_statistics_(self.values[replica])

    def swap_out(self, replica: int) -> None:
        """Take them back, updated by a forward pass."""
        self.values[replica].copy_(self._weights.get_statistics())

    def merge_(self) -> None:
        """Put the statistics of all replicas' data taken together into the model.

        mean = E[mean_s] and var = E[var_s + mean_s^2] - mean^2 over the replicas s, in float64: the
        same for any number of processes. Of further buffers, the mean.
        """
        if self._num_replicas == 1 or self.values.shape[1] == 0:
            return self.swap_in(0)
        further = self._weights.num_extra
        sizes = [*2 * [(self.values.shape[1] - further) // 2], further]
        means, variances, others = self.values.double().split(sizes, dim=1)
        sums = torch.cat([means.sum(0), (variances + means.square()).sum(0), others.sum(0)])
        mean, second, other = (self._comm.all_reduce_(sums) / self._num_replicas).split(sizes)
        self._weights.set_statistics_(torch.cat([mean, second - mean.square(), other]))


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


class BatchNormRecompute:
    """Compute the running statistics anew from the data (Algorithm 1, line 29).

    Each batch passes through the model in train mode; the statistics become the exact moments of
    every layer's input over all batches of all ranks, whatever their sizes: with n_b values a
    channel in batch b, mean = sum n_b mean_b / n and var = sum n_b (var_b + mean_b^2) / n - mean^2,
    made unbiased by n / (n - 1) as torch's running variances are. Sums are kept in float64.

    Arguments:
        weights: the model.
        autocast: makes the context of each forward pass.
    """

    def __init__(
        self,
        weights: Weights,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._weights, self._autocast = weights, autocast
        statistics, norms = weights.statistics, weights.norms
        self._channels = [norm.num_features for norm in norms]
        # Values a channel in one image: H * W of each layer's input, noted in a forward pass.
        self._positions = [1] * len(norms)
        # For each shape of a batch: values a channel [layers], and for each channel [C].
        self._values: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self._sums = torch.zeros(len(statistics), dtype=torch.float64, device=statistics.device)
        self._buffer: Tensor | None = None
        # What a full buffer's batch runs in place of the forward pass and its sums: their replay.
        self.replay: Callable[[], None] | None = None

    @torch.no_grad()
    def warm_up(
        self,
        buffer: Tensor,
        *,
        short: Sequence[int] = (),
        captures: Captures | None = None,
        comm: Comm = ALONE,
    ) -> None:
        """Pass over random images in `buffer` [B, ...], then put everything back as it was.

        The whole pass is run, with its collectives, for each size of a batch: whatever is chosen
        or built for a shape on its first use is then there.

        Arguments:
            buffer: where later batches will be.
            short: sizes of batches that fill only a part of it.
            captures: captures the pass over a full buffer, which is then a replay; None: it stays
                as it is.
            comm: the ranks of later passes; all must call.
        """
        if not self._channels:
            return
        before = self._weights.statistics.clone()
        self._buffer = buffer.normal_()
        with self.passing():
            self._add_no_sync(buffer)  # the values a channel are counted on the host
            if captures is not None:
                self.replay = captures.capture(self.add_buffer_no_sync)
        self([buffer, *(buffer[:size] for size in short)], comm)
        self._weights.statistics.copy_(before)

    @torch.no_grad()
    def __call__(self, batches: Iterable[Tensor], comm: Comm = ALONE) -> None:
        """Put the statistics of the data into the model.

        Whatever goes wrong, the model has its former statistics, momenta and mode again.

        Arguments:
            batches: images [B, ...] of this rank's share of the data.

        Raises:
            ValueError: no data on any rank, or a batch with one value a channel.
        """
        statistics = self._weights.statistics
        if not self._channels:
            return
        before = statistics.clone()
        totals = torch.zeros(len(self._channels), dtype=torch.float64)
        try:
            with self.passing():
                for images in batches:
                    if self.replay is not None and self._fills_buffer(images):
                        self.replay()
                    else:
                        self._add_no_sync(images)
                    totals += self._values[images.shape][0]
        except BaseException:
            statistics.copy_(before)
            raise
        totals = comm.all_reduce_(totals.to(statistics.device)).cpu()
        if totals.min() < 2:
            statistics.copy_(before)
            raise ValueError(
                "batch-norm statistics: expected data with two values a channel or more, got "
                f"{int(totals.min())}; give the pass more images"
            )
        n = _spread(totals, self._channels).to(statistics.device)
        mean, second = (comm.all_reduce_(self._sums) / n.repeat(2)).chunk(2)
        variance = (second - mean.square()) * n / (n - 1)
        statistics.copy_(torch.cat([mean, variance]))

    def _fills_buffer(self, images: Tensor) -> bool:
        buffer = self._buffer
        return (
            buffer is not None
            and images.data_ptr() == buffer.data_ptr()
            and images.shape == buffer.shape
        )

    def add_buffer_no_sync(self) -> None:
        """Add the moments of the batch in the buffer, within `passing`."""
        assert self._buffer is not None
        self._add_no_sync(self._buffer)

    def _add_no_sync(self, images: Tensor) -> None:
        """Add a batch's moments to the sums; nothing waits for the device once a shape is known."""
        with self._autocast():
            self._weights.model(images)
        if images.shape not in self._values:
            values = len(images) * torch.tensor(self._positions, dtype=torch.float64)
            on_device = _spread(values, self._channels).to(self._sums.device)
            self._values[images.shape] = values, on_device
        _, n = self._values[images.shape]
        mean, unbiased = self._weights.statistics.double().chunk(2)
        biased = unbiased * (n - 1) / n
        self._sums.add_(torch.cat([n * mean, n * (biased + mean.square())]))

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The model in train mode, each running statistic the last batch's own, the sums at 0."""
        model, norms = self._weights.model, self._weights.norms

        def note(layer: int, shape: torch.Size) -> None:
            self._positions[layer] = shape[2:].numel()

        hooks = [
            norm.register_forward_pre_hook(
                lambda _, inputs, layer=layer: note(layer, inputs[0].shape)
            )
            for layer, norm in enumerate(norms)
        ]
        was_training = model.training
        self._sums.zero_()
        # With momentum 1 a running statistic is the batch's own: the old one is added 0 times,
        # which an old NaN or infinity would survive.
        self._weights.statistics.nan_to_num_()
        try:
            model.train()
            with _momentum(norms, 1.0):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            model.train(was_training)


def recompute_statistics_(
    weights: Weights,
    batches: Iterable[Tensor],
    comm: Comm = ALONE,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Compute the running statistics anew, once: see `BatchNormRecompute`."""
    BatchNormRecompute(weights, autocast)(batches, comm)


def _spread(per_layer: Tensor, channels: list[int]) -> Tensor:
    """Repeat a value of each layer for each of its channels: [layers] -> [C]."""
    return torch.repeat_interleave(per_layer, torch.tensor(channels))
