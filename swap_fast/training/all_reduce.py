"""The gradient's sum over the ranks: one all-reduce, or several beside the backward pass."""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from swap_fast.config.buckets import cut_sizes
from swap_fast.distributed import Comm
from swap_fast.training.weights import Weights


@dataclass(frozen=True, eq=False)
class Bucket:
    """Parameters whose gradients are summed by one call, or by two."""

    parameters: frozenset[nn.Parameter]
    places: tuple[slice, ...]
    """Of their gradients in `Weights.gradient`."""


def cut(weights: Weights, num_buckets: int) -> list[Bucket]:
    """Buckets of the gradient, in the order in which a backward pass completes them.

    They are cut off the end of the largest group of parameters, since a backward pass goes from the
    last layer to the first: of the 6.6 million parameters of ResNet-9 at width 64 the first of
    three buckets has 72%, the last 10%. Small groups have parameters of the first layers, and
    belong to the last bucket.

    Arguments:
        num_buckets: see `cut_sizes`.
    """
    starts = {p: int(part.storage_offset()) for p, part in weights.gradient_parts.items()}
    largest = max(weights.places.values(), key=lambda place: int(place.stop - place.start))
    inside = sorted(at for at in starts.values() if largest.start <= at < largest.stop)
    edges = [*inside, int(largest.stop)]
    *first, last = cut_sizes([end - start for start, end in pairwise(edges)], num_buckets)
    places: list[tuple[slice, ...]] = [(slice(edges[b.start], edges[b.stop]),) for b in first]
    whole = weights.gradient.numel()
    rest = [slice(0, edges[last.stop]), slice(largest.stop, whole)] if first else [slice(0, whole)]
    places.append(tuple(place for place in rest if place.start < place.stop))
    return [
        Bucket(
            frozenset(p for p, at in starts.items() if any(s.start <= at < s.stop for s in some)),
            some,
        )
        for some in places
    ]


class GradientSum:
    """Sums `weights.gradient` over the ranks, in place.

    With several buckets, each is summed as soon as the backward pass has completed it; on a CUDA
    device on a stream of its own, beside the rest of that pass, also in a captured step. Every rank
    sums them in the same order, whatever the order of its own gradients. The values are those of
    one all-reduce, to the bit where the order of a sum cannot matter: with two ranks. On a CPU the
    backward pass waits for each sum, so that nothing is gained there.

    Arguments:
        weights: the model.
        comm: the ranks; of one alone there is nothing to sum.
        dtype: in which they are summed, such as float16 for half of the bytes; None: as they are.
            Too large a sum becomes infinite on every rank alike, and the scaler leaves the update
            out.
        num_buckets: see `cut`; 1: all at once, after the backward pass.
    """

    def __init__(
        self,
        weights: Weights,
        comm: Comm,
        *,
        dtype: torch.dtype | None = None,
        num_buckets: int = 1,
    ) -> None:
        self._weights, self._comm = weights, comm
        is_alone = comm.world_size == 1
        self._buckets = cut(weights, 1 if is_alone else num_buckets)
        gradient = weights.gradient
        narrow = None if is_alone or dtype is None else torch.empty_like(gradient, dtype=dtype)
        self._narrow = narrow  # [P]
        # Of high priority, which no other stream of torch's pool of them is: a sum need not wait
        # behind the kernels of the backward pass.
        overlaps = self.in_buckets and gradient.is_cuda
        self._stream = torch.cuda.Stream(priority=-1) if overlaps else None

    @property
    def in_buckets(self) -> bool:
        """Whether `backward_` takes the place of a backward pass, and has the sums made there."""
        return len(self._buckets) > 1

    def backward_(self, loss: Tensor, by: Tensor | None = None, *, replaces: bool) -> None:
        """Add the loss's gradient to `weights.gradient`, and begin to sum it over the ranks.

        Arguments:
            loss: of the rank's last replica; or its logits, and `by`, the loss's gradient by them.
            replaces: see `Weights.gather_gradient_`.
        """
        missing = [set(bucket.parameters) for bucket in self._buckets]
        begun = 0

        def complete(parameter: Tensor) -> None:
            nonlocal begun
            for parameters in missing[:-1]:
                parameters.discard(parameter)
            while begun < len(missing) - 1 and not missing[begun]:
                self._begin_(self._buckets[begun], replaces=replaces)
                begun += 1

        with ExitStack() as hooks:
            for parameter in (p for bucket in self._buckets[:-1] for p in bucket.parameters):
                hook = parameter.register_post_accumulate_grad_hook(complete)
                hooks.callback(hook.remove)
            loss.backward(by)
        for bucket in self._buckets[begun:]:  # the last, and those with a parameter without use
            self._begin_(bucket, replaces=replaces)

    def _begin_(self, bucket: Bucket, *, replaces: bool) -> None:
        """Sum a bucket's gradients, which are complete on the current stream."""
        self._weights.gather_gradient_(replaces=replaces, among=bucket.parameters)
        self._fork()
        with torch.cuda.stream(self._stream):
            self._sum_(bucket)

    def _fork(self) -> None:
        """Let the sums' stream wait for the gradients."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def _sum_(self, bucket: Bucket) -> None:
        for place in bucket.places:
            part = self._weights.gradient[place]
            if self._narrow is None:
                self._comm.all_reduce_(part)
            else:
                part.copy_(self._comm.all_reduce_(self._narrow[place].copy_(part)))

    def finish_(self) -> None:
        """Have the sum of all ranks in `weights.gradient`, for the current stream."""
        if not self.in_buckets:
            self._sum_(self._buckets[0])
        elif self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
