"""ResNet-9 against its published size and a layer-by-layer calculation in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from swap_fast.models import ResNet9

Array = NDArray[np.float64]


def convolve(x: Array, kernel: Array) -> Array:
    """3x3, stride 1, padding 1, as a sum over the nine shifts of the image."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(  # type: ignore[return-value]
        np.einsum(
            "bihw,oi->bohw", padded[:, :, dy : dy + height, dx : dx + width], kernel[:, :, dy, dx]
        )
        for dy in range(3)
        for dx in range(3)
    )


def pool(x: Array, side: int) -> Array:
    """Maximum over squares that do not overlap."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // side, side, w // side, side).max((3, 5))


def numpy_resnet9(state: dict[str, Array], images: Array, *, train: bool) -> Array:
    """The forward pass in the paper's order: convolution, batch norm, ReLU, pool."""

    def block(x: Array, name: str, pooling: int = 1) -> Array:
        x = convolve(x, state[f"{name}.conv.weight"])
        if train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        else:
            mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        scale = state[f"{name}.bn.weight"] / np.sqrt(var + 1e-5)
        x = (x - mean[:, None, None]) * scale[:, None, None]
        x = np.maximum(x + state[f"{name}.bn.bias"][:, None, None], 0)
        return pool(x, pooling)

    def residual(x: Array, name: str) -> Array:
        return x + block(block(x, f"{name}.block1"), f"{name}.block2")

    x = block(images, "prep")
    x = residual(block(x, "layer1.0", 2), "layer1.1")
    x = block(x, "layer2", 2)
    x = residual(block(x, "layer3.0", 2), "layer3.1")
    x = pool(x, 4)[:, :, 0, 0]
    return x @ state["linear.weight"].T * 0.125


def random_net(width: int = 4) -> ResNet9:
    """Every weight and statistic drawn, so that none is at its neutral 0 or 1."""
    torch.manual_seed(0)
    model = ResNet9(width=width)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bn.weight" in name or "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif "bn.bias" in name or "running_mean" in name:
                tensor.normal_(0, 0.3)
    return model


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 6_573_120), (100, 6_619_200)])
def test_parameters(num_classes: int, expected: int) -> None:
    with torch.device("meta"):
        model = ResNet9(num_classes)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_multiply_accumulates_of_an_image() -> None:
    with torch.device("meta"):
        model, image = ResNet9(), torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(image)
    # The counter takes two operations for a multiply-accumulate.
    assert counter.get_total_flops() == 2 * 379_261_952
    layers = [
        (3, 64, 32),
        (64, 128, 32),
        *[(128, 128, 16)] * 2,
        (128, 256, 16),
        (256, 512, 8),
        *[(512, 512, 4)] * 2,
    ]
    by_hand = sum(9 * i * o * side**2 for i, o, side in layers) + 512 * 10
    assert by_hand == 379_261_952


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_logits_are_numpy_s(train: bool, channels_last: bool) -> None:
    model = random_net().train(train)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    state = {name: t.double().numpy().copy() for name, t in model.state_dict().items()}
    expected = numpy_resnet9(state, images.double().numpy(), train=train)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
    logits = model(images.to(memory_format=memory_format)).detach().double().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def functional_resnet9(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The net in torch's functions, each block with its pool after its ReLU."""

    def block(x: Tensor, name: str, pooling: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        weight, bias = state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]
        x = F.relu(F.batch_norm(x, None, None, weight, bias, training=True))
        return F.max_pool2d(x, pooling) if pooling > 1 else x

    def residual(x: Tensor, name: str) -> Tensor:
        return x + block(block(x, f"{name}.block1"), f"{name}.block2")

    x = residual(block(block(images, "prep"), "layer1.0", 2), "layer1.1")
    x = residual(block(block(x, "layer2", 2), "layer3.0", 2), "layer3.1")
    return F.linear(F.max_pool2d(x, 4).flatten(1), state["linear.weight"]) * 0.125


def test_gradients_are_those_of_a_pool_after_the_relu() -> None:
    model = random_net().double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([3, 1, 4, 1])
    parameters = dict(model.named_parameters())
    F.cross_entropy(model(images), labels).backward()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    loss = F.cross_entropy(functional_resnet9(leaves, images), labels)
    gradients: Any = torch.autograd.grad(loss, list(leaves.values()))
    for (name, parameter), expected in zip(parameters.items(), gradients, strict=True):
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-14)


def test_torch_s_initial_batch_norm() -> None:
    norms = [m for m in ResNet9(width=2).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 8
    for norm in norms:
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
