"""3x3 convolutions with a quarter of the multiplications, for CPUs: Winograd's F(4 x 4, 3 x 3).

A tile of 4 x 4 outputs is made from the window of 6 x 6 inputs under it. Transformed by two small
matrices, window and filter are multiplied value by value: 36 multiplications for each pair of
channels in place of 144 (Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*,
2016). Over all tiles and channels these are 36 products of matrices. The gradients are the adjoint
of the same steps. In float32 the result is some 3e-6 of its length from the exact one; a sum of
products in the usual order is some 5e-7 from it.

It pays where channels are many, since the transforms cost as much for few.
"""

from functools import cache, cached_property
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 4
"""Side of a tile of outputs, in pixels."""

TILES_AT_ONCE = 128
"""Of a batch's tiles: what is made of them stays in the cache, and the products are still large."""


@cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The transforms of a window [36, 36], of a filter [36, 9], and the adjoint of that of a tile's
    products [36, 16], each over values in rows. The points are 0, 1, -1, 2, -2 and infinity."""
    window = [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
    filters = [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
    tile = [[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]]
    rows = [torch.tensor(matrix, dtype=torch.float64) for matrix in (window, filters, tile)]
    whole = [torch.kron(matrix, matrix).to(dtype) for matrix in rows]
    return whole[0], whole[1], whole[2]


class _Squares(NamedTuple):
    """Memory of maps, and views of it."""

    maps: Tensor
    """[n, H, W, C], within a border of zeros."""
    squares: Tensor
    """[side, side, n, tiles down, tiles across, C]: those that overlap share memory."""
    last_rows: Tensor
    """What only the overlapping parts of squares reach, ..."""
    last_columns: Tensor
    """... at the other side."""


class _Windows:
    """Squares of maps [n, H, W, C], 4 pixels apart, and a linear map of each square's values.

    Arguments:
        like: gives the type.
        shape: of the maps.
        matrix: [36, side^2].
    """

    def __init__(self, like: Tensor, shape: tuple[int, int, int, int], matrix: Tensor) -> None:
        n, height, width, channels = shape
        self._shape, self._matrix = shape, matrix
        self._side = round(matrix.shape[1] ** 0.5)
        self._tiles = ceil(height / TILE), ceil(width / TILE)
        squares = n * self._tiles[0] * self._tiles[1]
        self._values = like.new_empty(matrix.shape[1], squares * channels)
        self.results = like.new_empty(len(matrix), squares, channels)

    def transform(self, maps: Tensor) -> Tensor:
        """`results` [36, squares, C] of up to n maps [m, H, W, C], as if zeros made up n."""
        self._read.maps[: len(maps)] = maps
        self._read.maps[len(maps) :] = 0
        self._values.view(self._read.squares.shape).copy_(self._read.squares)
        torch.mm(self._matrix, self._values, out=self.results.flatten(1))
        return self.results

    def adjoint(self, results: Tensor) -> Tensor:
        """The maps [n, H, W, C] as the adjoint of `transform` gives them, in memory that is reused.

        Squares that overlap are added up.
        """
        torch.mm(self._matrix.T, results.flatten(1), out=self._values)
        maps, squares, *last = self._made
        values = self._values.view(squares.shape)
        squares[:TILE, :TILE] = values[:TILE, :TILE]
        if self._side > TILE:
            for border in last:
                border.zero_()
            # Within each of these parts no two squares overlap.
            body, rest = slice(TILE), slice(TILE, None)
            for part in ((rest, body), (body, rest), (rest, rest)):
                squares[part] += values[part]
        return maps

    @cached_property
    def _read(self) -> _Squares:
        return self._padded()

    @cached_property
    def _made(self) -> _Squares:
        return self._padded()  # of its own, so that the border of the other one stays zero

    def _padded(self) -> _Squares:
        n, height, width, channels = self._shape
        down, across = self._tiles
        border = (self._side - TILE) // 2
        rows, columns = TILE * down + 2 * border, TILE * across + 2 * border
        padded = self._values.new_zeros(n, rows, columns, channels)
        image, row, column, _ = padded.stride()
        squares = padded.as_strided(
            (self._side, self._side, n, down, across, channels),
            (row, column, image, TILE * row, TILE * column, 1),
        )
        maps = padded[:, border : border + height, border : border + width]
        return _Squares(maps, squares, padded[:, TILE * down :], padded[:, :, TILE * across :])


def _chunks(batch: int, height: int, width: int) -> list[slice]:
    """The images of a batch in chunks of equal length; the last may be shorter."""
    tiles = ceil(height / TILE) * ceil(width / TILE)
    chunks = max(1, ceil(batch * tiles / TILES_AT_ONCE))
    length = max(1, ceil(batch / chunks))
    return [slice(first, min(first + length, batch)) for first in range(0, batch, length)]


class _Winograd(torch.autograd.Function):
    """A 3x3 convolution with zero padding, and its gradients."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        maps, filters = images.permute(0, 2, 3, 1), _transformed(weight).transpose(1, 2)
        batch, height, width, _ = maps.shape
        out = maps.new_empty(batch, height, width, len(weight))
        chunks = _chunks(batch, height, width)
        inputs, outputs = _both(images, weight, chunks)
        for chunk in chunks:
            torch.bmm(inputs.transform(maps[chunk]), filters, out=outputs.results)
            made = outputs.adjoint(outputs.results)
            out[chunk] = made[: chunk.stop - chunk.start]
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        images, weight = ctx.saved_tensors
        maps, by_output = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        filters = _transformed(weight)
        by_filters = torch.zeros_like(filters)
        by_input = torch.empty_like(maps) if ctx.needs_input_grad[0] else None
        chunks = _chunks(*maps.shape[:3])
        inputs, outputs = _both(images, weight, chunks)
        for chunk in chunks:
            by_products = outputs.transform(by_output[chunk])
            by_filters.baddbmm_(by_products.transpose(1, 2), inputs.transform(maps[chunk]))
            if by_input is not None:
                torch.bmm(by_products, filters, out=inputs.results)
                made = inputs.adjoint(inputs.results)
                by_input[chunk] = made[: chunk.stop - chunk.start]
        _, of_filters, _ = _matrices(weight.dtype)
        by_weight = (of_filters.T @ by_filters.flatten(1)).view(3, 3, *weight.shape[:2])
        return (
            None if by_input is None else by_input.permute(0, 3, 1, 2),
            by_weight.permute(2, 3, 0, 1),
        )


def _both(images: Tensor, weight: Tensor, chunks: list[slice]) -> tuple[_Windows, _Windows]:
    """The windows of the inputs and the tiles of the outputs, of as many maps as a chunk has."""
    length = chunks[0].stop if chunks else 0
    height, width = images.shape[2:]
    of_window, _, of_tile = _matrices(images.dtype)
    outputs, inputs = weight.shape[:2]
    return (
        _Windows(images, (length, height, width, inputs), of_window),
        _Windows(images, (length, height, width, outputs), of_tile),
    )


def _transformed(weight: Tensor) -> Tensor:
    """Filters [outputs, inputs, 3, 3] as [36, outputs, inputs]."""
    _, of_filters, _ = _matrices(weight.dtype)
    values = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (of_filters @ values).view(-1, *weight.shape[:2])


def convolve(images: Tensor, weight: Tensor) -> Tensor:
    """Map [B, in, H, W] to [B, out, H, W] by filters [out, in, 3, 3], with zero padding.

    The result and the gradients are in channels_last, of the images' type.
    """
    return _Winograd.apply(images, weight)
