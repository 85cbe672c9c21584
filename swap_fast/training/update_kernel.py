"""The whole update in one pass over theta: GPU kernels for SGD with momentum and its loss scale.

torch's operators go over the gradient five times before its fused SGD does: zeros, a cast from half
precision, a sum, the search for overflow, the division by the scale. Here it is read twice, where
autograd left it: once by the search, once by the update, which writes theta, the velocity and the
rounded weights that the layers read. Imported only where there is a GPU, since Triton comes with
torch on Linux alone.

Sums are in float64 and rounded to float32 where torch's CUDA kernel rounds them: memory is what an
update waits for. That kernel divides by the scale; here its reciprocal is a factor, which is the
same for a power of two.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from swap_fast.training.weights import Weights

BLOCK = 1024
"""Values that a program updates: 8 for each thread of 4 warps."""


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    gradients,
    block,
    FIRST: tl.constexpr,  # noqa: N803
    START: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
):
    """Of the part that a program is in: gradient, first program, place in theta, and values."""
    gradient = gradients[0]
    first = tl.full((), FIRST[0], tl.int32)
    start = tl.full((), START[0], tl.int32)
    size = tl.full((), SIZE[0], tl.int32)
    for i in tl.static_range(1, COUNT):
        inside = block >= FIRST[i]
        gradient = tl.where(inside, gradients[i], gradient)
        first = tl.where(inside, FIRST[i], first)
        start = tl.where(inside, START[i], start)
        size = tl.where(inside, SIZE[i], size)
    return gradient, first, start, size


@triton.jit
def overflow_kernel(  # type: ignore[no-untyped-def]
    gradients,  # a tuple of vectors of one type
    found_inf,  # float32 [1], set to 1 where a value is not finite
    FIRST: tl.constexpr,  # noqa: N803  # of each part: its first program,
    START: tl.constexpr,  # noqa: N803  # its place in theta,
    SIZE: tl.constexpr,  # noqa: N803  # and its number of values
    COUNT: tl.constexpr,  # noqa: N803  # of parts
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Look for values that are not finite; the grid is (programs of all parts)."""
    block = tl.program_id(0)
    gradient, first, _, size = _part(gradients, block, FIRST, START, SIZE, COUNT)
    at = (block - first) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32)
    bad = tl.max(tl.where(tl.abs(value) < float("inf"), 0, 1), 0)  # a NaN is below nothing
    tl.store(found_inf, 1.0, mask=bad > 0)


