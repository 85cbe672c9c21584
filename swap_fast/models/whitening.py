"""A first convolution with fixed filters from the data, after which patches are uncorrelated."""

import torch
from torch import Tensor, nn


def whitening_filters(images: Tensor, side: int = 3, epsilon: float = 1e-2) -> Tensor:
    """The filters [n, 3, side, side] that make the n = 3 * side^2 values of patches uncorrelated.

    Row i is the i-th eigenvector of the patches' second moments, the largest first, over the
    square root of its eigenvalue plus epsilon.

    Arguments:
        images: normalised, [N, 3, H, W].
        side: of a patch, in pixels.
    """
    values = images.shape[1] * side**2
    moments, count = images.new_zeros(values, values), 0
    for some in images.split(500):  # all patches at once would need n times the images' memory
        patches = some.unfold(2, side, 1).unfold(3, side, 1)  # [N, 3, rows, columns, side, side]
        vectors = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, values)
        moments += vectors.T @ vectors
        count += len(vectors)
    eigenvalues, columns = torch.linalg.eigh(moments / (count - 1))
    eigenvalues, rows = eigenvalues.flip(0), columns.T.flip(0)
    return (rows / (eigenvalues + epsilon).sqrt()[:, None]).view(-1, images.shape[1], side, side)


def fixed_convolution(filters: Tensor, *, padding: int = 0, bias: bool = False) -> nn.Conv2d:
    """A convolution with these filters [n, 3, side, side], which are not trained."""
    outputs, inputs, side, _ = filters.shape
    convolution = nn.Conv2d(inputs, outputs, kernel_size=side, padding=padding, bias=bias)
    convolution.weight = nn.Parameter(filters.clone(), requires_grad=False)
    return convolution
