"""What a training step of a net costs by count: its arithmetic, and its traffic with memory.

The arithmetic is torch's own count over the net. The traffic is counted here, from the shapes:
each pass over a tensor that the work needs is one reading or one writing of all its values. It
says what must be moved if no cache keeps anything between two kernels, so that on a CPU with a
large cache, or for a small batch, the measured traffic is less, and a share of the copy bandwidth
may be over 100%.

A plan has the same count without torch (`bench.net_cost`); a test holds the two equal.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.micro.interleave import Cost
from bench.net_cost import INDEX_BYTES, UPDATE_PASSES, WEIGHT_BYTES
from swap_fast.models.resnet9 import Block, Residual


def step_flop(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Operations of a forward pass, and of a forward and backward pass, over a batch [B, ...].

    Matrix work alone, as everyone counts it: convolutions and linear layers, two operations a
    multiplication and addition. The images need no gradient, so that the first layer has one
    backward convolution and not two.
    """
    with FlopCounterMode(display=False) as counter:
        logits = model(images)
        forward = counter.get_total_flops()
        logits.sum().backward()
        return forward, counter.get_total_flops()


def step_bytes(
    model: nn.Module, images: Tensor, *, activation_bytes: int = 4, fused: bool = False
) -> int:
    """Bytes read and written by one step over a batch [B, ...], from the shapes of its tensors.

    Of each layer from x to y, with d for a gradient, w for weights:

    | layer | forward | backward |
    |---|---|---|
    | convolution, linear | read x, w; write y | read dy, w, write dx; read x, dy, write dw |
    | batch norm | read x; read x, write y | read x, dy; read x, dy, write dx |
    | ReLU in place | read, write y | read y, dy, write dx |
    | max pool | read x, write y, places | read dy, places, write dx |
    | x + f(x) | read x, f, write y | read both gradients, write their sum |

    The first layer's dx is not needed. The update of P weights: write g = 0; read and write g and
    read dw to add it; read theta, v, g, write theta, v; where activations are narrower, read w and
    write it narrow. The loss over 10 classes is left out.

    Arguments:
        activation_bytes: 4 in fp32, 2 in fp16 and bf16.
        fused: in each `Block`, one kernel for batch norm's second pass, pool and ReLU, and
            backward one for their sums and one for dx, which read the convolution's output and
            choose anew; the residual sum in the last of them. A compiler can make these.
    """
    counts = {"activations": 0, "weights": 0, "places": 0}  # values read and written
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    joined = [m for m in model.modules() if isinstance(m, Block)] if fused else []
    inside = [m for block in joined for m in (block.bn, block.pool, block.relu)]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = inputs[0].numel(), output.numel()
        if module in inside:
            return
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            passes = 2 if module is layers[0] else 3
            counts["activations"] += passes * (x + y)
            counts["weights"] += passes * module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            counts["activations"] += (x + 2 * x) + (2 * x + 3 * x)
        elif isinstance(module, nn.ReLU):
            counts["activations"] += 2 * y + 3 * y
        elif isinstance(module, nn.MaxPool2d):
            counts["activations"] += (x + y) + (y + x)
            counts["places"] += 2 * y
        elif isinstance(module, Residual):
            # Fused, the sum is made where f(x) is: only x is read besides.
            counts["activations"] += (y if fused else 3 * y) + 3 * y
        elif module in joined:
            conv = module.conv
            between = x // conv.in_channels * conv.out_channels  # from convolution to batch norm
            forward = between + (between + y)
            counts["activations"] += forward + (between + y) + (2 * between + y)

    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in model.parameters())
    update = UPDATE_PASSES * parameters * WEIGHT_BYTES
    if activation_bytes != WEIGHT_BYTES:
        update += parameters * (WEIGHT_BYTES + activation_bytes)
    narrow = counts["activations"] + counts["weights"]
    return narrow * activation_bytes + counts["places"] * INDEX_BYTES + update


def step_cost(
    model: nn.Module,
    batch_size: int,
    *,
    activation_bytes: int = 4,
    fused: bool = False,
    image_shape: tuple[int, int, int] = (3, 32, 32),
) -> Cost:
    """An image's share of a step's cost, counted on shapes alone: nothing is computed."""
    model = model.to("meta")
    images = torch.empty((batch_size, *image_shape), device="meta")
    _, flop = step_flop(model, images)
    moved = step_bytes(model, images, activation_bytes=activation_bytes, fused=fused)
    return Cost(flop=flop / batch_size, bytes=moved / batch_size)