@triton.jit
def update_kernel(  # type: ignore[no-untyped-def]
    gradients,  # a tuple of vectors of one type
    theta,  # float32 [P], as `velocity`; both updated
    velocity,
    rounded,  # [P] in half precision, out where ROUNDS
    learning_rate,  # float32 [], as `scale` and `found_inf`
    scale,  # of the loss; read with SCALED, as the next one
    found_inf,  # whether the update is left out
    FIRST: tl.constexpr,  # noqa: N803
    START: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
    WEIGHT_DECAY: tl.constexpr,  # noqa: N803
    MOMENTUM: tl.constexpr,  # noqa: N803
    NESTEROV: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    ROUNDS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Update BLOCK values; the grid is that of `overflow_kernel`."""
    block = tl.program_id(0)
    gradient, first, start, size = _part(gradients, block, FIRST, START, SIZE, COUNT)
    at = (block - first) * BLOCK + tl.arange(0, BLOCK)
    valid = at < size
    place = start + at
    keep = 0.0
    if SCALED:
        keep = tl.load(found_inf)
    if keep == 0.0:
        g = tl.load(gradient + at, mask=valid, other=0.0).to(tl.float32)
        if SCALED:
            factor = 1.0 / tl.load(scale).to(tl.float64)
            g = (g.to(tl.float64) * factor).to(tl.float32)
        weight = tl.load(theta + place, mask=valid, other=0.0)
        if WEIGHT_DECAY != 0.0:
            g = (g.to(tl.float64) + weight.to(tl.float64) * WEIGHT_DECAY).to(tl.float32)
        old = tl.load(velocity + place, mask=valid, other=0.0).to(tl.float64)
        new = old * MOMENTUM + g.to(tl.float64)
        tl.store(velocity + place, new.to(tl.float32), mask=valid)
        step = new.to(tl.float32)
        if NESTEROV:
            step = (g.to(tl.float64) + new * MOMENTUM).to(tl.float32)
        rate = tl.load(learning_rate).to(tl.float64)
        weight = (weight.to(tl.float64) - step.to(tl.float64) * rate).to(tl.float32)
        tl.store(theta + place, weight, mask=valid)
        if ROUNDS:
            tl.store(rounded + place, weight.to(rounded.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["growth", "backoff", "interval"])
def scale_kernel(  # type: ignore[no-untyped-def]
    scale,  # float32 [], updated
    tracker,  # int32 []: updates since it changed, updated
    found_inf,  # float32 [], set to 0
    skipped,  # float64 []: updates left out, one more where this one was
    growth,  # float: factor of the scale after `interval` updates
    backoff,  # float: after one that was left out
    interval,  # int
):
    """Go on with the loss's scale as torch's GradScaler does; one program."""
    overflow = tl.load(found_inf) > 0.0
    old = tl.load(scale)
    done = tl.load(tracker) + 1
    grows = done >= interval
    grown = old * growth
    grown = tl.where(grows & (grown < float("inf")), grown, old)
    tl.store(scale, tl.where(overflow, old * backoff, grown))
    tl.store(tracker, tl.where(overflow | grows, 0, done))
    tl.store(skipped, tl.load(skipped) + tl.where(overflow, 1.0, 0.0).to(tl.float64))
    tl.store(found_inf, 0.0)


class KernelUpdate:
    """Updates of theta by groups, each with the options of a torch.optim.SGD.

    Nothing in a call waits for the device, and what it keeps on the host does not change, so that
    it may be captured. It takes the gradients that autograd left at the parameters, of one without
    zeros; where none has any, what was gathered in `weights.gradient`.

    Arguments:
        weights: with loose gradients: see `Weights.loosen_`.
        velocity: float32 [P].
        groups: of the SGD, each with its place in theta.
        scaler: of the loss; where it is enabled, its tensors are made already.
        skipped: float64 [], counts updates left out.
    """

    def __init__(
        self,
        weights: Weights,
        velocity: Tensor,
        groups: Sequence[tuple[slice, dict[str, Any]]],
        scaler: torch.amp.GradScaler,
        skipped: Tensor,
    ) -> None:
        self._weights, self._velocity, self._groups = weights, velocity, groups
        self._scaler, self._skipped = scaler, skipped
        self._found_inf = torch.zeros((), device=velocity.device)

    def __call__(self) -> None:
        """One update; left out, where the loss is scaled and a gradient is not finite."""
        parts = [(group, part) for place, group in self._groups for part in self._parts(place)]
        scaled, found_inf, scale = self._scaler.is_enabled(), self._found_inf, self._found_inf
        if scaled:
            assert self._scaler._scale is not None, "made by the first `scale`"
            scale = self._scaler._scale
            for _, part in parts:
                overflow_kernel[part.grid](part.gradients, found_inf, **part.table, BLOCK=BLOCK)
        theta, rounded = self._weights.theta.detach(), self._weights.rounded
        for group, part in parts:
            update_kernel[part.grid](
                *(part.gradients, theta, self._velocity, theta if rounded is None else rounded),
                *(group["lr"], scale, found_inf),
                **part.table,
                WEIGHT_DECAY=float(group["weight_decay"]),
                MOMENTUM=float(group["momentum"]),
                NESTEROV=bool(group["nesterov"]),
                SCALED=scaled,
                ROUNDS=rounded is not None,
                BLOCK=BLOCK,
            )
        if scaled:
            scale_kernel[(1,)](
                *(scale, self._scaler._growth_tracker, found_inf, self._skipped),
                self._scaler.get_growth_factor(),
                self._scaler.get_backoff_factor(),
                self._scaler.get_growth_interval(),
            )
        self._weights.drop_gradients_()

    def _parts(self, place: slice) -> Iterator["_Parts"]:
        """The gradients of a place in theta, those of one type together."""
        found = [
            (p, part)
            for p, part in self._weights.loose
            if place.start <= part.storage_offset() < place.stop
        ]
        if all(parameter.grad is None for parameter, _ in self._weights.loose):
            yield _Parts([self._weights.gradient[place]], [place.start])
            return
        alike: dict[torch.dtype, list[tuple[Tensor, int]]] = defaultdict(list)
        for parameter, part in found:
            gradient = parameter.grad
            if gradient is None:
                gradient = part.zero_()
            sides = zip(part.shape, part.stride(), gradient.stride(), strict=True)
            assert all(n == 1 or a == b for n, a, b in sides), "autograd keeps the order in memory"
            alike[gradient.dtype].append((gradient, int(part.storage_offset())))
        for pairs in alike.values():
            yield _Parts([gradient for gradient, _ in pairs], [start for _, start in pairs])


class _Parts:
    """Gradients of one type, and where they begin in theta, as the kernels take them."""

    def __init__(self, gradients: list[Tensor], starts: list[int]) -> None:
        sizes = [gradient.numel() for gradient in gradients]
        programs = [triton.cdiv(size, BLOCK) for size in sizes]
        first = [end - own for end, own in zip(accumulate(programs), programs, strict=True)]
        self.gradients, self.grid = tuple(gradients), (sum(programs),)
        self.table: dict[str, Any] = {
            "FIRST": tuple(first),
            "START": tuple(starts),
            "SIZE": tuple(sizes),
            "COUNT": len(sizes),
        }
