"""Batch-norm running statistics: a set a replica, merged exactly; recomputed in phase 3."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swap_fast.config.checks import typed_arguments
from swap_fast.distributed import ALONE, Comm
from swap_fast.models.layers import FusableNorm
from swap_fast.training.capture import Captures
from swap_fast.training.weights import Weights


class _LoneValueError(ValueError):
    """A layer was given one value a channel, of which there are no moments."""


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


class BatchNormRecompute:
    """Compute the running statistics again from the data (Algorithm 1, line 29).

    Each batch passes through the model in train mode; the statistics become the exact moments of
    every layer's input over all batches of all ranks, whatever their sizes: with n_b values a
    channel in batch b, mean = sum n_b mean_b / n and var = sum n_b (var_b + mean_b^2) / n - mean^2,
    made unbiased by n / (n - 1) as torch's running variances are. Sums are kept in float64. A layer
    that no batch reaches, or that stays in eval mode as a frozen one may, keeps its own.

    Where a batch reaches every layer once, its moments are read from the running statistics, which
    with momentum 1 are the batch's own: one small operation for all layers. In any other net they
    are taken from each layer's input, at the cost of one more pass over it.

    Arguments:
        weights: the model.
        autocast: makes the context of each forward pass.
        forward: runs the model on a batch of any kind; None: the model is called with the batch.
            With it the moments are always those of the layers' inputs.
        leave_out_lone: leave out a batch of which a layer gets one value a channel, as of a last
            batch of one example; else it is an error.
    """

    def __init__(
        self,
        weights: Weights,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        forward: Callable[[Any], object] | None = None,
        leave_out_lone: bool = False,
    ) -> None:
        self._weights, self._autocast = weights, autocast
        self._leave_out_lone = leave_out_lone
        self._forward = forward or weights.model
        statistics = weights.statistics
        self._channels = [norm.num_features for norm in weights.norms]
        # Of each channel [C]: how many values, their sum, and the sum of their squares.
        self._sums = torch.zeros(
            3, sum(self._channels), dtype=torch.float64, device=statistics.device
        )
        self._sums_of_layers = self._sums.split(self._channels, dim=1)
        # Statistics in half precision would round the moments.
        self._reads_inputs = forward is not None or any(
            norm.get_buffer("running_mean").dtype != statistics.dtype for norm in weights.norms
        )
        # Of the last batch: each call of a layer, with its values a channel.
        self._calls: list[tuple[int, int]] = []
        # For such calls: values of each channel [C], on the device.
        self._values: dict[tuple[tuple[int, int], ...], Tensor] = {}
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
        before = self._weights.copy()[1]
        self._buffer = buffer.normal_()
        with self.passing():
            self._add_no_sync(buffer)  # the values a channel are counted on the host
            if captures is not None:
                self.replay = captures.capture(self.add_buffer_no_sync)
        self([buffer, *(buffer[:size] for size in short)], comm)
        self._weights.set_statistics_(before)

    @torch.no_grad()
    def __call__(self, batches: Iterable[Any], comm: Comm = ALONE) -> None:
        """Put the statistics of the data into the model.

        Whatever goes wrong, the model has its former statistics, momenta and mode again.

        Arguments:
            batches: this rank's share of the data; without `forward`, images [B, ...].

        Raises:
            ValueError: no data on any rank, or a layer that got one value a channel.
        """
        weights = self._weights
        if not self._channels:
            return
        before, loose, num_batches = weights.copy()[1], weights.unaveraged_buffers(), 0
        try:
            with self.passing():
                for batch in batches:
                    if self.replay is not None and self._fills_buffer(batch):
                        self.replay()
                    elif not self._add_no_sync(batch):
                        continue
                    num_batches += 1
            sums = torch.cat([self._sums.flatten(), self._sums.new_tensor([num_batches])])
            count, total, squares = comm.all_reduce_(sums)[:-1].view_as(self._sums)
            reached = count > 0
            fewest = count[reached].min().item() if reached.any() else 2
            if sums[-1] == 0 or fewest < 2:
                raise ValueError(
                    "batch-norm statistics: expected data with two values a channel or more, got "
                    f"{int(fewest) if sums[-1] else 0}; give the pass more data"
                )
        except BaseException:
            weights.set_statistics_(before)
            raise
        finally:
            weights.set_unaveraged_buffers_(loose)
        n = count.clamp(min=2)
        mean = total / n
        variance = (squares / n - mean.square()) * n / (n - 1)
        statistics, both = before.clone(), reached.repeat(2)
        statistics[: len(both)][both] = torch.cat([mean, variance])[both].to(statistics.dtype)
        weights.set_statistics_(statistics)

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

    def _add_no_sync(self, batch: Any) -> bool:
        """Add a batch's moments to the sums; nothing waits for the device once a shape is known.

        Returns:
            Whether it was added, and not left out.
        """
        self._calls.clear()
        before = self._sums.clone() if self._leave_out_lone else self._sums
        try:
            with self._autocast():
                self._forward(batch)
        except _LoneValueError:
            self._sums.copy_(before)  # layers before this one may have been added
            return False
        if self._reads_inputs:
            return True
        calls = tuple(sorted(self._calls))
        if [layer for layer, _ in calls] != list(range(len(self._channels))):
            self._reads_inputs = True
            return self._add_no_sync(batch)
        if calls not in self._values:
            values = torch.tensor([n for _, n in calls], dtype=torch.float64)
            values = torch.repeat_interleave(values, torch.tensor(self._channels))
            self._values[calls] = values.to(self._sums.device)
        n = self._values[calls]
        mean, unbiased = self._weights.statistics[: 2 * len(n)].double().chunk(2)
        biased = unbiased * (n - 1) / n
        self._sums.add_(torch.stack([n, n * mean, n * (biased + mean.square())]))
        return True

    def _on_call(self, layer: int, given: Tensor) -> None:
        """Before a layer's forward pass: note it, or add the moments of its input [B, C, ...]."""
        norm = self._weights.norms[layer]
        if not norm.training:
            return
        if self._leave_out_lone and given.numel() == given.shape[1]:
            raise _LoneValueError
        if not self._reads_inputs:
            # What a layer with a forward pass of its own leaves in its statistics is not known,
            # but if these are of other channels than the input's, as of ghost batch norm's groups.
            is_torch_s = type(norm).forward is _BatchNorm.forward or isinstance(norm, FusableNorm)
            if is_torch_s or given.shape[1] != norm.num_features:
                self._calls.append((layer, given.numel() // norm.num_features))
            return
        values = given.detach() if given.dtype == torch.float64 else given.detach().float()
        dims = [d for d in range(given.dim()) if d != 1]
        variance, mean = (t.double() for t in torch.var_mean(values, dims, correction=0))
        n = given.numel() / given.shape[1]
        self._sums_of_layers[layer].add_(
            torch.stack([torch.full_like(mean, n), n * mean, n * (variance + mean.square())])
        )

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The model in train mode, each running statistic the last batch's own, the sums at 0."""
        model, norms = self._weights.model, self._weights.norms
        was_training, momenta = model.training, [norm.momentum for norm in norms]
        hooks = [
            norm.register_forward_pre_hook(lambda _, given, at=at: self._on_call(at, given[0]))
            for at, norm in enumerate(norms)
        ]
        self._sums.zero_()
        if not self._reads_inputs:
            # With momentum 1 the old statistic is added 0 times, which NaN or infinity survives.
            self._weights.statistics.nan_to_num_()
        # A compiled net runs uncompiled: else it would pass over the hooks.
        eager = torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()
        try:
            model.train()
            for norm in norms:
                norm.momentum = 1.0
            with eager:
                yield
        finally:
            for hook, norm, momentum in zip(hooks, norms, momenta, strict=True):
                hook.remove()
                norm.momentum = momentum
            model.train(was_training)


@typed_arguments()
def recompute_statistics_(
    weights: Weights,
    batches: Iterable[Tensor],
    comm: Comm = ALONE,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Compute the running statistics again, once: see `BatchNormRecompute`."""
    BatchNormRecompute(weights, autocast)(batches, comm)


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has been asked to make any part of the model."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )
