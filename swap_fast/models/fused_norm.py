"""Batch norm, 2x2 max pool, ReLU and a sum as two GPU kernels forward and two backward.

torch has a kernel for each of them, and each reads and writes the whole map. Here a map is read
twice forward (moments; values) and twice backward (sums; gradient), what lies between batch norm
and the result is never written, and only the input is kept for the backward pass. Imported only
where there is a GPU, since Triton comes with torch on Linux alone.

Sums are in float32, over parts of a map; the last program to finish merges its channels' parts, in
their order, so that the same map gives the same bits. Moments are merged as Chan et al. (1979) do,
so that a mean far from 0 costs no digits. A value is rounded to the maps' type before maxima are
compared, as torch's kernels round it: the same pixel wins.
"""

from functools import cache
from math import log2
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 1024
"""Rows of the map, as a matrix [B * H * W, C], that a program of a reduction takes, at most."""
PROGRAMS = 4
"""Of a reduction, for each multiprocessor; a small map of many channels has shorter parts."""
MOMENT_ROWS, BLOCK_ROWS, GRADIENT_ROWS = 64, 16, 8
"""Of these at once, by 64 channels for 4 warps: for the moments, which need few registers; for
others; and for a pool's gradient, which needs most."""
BLOCK_CHANNELS = 64
MERGED = tl.constexpr(32)
"""Parts of a map that are merged at once."""

# A captured step's shapes are few; but a number of rows that is a multiple of 16 would be compiled
# apart from one that is not, perhaps within a run. The number of channels is compiled apart: only
# where a row is known to begin at a multiple of 16 bytes are 8 values of fp16 one access. So are
# the sides of a map that is pooled: a row's place in it is found by divisions. Rows are counted in
# int32, and values in int64.
_VARYING = ["num_rows"]


@triton.jit
def _affine(mean, inverse, weight, bias, channel, inside):  # type: ignore[no-untyped-def]
    """Of channels [1, C]: mean, one over the deviation, and the scale and shift of a value."""
    centre = tl.load(mean + channel, mask=inside, other=0.0)
    inverses = tl.load(inverse + channel, mask=inside, other=0.0)
    scale = tl.load(weight + channel, mask=inside, other=0.0) * inverses
    return centre, inverses, scale, tl.load(bias + channel, mask=inside, other=0.0) - centre * scale


