"""The cost of a net's layers for one image: arithmetic, memory traffic, saved activations.

Counted from the shapes, so that a plan and a report need no torch; tests compare the counts with
torch's own over the nets. Each pass over a tensor is one read or one write of all its values, as if
no cache kept any between two kernels. With a large cache or a small batch the real traffic is less.

For each layer from x to y, with d for a gradient, w for weights:

| layer | forward | backward |
|---|---|---|
| convolution, linear | read x, w; write y | read dy, w, write dx; read x, dy, write dw |
| batch norm | read x; read x, write y | read x, dy; read x, dy, write dx |
| ReLU in place | read, write y | read y, dy, write dx |
| GELU | read x, write y | read x, dy, write dx |
| max pool | read x, write y, places | read dy, places, write dx |
| x + f(x) | read x, f, write y | read both gradients, write their sum |
| norm, pool, ReLU (GELU), fused | read x; read x, write y | read x, dy; read x, dy, write dx |
| x + f(x), fused | read x | read one more gradient, twice |

Places are int64, as torch's pool writes them, with or without gradients. The image's gradient is
not needed. Fused kernels, which a compiler can make, choose the pool's
places again. The residual sum is in the last of them; its two gradients are added by those of the
layer that made x, each of which reads both. The loss over 10 classes is left out, and so
is the arithmetic of the update (Muon's matrix products too).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

INDEX_BYTES = 8
"""Of a max pool's position, which its backward pass reads."""
WEIGHT_BYTES = 4
"""Weights, gradients, velocities and communication are float32."""
UPDATE_PASSES = 9
"""Reads and writes of P values in an update: write g = 0; read dw and g, write g; read theta, v, g,
write theta, v."""


def update_bytes(activation_bytes: int, *, fused: bool = False) -> int:
    """Memory traffic of an update, of each parameter.

    Arguments:
        activation_bytes: as in `Net.step_bytes`.
        fused: by the kernels of `swap_fast.training.update_kernel`: read g for the search of
            overflow, where there is a loss scale; read theta, v, g, write theta, v, and theta in
            the narrow type.
    """
    is_narrow = activation_bytes != WEIGHT_BYTES
    if fused:
        rounding = is_narrow * activation_bytes
        return (1 + is_narrow) * activation_bytes + 4 * WEIGHT_BYTES + rounding
    return UPDATE_PASSES * WEIGHT_BYTES + is_narrow * (WEIGHT_BYTES + activation_bytes)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, for one image."""

    macs: int = 0
    """Multiplications with addition, forward."""
    weights: int = 0
    """Values of the filters or the matrix."""
    parameters: int = 0
    """Trained values."""
    forward_values: int = 0
    """Activations read and written by the forward pass."""
    backward_values: int = 0
    """The same for the backward pass, with gradients."""
    saved_values: int = 0
    """Activations saved for the backward pass, except those that an earlier layer saves."""
    saved_indices: int = 0
    """Positions of maxima saved for the backward pass."""
    backward_products: int = 2
    """Matrix products of the backward pass for each of the forward pass: 1 where the input needs no
    gradient, 0 where the weights need none either."""

    @property
    def forward_flop(self) -> int:
        return 2 * self.macs

    @property
    def backward_flop(self) -> int:
        return 2 * self.macs * self.backward_products

    def forward_bytes(self, activation_bytes: int) -> int:
        """Memory traffic of the forward pass without the weights'."""
        return self.forward_values * activation_bytes + self.saved_indices * INDEX_BYTES

    def backward_bytes(self, activation_bytes: int) -> int:
        """The same for the backward pass."""
        return self.backward_values * activation_bytes + self.saved_indices * INDEX_BYTES


