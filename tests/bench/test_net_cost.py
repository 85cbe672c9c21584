"""The counts of layers against torch's own counts over the nets, hooks on them, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models.resnet import Bottleneck

from bench import net_cost
from bench.net_cost import Net
from swap_fast.models import ResNet9, SpeedNet
from swap_fast.models.resnet9 import Residual

BATCH = 2
NETS = {
    "resnet9": (lambda: ResNet9(10, 16), net_cost.resnet9(16, 10), 32),
    "resnet9 of CIFAR-100": (lambda: ResNet9(100, 8), net_cost.resnet9(8, 100), 32),
    "speed net": (
        lambda: SpeedNet(10, 8, torch.randn(12, 3, 2, 2)),
        net_cost.speed_net(8, 10),
        32,
    ),
    "resnet50": (torchvision_resnet50, net_cost.resnet50(64), 64),
    "resnet50 at an odd size": (torchvision_resnet50, net_cost.resnet50(72), 72),
}


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Net, Tensor]:
    make, net, side = NETS[request.param]
    return make(), net, torch.randn(BATCH, 3, side, side)


def test_operations_are_torch_s(case: tuple[nn.Module, Net, Tensor]) -> None:
    model, net, images = case
    with FlopCounterMode(display=False) as counter:
        logits = model(images)
        assert counter.get_total_flops() == BATCH * net.forward_flop
        logits.sum().backward()
        assert counter.get_total_flops() == BATCH * net.train_flop


def traffic(model: nn.Module, images: Tensor) -> tuple[int, int, int]:
    """Values of activations, of weights and of positions that a step reads and writes, unfused."""
    counts = {"activations": 0, "weights": 0, "positions": 0}
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = inputs[0].numel(), output.numel()
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fixed = not module.weight.requires_grad
            passes = 3 - (module is layers[0]) - fixed
            # Of a fixed first layer, dy alone is read backward, for the bias.
            counts["activations"] += passes * (x + y) + fixed * y
            counts["weights"] += passes * module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            counts["activations"] += (x + 2 * x) + (2 * x + 3 * x)
        elif isinstance(module, (nn.ReLU, nn.GELU)):
            counts["activations"] += 2 * y + 3 * y
        elif isinstance(module, nn.MaxPool2d):
            counts["activations"] += (x + y) + (y + x)
            counts["positions"] += 2 * y
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            counts["activations"] += 2 * x
        elif isinstance(module, (Residual, Bottleneck)):
            counts["activations"] += 3 * y + 3 * y

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(images)
    return counts["activations"], counts["weights"], counts["positions"]


@pytest.mark.parametrize("activation_bytes", [4, 2])
def test_memory_traffic_is_what_hooks_count(
    case: tuple[nn.Module, Net, Tensor], activation_bytes: int
) -> None:
    model, net, images = case
    activations, weights, positions = traffic(model, images)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    update = trained * (9 * 4 + (0 if activation_bytes == 4 else 6))
    expected = (activations + weights) * activation_bytes + 8 * positions + update
    assert net.step_bytes(BATCH, activation_bytes) == expected


def test_parameters_are_torch_s(case: tuple[nn.Module, Net, Tensor]) -> None:
    model, net, _ = case
    assert net.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_kept_activations_are_what_autograd_keeps(case: tuple[nn.Module, Net, Tensor]) -> None:
    model, net, images = case
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    num_bytes = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)
    channels = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    moments = 2 * 4 * channels  # batch norm's, once a batch and not an image
    assert BATCH * net.saved_bytes(4) + moments == num_bytes


def test_the_papers_net_by_hand() -> None:
    # Output places, input channels and output channels of ResNet-9's convolutions, 3x3 each.
    convolutions = [
        *((32 * 32, 3, 64), (32 * 32, 64, 128), (16 * 16, 128, 128), (16 * 16, 128, 128)),
        *((16 * 16, 128, 256), (8 * 8, 256, 512), (4 * 4, 512, 512), (4 * 4, 512, 512)),
    ]
    macs = sum(9 * places * i * o for places, i, o in convolutions) + 512 * 10
    assert macs == 379_261_952
    net = net_cost.resnet9(64, 10)
    assert net.parameters == 6_573_120
    assert net.forward_flop == 2 * macs
    # Backward twice the forward's, but for the images' own gradient.
    assert net.train_flop == 2 * (3 * macs - 9 * 1024 * 3 * 64) == 2_272_032_768


def test_resnet50_at_224_pixels() -> None:
    # torchvision's own figures: 25.6 M parameters, 4.09 G multiplications.
    net = net_cost.resnet50(224)
    assert net.parameters == 25_557_032
    assert net.forward_flop / 2 == pytest.approx(4.09e9, rel=1e-3)


def test_memory_traffic_of_a_block_by_hand() -> None:
    # The first block at width 1: 3 x 32 x 32 to 1 x 32 x 32 values, batch norm, ReLU.
    convolution, batch_norm, relu = net_cost.resnet9(1, 10).layers[:3]
    x, y = 3 * 1024, 1024
    assert convolution.forward_values == x + y
    assert convolution.backward_values == y + x  # dw alone: dy and x are read
    assert (batch_norm.forward_values, batch_norm.backward_values) == (3 * y, 5 * y)
    assert (relu.forward_values, relu.backward_values) == (2 * y, 3 * y)


def test_a_pool_s_places_are_written_and_read_as_int64() -> None:
    # The second block's: 2 x 32 x 32 to 2 x 16 x 16 values; fused kernels keep no places.
    pool = net_cost.resnet9(1, 10).layers[5]
    x, y = 2 * 1024, 2 * 256
    assert pool.forward_bytes(2) == pool.backward_bytes(2) == 2 * (x + y) + 8 * y
    fused = net_cost.resnet9(1, 10, fused=True).layers[3]
    assert fused.forward_bytes(2) == 2 * fused.forward_values


def test_fused_kernels_by_hand() -> None:
    """Moments, then values; their sums, then the gradient: pool and ReLU are in the latter."""
    net, fused = net_cost.resnet9(1, 10), net_cost.resnet9(1, 10, fused=True)
    first, second, third = fused.layers[1], fused.layers[3], fused.layers[5]
    x, y = 2 * 1024, 2 * 256  # the second block pools
    assert (first.forward_values, first.backward_values) == (3 * 1024, 5 * 1024)
    assert (second.forward_values, second.backward_values) == (2 * x + y, (x + y) + (2 * x + y))
    # The residual sum is in the kernel that makes f(x): it reads x in addition. Backward, the
    # kernels of the layer that made x read two gradients.
    assert (third.forward_values, third.backward_values) == (3 * y, 5 * y)
    assert (fused.layers[8].forward_values, fused.layers[8].backward_values) == (y, 2 * y)
    assert (fused.parameters, fused.train_flop) == (net.parameters, net.train_flop)
    speed = [net_cost.speed_net(4, 10, fused=each) for each in (False, True)]
    assert speed[0].parameters == speed[1].parameters
    assert speed[1].step_bytes(BATCH, 4) < speed[0].step_bytes(BATCH, 4)


def test_the_updates_by_hand() -> None:
    # In fp16: write g; read dw, g, write g; read theta, v, g, write theta, v; cast theta.
    assert net_cost.update_bytes(2) == 9 * 4 + 6
    # Search g; read g, theta, v, write theta, v and the rounded theta.
    assert net_cost.update_bytes(2, fused=True) == 2 + 2 + 4 * 4 + 2
    assert net_cost.update_bytes(4, fused=True) == 5 * 4
    net = net_cost.resnet9(64, 10, fused=True)
    saved = net.step_bytes(256, 2) - net.step_bytes(256, 2, fused_update=True)
    assert saved == 20 * net.parameters
    assert net.step_bytes(256, 2, fused_update=True) / 256 == pytest.approx(9.33e6, rel=1e-3)


def test_an_image_s_share_of_the_update_falls_with_the_batch() -> None:
    net = net_cost.resnet9(16, 10)
    # As `bench micro` recorded it in November 2026, by hooks on the net.
    assert net.step_bytes(256, 4) / 256 == 6865071.75
    # What was recorded of compiled steps then, less one of three passes where two gradients meet.
    residuals = 32 * 16**2 + 128 * 4**2
    fused = net_cost.resnet9(16, 10, fused=True)
    assert fused.step_bytes(256, 4) / 256 == 4440239.75 - 4 * residuals
    assert net.step_bytes(64, 4) / 64 > net.step_bytes(256, 4) / 256
