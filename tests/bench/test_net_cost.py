"""The hand counts of layers against torch's own counts over the nets themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50 as torchvision_resnet50

from bench import net_cost
from bench.micro.peak import step_bytes, step_flop
from bench.net_cost import Net
from swap_fast.models import ResNet9

BATCH = 2
NETS = {
    "resnet9": (lambda: ResNet9(10, 16), net_cost.resnet9(16, 10), 32),
    "resnet9 of CIFAR-100": (lambda: ResNet9(100, 8), net_cost.resnet9(8, 100), 32),
    "resnet50": (torchvision_resnet50, net_cost.resnet50(64), 64),
    "resnet50 at an odd size": (torchvision_resnet50, net_cost.resnet50(72), 72),
}


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Net, Tensor]:
    make, net, side = NETS[request.param]
    return make(), net, torch.randn(BATCH, 3, side, side)


def test_operations_are_torch_s(case: tuple[nn.Module, Net, Tensor]) -> None:
    model, net, images = case
    assert (BATCH * net.forward_flop, BATCH * net.train_flop) == step_flop(model, images)


def test_memory_traffic_is_what_is_counted_over_the_net(
    case: tuple[nn.Module, Net, Tensor],
) -> None:
    model, net, images = case
    # What another batch adds: its activations, and positions written once and read once.
    added = step_bytes(model, torch.cat([images, images])) - step_bytes(model, images)
    values = sum(layer.forward_values + layer.backward_values for layer in net.layers)
    positions = 2 * sum(layer.saved_indices for layer in net.layers)
    if not isinstance(model, ResNet9):
        # `step_bytes` has ResNet-9's layers: no sum at a block's end, no pool over all places.
        channels, side = model.fc.in_features, math.ceil(images.shape[-1] / 32)
        values -= 2 * channels * side**2
        for group, at in zip(
            (model.layer1, model.layer2, model.layer3, model.layer4), (4, 8, 16, 32), strict=True
        ):
            for block in group:
                values -= 6 * block.conv3.out_channels * math.ceil(images.shape[-1] / at) ** 2
    assert added == BATCH * (4 * values + 8 * positions)


def test_parameters_are_torch_s(case: tuple[nn.Module, Net, Tensor]) -> None:
    model, net, _ = case
    assert net.parameters == sum(p.numel() for p in model.parameters())


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


def test_the_paper_s_net() -> None:
    net = net_cost.resnet9(64, 10)
    assert net.parameters == 6_573_120
    assert net.forward_flop == 2 * 379_261_952
    assert net.train_flop == pytest.approx(2.272e9, rel=1e-4)


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