@dataclass(frozen=True, kw_only=True)
class Net:
    """All layers of a net at one image size."""

    layers: tuple[Layer, ...]
    """In the order of the forward pass."""

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def forward_flop(self) -> int:
        return sum(layer.forward_flop for layer in self.layers)

    @property
    def train_flop(self) -> int:
        """Of a forward and a backward pass."""
        return self.forward_flop + sum(layer.backward_flop for layer in self.layers)

    def saved_bytes(self, activation_bytes: int) -> int:
        """Activation memory of an image."""
        values = sum(layer.saved_values for layer in self.layers)
        return values * activation_bytes + INDEX_BYTES * sum(
            layer.saved_indices for layer in self.layers
        )

    def step_bytes(
        self, batch_size: int, activation_bytes: int, *, fused_update: bool = False
    ) -> int:
        """Memory traffic of a whole step over a batch, its update included.

        Arguments:
            activation_bytes: 4 in fp32, 2 in fp16 and bf16, where the weights are also read and
                written in the narrow type.
            fused_update: see `update_bytes`.
        """
        per_image = sum(
            layer.forward_bytes(activation_bytes) + layer.backward_bytes(activation_bytes)
            for layer in self.layers
        )
        weights = sum((1 + layer.backward_products) * layer.weights for layer in self.layers)
        update = self.parameters * update_bytes(activation_bytes, fused=fused_update)
        return batch_size * per_image + weights * activation_bytes + update


