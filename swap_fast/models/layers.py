"""Layers of the nets for small images: fixed filters that whiten patches, and a 3x3 convolution.

The convolution's weight gradient is fast on CPUs too. In bfloat16 oneDNN takes 3 to 8 times as long
for it as for the forward pass where the maps are small: it goes through a map row by row, and a row
has too few pixels for the matrix unit. So the images are laid side by side in one wide map, with a
column of zeros between two, and the gradient is that of the wide map: the same sum. In float32
there is Winograd's form of the whole layer, where a run chooses it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from swap_fast.models import winograd


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


LARGEST_SIDE = 8
"""Maps up to this side, in pixels, are laid side by side; from 15 on it is slower."""

MOST_IN_A_ROW = 32
"""Images in a wide map; from some 10 on the time does not depend on it."""


LEAST_PAIRS = 64 * 128
"""Pairs of channels from which on Winograd's form of a layer was faster than oneDNN's."""


class Convolution(nn.Conv2d):
    """Map [B, in_channels, H, W] to [B, out_channels, H, W], with zero padding, without bias."""

    winograd = False
    """Set by `Execution.place`: whether Winograd's form is used, where the channels are enough."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve, in bfloat16 on a CPU with a weight gradient from wide maps."""
        if self.winograd and self.pairs >= LEAST_PAIRS:
            return winograd.convolve(images, self.weight)
        if (
            images.device.type == "cpu"
            and images.shape[-1] <= LARGEST_SIDE
            and torch.is_grad_enabled()
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        ):
            return _WideGradient.apply(images.bfloat16(), self.weight.bfloat16())
        return super().forward(images)

    @property
    def pairs(self) -> int:
        """Of an input and an output channel."""
        return self.in_channels * self.out_channels


class FusableNorm(nn.BatchNorm2d):
    """Batch norm; in training, where `fused` is set, what follows it is in the same GPU kernels."""

    fused = False
    """Set by `Execution.place`, where the device and the memory format allow it."""
    _counter: Tensor | None = None

    def forward(  # type: ignore[override]  # two maps, where it is fused
        self, x: Tensor, *, pool: bool = False, skip: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Batch norm of [B, C, H, W]; fused, relu(pool(norm(x))) + skip, twice: see `norm_relu`."""
        if not self.is_fused:
            return super().forward(x)
        from swap_fast.models.fused_norm import new_counter, norm_relu  # Triton: on Linux alone

        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        if self._counter is None or self._counter.device != x.device:
            self._counter = new_counter(self.num_features, x.device)
        return norm_relu(
            x,
            self.weight,
            self.bias,
            (self.running_mean, self.running_var),
            self._counter,
            momentum=self.momentum,
            epsilon=self.eps,
            pool=pool,
            skip=skip,
        )

    @property
    def is_fused(self) -> bool:
        """Whether a call does what follows batch norm, too."""
        return self.fused and self.training


class _WideGradient(torch.autograd.Function):
    """A 3x3 convolution whose gradient by the weights is that of wide maps."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return functional.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        images, weight = ctx.saved_tensors
        by_images = None
        if ctx.needs_input_grad[0]:
            by_images = conv2d_input(images.shape, weight, gradient, padding=1)
        wide, wide_gradient = side_by_side(images), side_by_side(gradient)
        return by_images, conv2d_weight(wide, weight.shape, wide_gradient, padding=1)


def side_by_side(maps: Tensor) -> Tensor:
    """Lay maps [B, C, H, W] in rows of k, [B / k, C, H, k * (W + 1)], each with a column of zeros.

    The result is in channels_last; k is the largest divisor of B up to `MOST_IN_A_ROW`.
    """
    b, c, h, w = maps.shape
    k = max(k for k in range(1, MOST_IN_A_ROW + 1) if b % k == 0)
    rows = maps.new_zeros(b // k, h, k, w + 1, c)
    rows[:, :, :, :w] = maps.permute(0, 2, 3, 1).view(b // k, k, h, w, c).transpose(1, 2)
    return rows.view(b // k, h, k * (w + 1), c).permute(0, 3, 1, 2)
