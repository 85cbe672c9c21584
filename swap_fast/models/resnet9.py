"""ResNet-9, the "fast-to-train custom ResNet 9" of the paper's Section 5.1, in two forms."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from swap_fast.models.layers import Convolution, FusableNorm, fixed_convolution


class Block(nn.Module):
    """3x3 convolution without bias -> batch norm -> ReLU, then optionally a 2x2 max pool.

    The pool is before the ReLU: the two commute exactly, in value and in gradient, and the ReLU
    then has a quarter of the elements.
    """

    def __init__(self, in_channels: int, out_channels: int, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, out_channels)
        self.bn = FusableNorm(out_channels)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self._pools = pool

    def forward(
        self, x: Tensor, skip: Tensor | None = None, *, twice: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Map [B, in, H, W] to [B, out, H, W], with the pool half as high and wide; plus `skip`.

        Arguments:
            twice: give the result for two uses; with fused kernels, which add their gradients.
        """
        x = self.conv(x)
        if self.bn.is_fused:
            uses: tuple[Tensor, Tensor] = self.bn(x, pool=self._pools, skip=skip)
            return uses if twice else uses[0]
        x = self.relu(self.pool(self.bn(x)))
        return x if skip is None else skip + x


class Residual(nn.Module):
    """x + block(block(x)); nothing follows the addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = Block(channels, channels)
        self.block2 = Block(channels, channels)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map [B, C, H, W] to the same shape; `skip` is x too, for its second use."""
        return self.block2(self.block1(x), skip=x if skip is None else skip)


class BlockAndResidual(nn.Sequential):
    """A block with a pool, then a residual sum over its result."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Block(in_channels, out_channels, pool=True), Residual(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H / 2, W / 2]."""
        block, residual = self
        assert isinstance(block, Block)
        return residual(*block(x, twice=True)) if block.bn.is_fused else super().forward(x)


class ResNet9(nn.Module):
    """The DAWNBench net of the paper: 6,573,120 parameters at width 64 with 10 classes.

    Arguments:
        num_classes: 10 for CIFAR-10, 100 for CIFAR-100.
        width: channels of the first block; the paper's net has 64. The others are 2, 4 and 8
            times as wide.
        logit_scale: the fixed factor on the logits.
    """

    def __init__(
        self, num_classes: int = 10, width: int = 64, *, logit_scale: float = 0.125
    ) -> None:
        super().__init__()
        self.prep = Block(3, width)
        self.layer1 = BlockAndResidual(width, 2 * width)
        self.layer2 = Block(2 * width, 4 * width, pool=True)
        self.layer3 = BlockAndResidual(4 * width, 8 * width)
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(8 * width, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.prep(images))))
        return self.linear(self.pool(x).flatten(1)) * self.logit_scale


# ResNet-9 with whitened input, the net of the SWAP authors' later DAWNBench entry (9.43 s). Its
# differences: a fixed convolution whitens the image's 3x3 patches; CELU replaces ReLU; batch norm
# has no weight and takes each GPU's 256 images in 16 groups; pools are before batch norm; the
# logits are divided by 16.


class GhostBatchNorm(nn.BatchNorm2d):
    """Batch norm that normalises `num_groups` interleaved parts of a batch separately.

    The weight is fixed at 1; the bias is trained. The running statistics are those of all groups,
    [num_groups * C], and evaluation takes their mean.
    """

    def __init__(self, num_channels: int, num_groups: int = 16) -> None:
        super().__init__(num_channels * num_groups)
        self.num_channels, self.num_groups = num_channels, num_groups
        self.weight = nn.Parameter(torch.ones(num_channels), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape; B a multiple of `num_groups` in training.

        Raises:
            RuntimeError: a training batch that does not divide into the groups.
        """
        groups = self.num_groups
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.training:
            apart = x.unflatten(0, (-1, groups)).flatten(1, 2)  # [B / groups, groups * C, H, W]
            normal = functional.batch_norm(
                apart,
                self.running_mean,
                self.running_var,
                self.weight.repeat(groups),
                self.bias.repeat(groups),
                training=True,
                momentum=0.1 if self.momentum is None else self.momentum,
                eps=self.eps,
            )
            return normal.view(apart.shape).unflatten(1, (groups, -1)).flatten(0, 1)
        return functional.batch_norm(
            x,
            self.running_mean.view(groups, -1).mean(0),
            self.running_var.view(groups, -1).mean(0),
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )


class WhitenedResNet9(nn.Module):
    """The net of the authors' 18-epoch entry.

    Arguments:
        filters: [27, 3, 3, 3], from `whitening_filters`; fixed.
        width: channels of the first block.
        num_groups: of batch norm, in a replica's batch.
    """

    def __init__(
        self, num_classes: int, width: int, filters: Tensor, *, num_groups: int = 16
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
            return nn.Sequential(
                Convolution(inputs, outputs),
                nn.MaxPool2d(2) if pool else nn.Identity(),
                GhostBatchNorm(outputs, num_groups),
                nn.CELU(0.3),
            )

        self.whiten = fixed_convolution(filters, padding=1)
        self.prep = nn.Sequential(
            nn.Conv2d(len(filters), width, kernel_size=1, bias=False),
            GhostBatchNorm(width, num_groups),
            nn.CELU(0.3),
        )
        self.layer1 = block(width, 2 * width, pool=True)
        self.residual1 = nn.Sequential(block(2 * width, 2 * width), block(2 * width, 2 * width))
        self.layer2 = block(2 * width, 4 * width, pool=True)
        self.layer3 = block(4 * width, 8 * width, pool=True)
        self.residual3 = nn.Sequential(block(8 * width, 8 * width), block(8 * width, 8 * width))
        self.pool = nn.MaxPool2d(4)
        self.linear = nn.Linear(8 * width, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 3, 32, 32] to logits [B, num_classes]."""
        x = self.layer1(self.prep(self.whiten(images)))
        x = x + self.residual1(x)
        x = self.layer3(self.layer2(x))
        x = x + self.residual3(x)
        return self.linear(self.pool(x).flatten(1)) / 16