def resnet9(width: int, num_classes: int, *, fused: bool = False) -> Net:
    """The paper's ResNet-9 at 32 px: the layers of `swap_fast.models.ResNet9`."""

    def block(inputs: int, outputs: int, side: int, *, pool: int = 1) -> Iterator[Layer]:
        # The image needs no gradient.
        yield _convolution(inputs, outputs, 3, side, side, is_first=inputs == 3)
        if fused:
            yield _fused(outputs, side, side // pool)
            return
        yield _batch_norm(outputs, side)
        if pool > 1:
            yield _max_pool(outputs, side, side // pool)
        yield _relu(outputs, side // pool)

    def residual(channels: int, side: int) -> Iterator[Layer]:
        yield from block(channels, channels, side)
        yield from block(channels, channels, side)
        y = channels * side**2
        read, added = (y, 2 * y) if fused else (3 * y, 3 * y)
        yield Layer(forward_values=read, backward_values=added, saved_values=y)

    layers = (
        *block(3, width, 32),
        *block(width, 2 * width, 32, pool=2),
        *residual(2 * width, 16),
        *block(2 * width, 4 * width, 16, pool=2),
        *block(4 * width, 8 * width, 8, pool=2),
        *residual(8 * width, 4),
        _max_pool(8 * width, 4, 1, saves="nothing"),
        _linear(8 * width, num_classes),
    )
    return Net(layers=layers)


def speed_net(width: int, num_classes: int, *, fused: bool = False) -> Net:
    """The net of the CIFAR-10 speed runs at 32 px: the layers of `swap_fast.models.SpeedNet`."""

    def norm(channels: int, side: int, end: int) -> Iterator[Layer]:
        """A pool where the side changes, batch norm with a trained bias, GELU."""
        if fused:
            yield _fused(channels, side, end, trained=1)
            return
        if end < side:
            yield _max_pool(channels, side, end)
        yield _batch_norm(channels, end, trained=1)
        yield _gelu(channels, end)

    channels, side, wide = 24, 31, 4 * width
    whiten = _convolution(3, channels, 2, 32, side, is_first=True)
    # Fixed filters and a trained bias: only dy is read backward.
    layers = [
        replace(
            whiten, parameters=channels, backward_values=channels * side**2, backward_products=0
        ),
        _gelu(channels, side),
    ]
    for outputs in (width, wide, wide):
        layers += [
            _convolution(channels, outputs, 3, side, side),
            *norm(outputs, side, side // 2),
            _convolution(outputs, outputs, 3, side // 2, side // 2),
            *norm(outputs, side // 2, side // 2),
        ]
        channels, side = outputs, side // 2
    layers += [_max_pool(wide, side, 1, saves="nothing"), _linear(wide, num_classes)]
    return Net(layers=tuple(layers))


def resnet50(
    side: int,
    *,
    width: int = 64,
    num_classes: int = 1000,
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
) -> Net:
    """ResNet-50 v1.5 at images of `side` x `side` px: the stride is on the 3x3 convolution."""

    def bottleneck(inputs: int, inner: int, side: int, stride: int) -> Iterator[Layer]:
        outputs, end = 4 * inner, _halved(side) if stride == 2 else side
        for in_, out, kernel, before, after in (
            (inputs, inner, 1, side, side),
            (inner, inner, 3, side, end),
            (inner, outputs, 1, end, end),
        ):
            yield _convolution(in_, out, kernel, before, after)
            yield _batch_norm(out, after)
            if out == inner:
                yield _relu(inner, after)
        if stride == 2 or inputs != outputs:
            yield _convolution(inputs, outputs, 1, side, end)
            yield _batch_norm(outputs, end)
        y = outputs * end**2  # the sum, which the ReLU saves
        yield Layer(forward_values=3 * y, backward_values=3 * y)
        yield _relu(outputs, end)

    side = _halved(side)
    layers = [_convolution(3, width, 7, 2 * side, side, is_first=True), _batch_norm(width, side)]
    layers += [_relu(width, side), _max_pool(width, side, _halved(side), saves="output")]
    side, channels = _halved(side), width
    for group, count in enumerate(blocks):
        for i in range(count):
            stride = 2 if group > 0 and i == 0 else 1
            layers += bottleneck(channels, width << group, side, stride)
            channels = 4 * (width << group)
            side = _halved(side) if stride == 2 else side
    layers.append(Layer(forward_values=channels * side**2, backward_values=channels * side**2))
    layers.append(_linear(channels, num_classes, biases=num_classes))
    return Net(layers=tuple(layers))


def _halved(side: int) -> int:
    return (side + 1) // 2


def _convolution(
    inputs: int, outputs: int, kernel: int, side: int, end: int, *, is_first: bool = False
) -> Layer:
    """Saves its input only if it is the image; the layer before it saves any other one."""
    x, y, weights = inputs * side**2, outputs * end**2, inputs * outputs * kernel**2
    products = 1 if is_first else 2
    return Layer(
        macs=weights * end**2,
        weights=weights,
        parameters=weights,
        forward_values=x + y,
        backward_values=products * (x + y),
        saved_values=x if is_first else 0,
        backward_products=products,
    )


def _batch_norm(channels: int, side: int, *, trained: int = 2) -> Layer:
    """Reads its input twice, for moments and result; backward reads input and gradient twice."""
    x = channels * side**2
    return Layer(
        parameters=trained * channels, forward_values=3 * x, backward_values=5 * x, saved_values=x
    )


def _relu(channels: int, side: int) -> Layer:
    """In place; saves its result, for itself and for the next layer."""
    y = channels * side**2
    return Layer(forward_values=2 * y, backward_values=3 * y, saved_values=y)


def _gelu(channels: int, side: int) -> Layer:
    """Saves its input, and its result for the next layer."""
    y = channels * side**2
    return Layer(forward_values=2 * y, backward_values=3 * y, saved_values=2 * y)


def _max_pool(
    channels: int, side: int, end: int, *, saves: Literal["input", "output", "nothing"] = "input"
) -> Layer:
    """Saves its input, or its output for the next layer, unless another layer saves them."""
    x, y = channels * side**2, channels * end**2
    return Layer(
        forward_values=x + y,
        backward_values=y + x,
        saved_values={"input": x, "output": y, "nothing": 0}[saves],
        saved_indices=y,
    )


def _fused(channels: int, side: int, end: int, *, trained: int = 2) -> Layer:
    """Batch norm, pool, ReLU or GELU: a pass for moments or their gradients, then one for all."""
    x, y = channels * side**2, channels * end**2
    return Layer(
        parameters=trained * channels,
        forward_values=x + (x + y),
        backward_values=(x + y) + (2 * x + y),
        saved_values=x,
    )


def _linear(inputs: int, outputs: int, *, biases: int = 0) -> Layer:
    weights = inputs * outputs
    return Layer(
        macs=weights,
        weights=weights,
        parameters=weights + biases,
        forward_values=inputs + outputs,
        backward_values=2 * (inputs + outputs),
        saved_values=inputs,
    )