@triton.jit
def _window(row, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The first row of `x` in the 2x2 window of a row of the output."""
    image, rest = row // (HEIGHT // 2 * (WIDTH // 2)), row % (HEIGHT // 2 * (WIDTH // 2))
    return (image * HEIGHT + 2 * (rest // (WIDTH // 2))) * WIDTH + 2 * (rest % (WIDTH // 2))


@triton.jit
def _at(row, channel, num_channels):  # type: ignore[no-untyped-def]
    """The place of a value in its map."""
    return row.to(tl.int64) * num_channels + channel


@triton.jit
def _picked(  # type: ignore[no-untyped-def]
    x,
    row,
    channel,
    valid,
    shift,
    scale,
    num_channels,
    POOL: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
):
    """Of each output row's window: the largest normalised value, that x, and its place (0 to 3).

    Arguments:
        row: of the output, [R, 1].
        shift: and `scale`, [1, C]: a normalised value is x * scale + shift.
    """
    if POOL:
        first = _at(_window(row, HEIGHT, WIDTH), channel, num_channels)
        best_x = tl.load(x + first, mask=valid, other=0.0).to(tl.float32)
        best = (best_x * scale + shift).to(x.dtype.element_ty).to(tl.float32)
        place = tl.zeros_like(best).to(tl.int32)
        for i in tl.static_range(1, 4):
            at = first + (i // 2 * WIDTH + i % 2) * num_channels
            next_x = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
            value = (next_x * scale + shift).to(x.dtype.element_ty).to(tl.float32)
            larger = value > best
            best, best_x = tl.where(larger, value, best), tl.where(larger, next_x, best_x)
            place = tl.where(larger, i, place)
    else:
        at = _at(row, channel, num_channels)
        best_x = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        best = (best_x * scale + shift).to(x.dtype.element_ty).to(tl.float32)
        place = tl.zeros_like(best).to(tl.int32)
    return best, best_x, place


@triton.jit
def is_last(counter, programs):  # type: ignore[no-untyped-def]
    """Whether a program is the last of those that share a counter, which is then 0 again.

    What the others stored before they asked can then be read.
    """
    tl.debug_barrier()  # every thread of this program has stored
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def _parts(vectors, start, parts, channel, num_channels):  # type: ignore[no-untyped-def]
    """Of float32 [parts, num_channels], some parts, 0 behind the last: from L2, where all SMs'
    stores meet."""
    part = start + tl.arange(0, MERGED)[:, None]
    valid = (part < parts) & (channel < num_channels)[None, :]
    at = part * num_channels + channel[None, :]
    return tl.load(vectors + at, mask=valid, other=0.0, cache_modifier=".cg")


@triton.jit(do_not_specialize=[*_VARYING, "momentum", "epsilon"])
def moments_kernel(  # type: ignore[no-untyped-def]
    x,  # [num_rows, num_channels]
    means,  # float32 [parts, num_channels], out
    squares,  # float32 [parts, num_channels], out: sums of squared distances from these means
    mean_out,  # float32 [num_channels]; `inverse_out`, one over the standard deviation, too
    inverse_out,
    running_mean,  # float32 [num_channels], updated; `running_var`, unbiased, too
    running_var,
    counter,  # int32 [channels / BLOCK_CHANNELS], zeros before and after
    num_rows,
    num_channels,
    momentum,
    epsilon,
    ROWS: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """The moments of parts of ROWS rows, and of all; the grid is (parts, channels / ...)."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < num_channels
    count = 0.0
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    square = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, ROWS, BLOCK_ROWS):
        row = part * ROWS + start + tl.arange(0, BLOCK_ROWS)
        valid = (row < num_rows)[:, None] & inside[None, :]
        at = _at(row[:, None], channel[None, :], num_channels)
        value = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
        here = tl.minimum(tl.maximum(num_rows - part * ROWS - start, 0), BLOCK_ROWS).to(tl.float32)
        own_mean = tl.sum(value, 0) / tl.maximum(here, 1.0)
        away = tl.where(valid, value - own_mean[None, :], 0.0)
        own_square = tl.sum(away * away, 0)
        total = tl.maximum(count + here, 1.0)
        apart = own_mean - mean
        square += own_square + apart * apart * (count * here / total)
        mean += apart * (here / total)
        count += here
    at = part * num_channels + channel
    tl.store(means + at, mean, mask=inside)
    tl.store(squares + at, square, mask=inside)
    if is_last(counter + tl.program_id(1), parts):
        # Distances of the parts' means from the first of them: it is as near to the mean as most.
        pivot = tl.load(means + channel, mask=inside, other=0.0, cache_modifier=".cg")
        square = tl.zeros([BLOCK_CHANNELS], tl.float32)
        first = tl.zeros([BLOCK_CHANNELS], tl.float32)  # sums of distances, and of their squares
        second = tl.zeros([BLOCK_CHANNELS], tl.float32)
        start = 0
        while start < parts:
            rows = num_rows - (start + tl.arange(0, MERGED)) * ROWS
            rows = tl.minimum(tl.maximum(rows, 0), ROWS).to(tl.float32)[:, None]
            away = _parts(means, start, parts, channel, num_channels) - pivot[None, :]
            first += tl.sum(rows * away, 0)
            second += tl.sum(rows * away * away, 0)
            square += tl.sum(_parts(squares, start, parts, channel, num_channels), 0)
            start += MERGED
        count = num_rows.to(tl.float32)
        mean = pivot + first / count
        square += tl.maximum(second - first * (first / count), 0.0)
        tl.store(mean_out + channel, mean, mask=inside)
        tl.store(inverse_out + channel, 1.0 / tl.sqrt(square / count + epsilon), mask=inside)
        old = tl.load(running_mean + channel, mask=inside, other=0.0)
        tl.store(running_mean + channel, old + momentum * (mean - old), mask=inside)
        old = tl.load(running_var + channel, mask=inside, other=0.0)
        unbiased = square / tl.maximum(count - 1.0, 1.0)
        tl.store(running_var + channel, old + momentum * (unbiased - old), mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def values_kernel(  # type: ignore[no-untyped-def]
    x,  # [B, height, width, num_channels]
    skip,  # as `out`; read where HAS_SKIP
    out,  # [B, height / 2, width / 2, num_channels] with POOL, else as `x`
    mean,  # float32 [num_channels]; `inverse`, `weight` and `bias` too
    inverse,
    weight,
    bias,
    num_rows,  # of `out`
    num_channels,
    POOL: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr,  # noqa: N803  # of `x`, where it is pooled
    WIDTH: tl.constexpr,  # noqa: N803
    HAS_SKIP: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """out = relu(pool(norm(x))) + skip; the grid is (rows / BLOCK_ROWS, channels / ...)."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    inside = channel < num_channels
    valid = (row < num_rows) & inside
    _, _, scale, shift = _affine(mean, inverse, weight, bias, channel, inside)
    value, _, _ = _picked(x, row, channel, valid, shift, scale, num_channels, POOL, HEIGHT, WIDTH)
    value = tl.maximum(value, 0.0)
    at = _at(row, channel, num_channels)
    if HAS_SKIP:
        value += tl.load(skip + at, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _given(gradient, second, at, valid, HAS_SECOND: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The gradient by the result, of both its uses where it has two."""
    given = tl.load(gradient + at, mask=valid, other=0.0).to(tl.float32)
    if HAS_SECOND:
        given += tl.load(second + at, mask=valid, other=0.0).to(tl.float32)
    return given


@triton.jit(do_not_specialize=_VARYING)
def sums_kernel(  # type: ignore[no-untyped-def]
    x,  # as in `values_kernel`
    gradient,  # of `out`, and of its shape
    second,  # the same by way of `out`'s other use; read where HAS_SECOND
    sums,  # float32 [parts, num_channels], out: of the gradient by the normalised map
    products,  # float32 [parts, num_channels], out: of it times (x - mean) * inverse
    total_out,  # float32 [num_channels]: the sums over all parts; `product_out` too
    product_out,
    counter,  # as in `moments_kernel`
    mean,
    inverse,
    weight,
    bias,
    num_rows,  # of `gradient`
    num_channels,
    POOL: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr,  # noqa: N803  # of `x`, where it is pooled
    WIDTH: tl.constexpr,  # noqa: N803
    HAS_SECOND: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """The sums of parts of ROWS rows, and of all; the grid is (parts, channels / ...)."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    inside = channel < num_channels
    centre, inverses, scale, shift = _affine(mean, inverse, weight, bias, channel, inside)
    total = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    product = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    for start in range(0, ROWS, BLOCK_ROWS):
        row = part * ROWS + start + tl.arange(0, BLOCK_ROWS)[:, None]
        valid = (row < num_rows) & inside
        value, at_x, _ = _picked(
            x, row, channel, valid, shift, scale, num_channels, POOL, HEIGHT, WIDTH
        )
        at = _at(row, channel, num_channels)
        given = _given(gradient, second, at, valid, HAS_SECOND)
        passed = tl.where(valid & (value > 0.0), given, 0.0)
        total += passed
        product += passed * (at_x - centre) * inverses
    at = part * num_channels + channel
    tl.store(sums + at, tl.sum(total, 0)[None, :], mask=inside)
    tl.store(products + at, tl.sum(product, 0)[None, :], mask=inside)
    if is_last(counter + tl.program_id(1), parts):
        channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        all_sums = tl.zeros([BLOCK_CHANNELS], tl.float32)
        all_products = tl.zeros([BLOCK_CHANNELS], tl.float32)
        start = 0
        while start < parts:
            all_sums += tl.sum(_parts(sums, start, parts, channels, num_channels), 0)
            all_products += tl.sum(_parts(products, start, parts, channels, num_channels), 0)
            start += MERGED
        tl.store(total_out + channels, all_sums, mask=channels < num_channels)
        tl.store(product_out + channels, all_products, mask=channels < num_channels)


@triton.jit(do_not_specialize=_VARYING)
def gradient_kernel(  # type: ignore[no-untyped-def]
    x,  # as in `values_kernel`
    gradient,  # of `out`, and of its shape; `second` as in `sums_kernel`
    second,
    out,  # the gradient by x, of its shape
    total,  # float32 [num_channels]: `sums` over all parts; `product` too
    product,
    mean,
    inverse,
    weight,
    bias,
    num_rows,  # of `gradient`
    num_channels,
    num_values,  # float: rows of `x`, over which the moments were taken
    POOL: tl.constexpr,  # noqa: N803
    HEIGHT: tl.constexpr,  # noqa: N803  # of `x`, where it is pooled
    WIDTH: tl.constexpr,  # noqa: N803
    HAS_SECOND: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """The gradient by x; the grid is that of `values_kernel`."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    inside = channel < num_channels
    valid = (row < num_rows) & inside
    centre, inverses, scale, shift = _affine(mean, inverse, weight, bias, channel, inside)
    common = tl.load(total + channel, mask=inside, other=0.0) / num_values
    slope = tl.load(product + channel, mask=inside, other=0.0) / num_values
    value, at_x, place = _picked(
        x, row, channel, valid, shift, scale, num_channels, POOL, HEIGHT, WIDTH
    )
    at = _at(row, channel, num_channels)
    given = _given(gradient, second, at, valid, HAS_SECOND)
    passed = tl.where(value > 0.0, given, 0.0)
    if POOL:
        first = _at(_window(row, HEIGHT, WIDTH), channel, num_channels)
        for i in tl.static_range(4):
            at = first + (i // 2 * WIDTH + i % 2) * num_channels
            here = tl.load(x + at, mask=valid, other=0.0).to(tl.float32)
            own = tl.where(place == i, passed, 0.0)
            made = scale * (own - common - (here - centre) * inverses * slope)
            tl.store(out + at, made.to(out.dtype.element_ty), mask=valid)
    else:
        made = scale * (passed - common - (at_x - centre) * inverses * slope)
        tl.store(out + at, made.to(out.dtype.element_ty), mask=valid)


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        running: tuple[Tensor, Tensor],
        counter: Tensor,
        momentum: float,
        epsilon: float,
        pool: bool,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        num_rows, columns = n * height * width, triton.cdiv(channels, BLOCK_CHANNELS)
        assert num_rows < 2**31 - ROWS, "rows are counted in int32"
        part_rows = rows_of_a_part(num_rows, columns, x.device)
        parts = triton.cdiv(num_rows, part_rows)
        # [2, parts, C], then mean and 1 / deviation [2, C].
        partial = x.new_empty((2, parts, channels), dtype=torch.float32)
        moments = x.new_empty((2, channels), dtype=torch.float32)
        sides = {"HEIGHT": height, "WIDTH": width} if pool else {"HEIGHT": 1, "WIDTH": 1}
        forms = {"POOL": pool, "BLOCK_CHANNELS": BLOCK_CHANNELS, **sides}
        moments_kernel[(parts, columns)](
            *(x, *partial, *moments, *running, counter, num_rows, channels, momentum, epsilon),
            ROWS=part_rows,
            BLOCK_ROWS=MOMENT_ROWS,
            BLOCK_CHANNELS=BLOCK_CHANNELS,
        )
        shape = (n, channels, height // 2, width // 2) if pool else x.shape
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        rows = out.numel() // channels
        if skip is not None:
            skip = skip.contiguous(memory_format=torch.channels_last)
        values_kernel[(triton.cdiv(rows, BLOCK_ROWS), columns)](
            *(x, x if skip is None else skip, out, *moments, weight, bias),
            *(rows, channels),
            HAS_SKIP=skip is not None,
            BLOCK_ROWS=BLOCK_ROWS,
            **forms,
        )
        ctx.save_for_backward(x, moments, weight, bias, counter)
        ctx.forms, ctx.has_skip = forms, skip is not None
        ctx.set_materialize_grads(False)
        return out, out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *of_uses: Tensor | None) -> tuple[Tensor | None, ...]:
        x, moments, weight, bias, counter = ctx.saved_tensors
        used = [g.contiguous(memory_format=torch.channels_last) for g in of_uses if g is not None]
        if not used:
            return (None,) * 9
        given, second, has_second = used[0], used[-1], len(used) == 2
        channels = x.shape[1]
        rows, columns = given.numel() // channels, triton.cdiv(channels, BLOCK_CHANNELS)
        part_rows = rows_of_a_part(rows, columns, x.device)
        parts = triton.cdiv(rows, part_rows)
        partial = x.new_empty((2, parts, channels), dtype=torch.float32)
        totals = x.new_empty((2, channels), dtype=torch.float32)
        forms = {**ctx.forms, "HAS_SECOND": has_second}
        sums_kernel[(parts, columns)](
            *(x, given, second, *partial, *totals, counter, *moments, weight, bias),
            *(rows, channels),
            ROWS=part_rows,
            BLOCK_ROWS=BLOCK_ROWS,
            **forms,
        )
        by_x = torch.empty_like(x)
        gradient_kernel[(triton.cdiv(rows, GRADIENT_ROWS), columns)](
            *(x, given, second, by_x, *totals, *moments, weight, bias, rows, channels),
            float(x.numel() // channels),
            BLOCK_ROWS=GRADIENT_ROWS,
            **forms,
        )
        by_skip = None
        if ctx.has_skip:
            by_skip = given + second if has_second else given
        by_bias, by_weight = totals
        return by_x, by_skip, by_weight, by_bias, *[None] * 5


def norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    counter: Tensor,
    *,
    momentum: float,
    epsilon: float,
    pool: bool = False,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """relu(pool(batch norm(x))) + skip in training, with its gradients.

    Arguments:
        x: [B, C, H, W] of any floating type, best in channels_last.
        weight: float32 [C], as `bias`.
        running: mean and variance, float32 [C], updated in place as torch's batch norm does.
        counter: see `new_counter`; of its own for each stream.
        pool: whether there is a 2x2 max pool; then H and W are even.
        skip: added to the result, and of its shape.

    Returns:
        [B, C, H, W], or [B, C, H / 2, W / 2] with the pool, in channels_last; twice the same
        memory: where one is read in one place and one in another, the kernels of the backward pass
        add their gradients, and torch need not.
    """
    out: tuple[Tensor, Tensor] = _NormReLU.apply(
        x, skip, weight, bias, running, counter, momentum, epsilon, pool
    )
    return out


def rows_of_a_part(num_rows: int, columns: int, device: torch.device) -> int:
    """Rows for a program of a reduction: the power of two that gives about `PROGRAMS` for each
    multiprocessor."""
    wanted = num_rows * columns / (PROGRAMS * _multiprocessors(device))
    return min(max(2 ** round(log2(wanted)), MOMENT_ROWS), ROWS)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter runs one program after another
    return torch.cuda.get_device_properties(device).multi_processor_count


def new_counter(num_channels: int, device: torch.device) -> Tensor:
    """What programs of a layer count themselves by: int32 zeros, which each launch leaves so."""
    columns = triton.cdiv(num_channels, BLOCK_CHANNELS)
    return torch.zeros(columns, dtype=torch.int32, device=device)
