"""The whole update in one pass over theta: GPU kernels for SGD, Muon and the scale of the loss.

torch's operators go over the gradient five times before its fused SGD does: zeros, a cast from half
precision, a sum, the search for overflow, the division by the scale. Here it is read twice, where
autograd left it: once by the search, once by the update, which writes theta, the velocity and the
rounded weights that the layers read. Muon's matrix products stay cuBLAS's; what is around them is
three kernels for all matrices: norms, with the search; the velocity, and what is made orthogonal;
the weights. Imported only where there is a GPU, since Triton comes with torch on Linux alone.

Sums are in float64 and rounded to float32 where torch's CUDA kernel rounds them: memory is what an
update waits for. That kernel divides by the scale; here its reciprocal is a factor, which is the
same for a power of two.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from swap_fast.models.fused_norm import is_last
from swap_fast.training.muon import half_of, newton_schulz
from swap_fast.training.weights import Weights

BLOCK = 1024
"""Values that a program updates: 8 for each thread of 4 warps."""


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    tensors,
    FIRST: tl.constexpr,  # noqa: N803
    START: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Of the part that a program is in: tensor, places in it and in theta, which of them are there,
    number, first program, values."""
    block = tl.program_id(0)
    tensor = tensors[0]
    number = tl.full((), 0, tl.int32)
    first = tl.full((), FIRST[0], tl.int32)
    start = tl.full((), START[0], tl.int32)
    size = tl.full((), SIZE[0], tl.int32)
    for i in tl.static_range(1, COUNT):
        inside = block >= FIRST[i]
        tensor = tl.where(inside, tensors[i], tensor)
        first = tl.where(inside, FIRST[i], first)
        start = tl.where(inside, START[i], start)
        size = tl.where(inside, SIZE[i], size)
        number = tl.where(inside, i, number)
    at = (block - first) * BLOCK + tl.arange(0, BLOCK)
    return tensor, at, start + at, at < size, number, first, size


@triton.jit
def _is_finite(value):  # type: ignore[no-untyped-def]
    return tl.abs(value) < float("inf")  # a NaN is below nothing


@triton.jit
def _unscaled(gradient, at, valid, scale, SCALED: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Values of a gradient in float32, without the scale of the loss."""
    g = tl.load(gradient + at, mask=valid, other=0.0).to(tl.float32)
    if SCALED:
        g *= 1.0 / tl.load(scale)
    return g


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
    gradient, at, _, valid, _, _, _ = _part(gradients, FIRST, START, SIZE, COUNT, BLOCK)
    value = tl.load(gradient + at, mask=valid, other=0.0).to(tl.float32)
    bad = tl.max(tl.where(_is_finite(value), 0, 1), 0)
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
    gradient, at, place, valid, _, _, _ = _part(gradients, FIRST, START, SIZE, COUNT, BLOCK)
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


@triton.jit
def muon_norms_kernel(  # type: ignore[no-untyped-def]
    gradients,  # a tuple of matrices of one type
    theta,  # float32 [P], as `velocity`
    velocity,
    partial,  # float64 [2, programs], out: sums of squares of what is made orthogonal, of weights
    factors,  # float32 [2, COUNT], out: one over the first norm; `roots` over the second
    roots,  # float32 [COUNT]: of the numbers of rows
    counters,  # int32 [COUNT], zeros before and after
    scale,  # as in `update_kernel`
    found_inf,  # as in `overflow_kernel`
    FIRST: tl.constexpr,  # noqa: N803
    START: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
    MOMENTUM: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Norms of matrices, and a search for values that are not finite; grid: as for that."""
    block = tl.program_id(0)
    gradient, at, place, valid, number, first, size = _part(
        gradients, FIRST, START, SIZE, COUNT, BLOCK
    )
    g = _unscaled(gradient, at, valid, scale, SCALED)
    if SCALED:
        bad = tl.max(tl.where(_is_finite(g), 0, 1), 0)
        tl.store(found_inf, 1.0, mask=bad > 0)
    old = tl.load(velocity + place, mask=valid, other=0.0)
    made = (g + MOMENTUM * (MOMENTUM * old + g)).to(tl.float64)
    weight = tl.load(theta + place, mask=valid, other=0.0).to(tl.float64)
    programs = tl.num_programs(0)
    tl.store(partial + block, tl.sum(made * made, 0))
    tl.store(partial + programs + block, tl.sum(weight * weight, 0))
    own = tl.cdiv(size, BLOCK)
    if is_last(counters + number, own):
        one, other = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        begin = 0
        while begin < own:
            program = begin + tl.arange(0, BLOCK)
            here, inside = partial + first + program, program < own
            one += tl.load(here, mask=inside, other=0.0, cache_modifier=".cg")
            other += tl.load(here + programs, mask=inside, other=0.0, cache_modifier=".cg")
            begin += BLOCK
        direction = tl.maximum(tl.sqrt(tl.sum(one, 0)), 1e-12)
        norm = tl.maximum(tl.sqrt(tl.sum(other, 0)), 1e-12)
        tl.store(factors + number, (1.0 / direction).to(tl.float32))
        tl.store(factors + COUNT + number, (tl.load(roots + number) / norm).to(tl.float32))


@triton.jit
def muon_direction_kernel(  # type: ignore[no-untyped-def]
    gradients,  # as in `muon_norms_kernel`
    velocity,  # float32 [P], updated
    direction,  # in half precision or float32 [P - offset], out: of norm 1 each
    factors,  # as in `muon_norms_kernel`
    scale,
    found_inf,  # whether the update is left out
    offset,  # of `direction` in theta
    FIRST: tl.constexpr,  # noqa: N803
    START: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
    MOMENTUM: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """The velocity, and what is made orthogonal; the grid is that of `muon_norms_kernel`."""
    gradient, at, place, valid, number, _, _ = _part(gradients, FIRST, START, SIZE, COUNT, BLOCK)
    keep = 0.0
    if SCALED:
        keep = tl.load(found_inf)
    if keep == 0.0:
        g = _unscaled(gradient, at, valid, scale, SCALED)
        old = tl.load(velocity + place, mask=valid, other=0.0)
        new = MOMENTUM * old + g
        tl.store(velocity + place, new, mask=valid)
        made = (g + MOMENTUM * new) * tl.load(factors + number)
        tl.store(direction + place - offset, made.to(direction.dtype.element_ty), mask=valid)


@triton.jit
def muon_update_kernel(  # type: ignore[no-untyped-def]
    directions,  # a tuple of matrices of one type, orthogonal
    theta,  # float32 [P], updated
    rounded,  # [P] in half precision, out where ROUNDS
    factors,  # as in `muon_norms_kernel`
    learning_rate,  # float32 []
    found_inf,  # whether the update is left out; read with SCALED
    FIRST: tl.constexpr,  # noqa: N803
    START: tl.constexpr,  # noqa: N803
    SIZE: tl.constexpr,  # noqa: N803
    COUNT: tl.constexpr,  # noqa: N803
    NORMALIZE: tl.constexpr,  # noqa: N803
    SCALED: tl.constexpr,  # noqa: N803
    ROUNDS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """The weights; the grid is that of `muon_norms_kernel`."""
    direction, at, place, valid, number, _, _ = _part(directions, FIRST, START, SIZE, COUNT, BLOCK)
    keep = 0.0
    if SCALED:
        keep = tl.load(found_inf)
    if keep == 0.0:
        weight = tl.load(theta + place, mask=valid, other=0.0)
        if NORMALIZE:
            weight *= tl.load(factors + COUNT + number)
        made = tl.load(direction + at, mask=valid, other=0.0).to(tl.float32)
        weight -= tl.load(learning_rate) * made
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
    """Updates of theta by groups, each with the options of a torch.optim.SGD or of `Muon`.

    Nothing in a call waits for the device, and what it keeps on the host does not change, so that
    it may be captured. It takes the gradients that autograd left at the parameters, of one without
    zeros; where none has any, what was gathered in `weights.gradient`.

    Arguments:
        weights: with loose gradients: see `Weights.loosen_`.
        velocity: float32 [P].
        groups: of the optimizer, each with its place in theta.
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
        self._weights, self._velocity = weights, velocity
        self._scaler, self._skipped = scaler, skipped
        self._found_inf = torch.zeros((), device=velocity.device)
        self._groups = [pair for pair in groups if not pair[1].get("orthogonalize")]
        self._muon = [
            _Muon(weights, velocity, *pair) for pair in groups if pair[1].get("orthogonalize")
        ]

    def __call__(self) -> None:
        """One update; left out, where the loss is scaled and a gradient is not finite."""
        scaled, found_inf, scale = self._scaler.is_enabled(), self._found_inf, self._found_inf
        if scaled:
            assert self._scaler._scale is not None, "made by the first `scale`"
            scale = self._scaler._scale
        flags = scale, found_inf, scaled
        parts = [(g, part) for place, g in self._groups for part in _parts(self._weights, place)]
        for _, part in parts if scaled else ():
            overflow_kernel[part.grid](part.tensors, found_inf, **part.table, BLOCK=BLOCK)
        for muon in self._muon:
            muon.take_norms(*flags)
        theta, rounded = self._weights.theta.detach(), self._weights.rounded
        for group, part in parts:
            update_kernel[part.grid](
                *(part.tensors, theta, self._velocity, theta if rounded is None else rounded),
                *(group["lr"], scale, found_inf),
                **part.table,
                WEIGHT_DECAY=float(group["weight_decay"]),
                MOMENTUM=float(group["momentum"]),
                NESTEROV=bool(group.get("nesterov", True)),  # as `Muon`'s other groups
                SCALED=scaled,
                ROUNDS=rounded is not None,
                BLOCK=BLOCK,
            )
        for muon in self._muon:
            muon.update(*flags)
        if scaled:
            scale_kernel[(1,)](
                *(scale, self._scaler._growth_tracker, found_inf, self._skipped),
                self._scaler.get_growth_factor(),
                self._scaler.get_backoff_factor(),
                self._scaler.get_growth_interval(),
            )
        self._weights.drop_gradients_()


class _Muon:
    """Muon's update of a group of matrices, or of filters as such: see `Muon`.

    Columns stand in the order of memory: what is orthogonal is so in any order of theirs.
    """

    def __init__(
        self, weights: Weights, velocity: Tensor, place: slice, group: dict[str, Any]
    ) -> None:
        self._weights, self._velocity, self._place, self._group = weights, velocity, place, group
        parts = [part for _, part in weights.loose if _is_in(part, place)]
        self._shapes = [(len(part), part.numel() // len(part)) for part in parts]
        device = velocity.device
        self._counters = torch.zeros(len(parts), dtype=torch.int32, device=device)
        self._factors = torch.empty((2, len(parts)), device=device)
        self._roots = torch.tensor([rows**0.5 for rows, _ in self._shapes], device=device)

    def take_norms(self, scale: Tensor, found_inf: Tensor, scaled: bool) -> None:
        """Of all matrices; and look for values that are not finite."""
        gradients = self._gradients
        partial = self._velocity.new_empty((2, *gradients.grid), dtype=torch.float64)
        muon_norms_kernel[gradients.grid](
            *(gradients.tensors, self._weights.theta.detach(), self._velocity, partial),
            *(self._factors, self._roots, self._counters, scale, found_inf),
            **gradients.table,
            MOMENTUM=float(self._group["momentum"]),
            SCALED=scaled,
            BLOCK=BLOCK,
        )

    def update(self, scale: Tensor, found_inf: Tensor, scaled: bool) -> None:
        """Update velocity and weights."""
        gradients, group, rounded = self._gradients, self._group, self._weights.rounded
        theta = self._weights.theta.detach()
        dtype = torch.float32 if group["fp32"] else half_of(theta.device)
        made = torch.empty(self._place.stop - self._place.start, dtype=dtype, device=theta.device)
        muon_direction_kernel[gradients.grid](
            *(gradients.tensors, self._velocity, made, self._factors, scale, found_inf),
            self._place.start,
            **gradients.table,
            MOMENTUM=float(group["momentum"]),
            SCALED=scaled,
            BLOCK=BLOCK,
        )
        orthogonal: list[Tensor] = []
        at = 0
        for (n, m), alike in groupby(self._shapes):  # those that lie side by side, together
            k = len(list(alike))
            together = made[at : at + k * n * m].view(k, n, m)
            orthogonal += newton_schulz(together, group["ns_steps"]).contiguous()
            at += k * n * m
        directions = _Parts(orthogonal, gradients.table["START"])
        muon_update_kernel[directions.grid](
            *(directions.tensors, theta, theta if rounded is None else rounded),
            *(self._factors, group["lr"], found_inf),
            **directions.table,
            NORMALIZE=bool(group["normalize_weights"]),
            SCALED=scaled,
            ROUNDS=rounded is not None,
            BLOCK=BLOCK,
        )

    @property
    def _gradients(self) -> "_Parts":
        """One of each matrix."""
        (found,) = _parts(self._weights, self._place, apart=True)
        return found


def _is_in(part: Tensor, place: slice) -> bool:
    return place.start <= part.storage_offset() < place.stop


def _parts(weights: Weights, place: slice, *, apart: bool = False) -> Iterator["_Parts"]:
    """The gradients of a place in theta, those of one type together.

    Arguments:
        apart: those of parameters apart, where they were gathered too.
    """
    found = [(p, part) for p, part in weights.loose if _is_in(part, place)]
    if all(parameter.grad is None for parameter, _ in weights.loose):
        if not apart:
            yield _Parts([weights.gradient[place]], [place.start])
            return
        parts = [part for _, part in found]
        yield _Parts(parts, [int(part.storage_offset()) for part in parts])
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
    """Tensors of one type, and where they begin in theta, as the kernels take them."""

    def __init__(self, tensors: Sequence[Tensor], starts: Sequence[int]) -> None:
        sizes = [tensor.numel() for tensor in tensors]
        programs = [triton.cdiv(size, BLOCK) for size in sizes]
        first = [end - own for end, own in zip(accumulate(programs), programs, strict=True)]
        self.tensors, self.grid = tuple(tensors), (sum(programs),)
        self.table: dict[str, Any] = {
            "FIRST": tuple(first),
            "START": tuple(starts),
            "SIZE": tuple(sizes),
            "COUNT": len(sizes),
        }
