"""Winograd's form of a 3x3 convolution against torch's own, by itself and in a training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.micro.step import make_step
from swap_fast.config.execution import Execution
from swap_fast.models import ResNet9, winograd
from swap_fast.models.layers import Convolution

SHAPES = [
    # batch, inputs, outputs, height, width
    (1, 1, 1, 1, 1),
    (3, 2, 5, 3, 3),
    (2, 7, 3, 4, 4),
    (5, 3, 4, 7, 9),  # tiles that reach over both borders
    (11, 4, 2, 32, 17),  # several turns, the last of fewer images
    (130, 2, 3, 8, 4),
]


def tensors(
    batch: int, inputs: int, outputs: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, filters and a gradient by the output, in float64."""
    torch.manual_seed(0)
    images = torch.randn(batch, inputs, height, width, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=torch.float64)
    return images, weight, torch.randn(batch, outputs, height, width, dtype=torch.float64)


def results(convolve: object, images: Tensor, weight: Tensor, by_output: Tensor) -> list[Tensor]:
    """The output, and the gradients by images and filters."""
    assert callable(convolve)
    images, weight = images.clone().requires_grad_(), weight.clone().requires_grad_()
    out = convolve(images, weight)
    out.backward(by_output)
    assert images.grad is not None
    assert weight.grad is not None
    return [out.detach(), images.grad, weight.grad]


def torch_s(images: Tensor, weight: Tensor) -> Tensor:
    """The reference."""
    return functional.conv2d(images, weight, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_torch_s_convolution(
    shape: tuple[int, int, int, int, int], layout: torch.memory_format
) -> None:
    images, weight, by_output = (t.contiguous(memory_format=layout) for t in tensors(*shape))
    expected = results(torch_s, images, weight, by_output)
    for got, right in zip(
        results(winograd.convolve, images, weight, by_output), expected, strict=True
    ):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-12 * right.abs().max().item())


@pytest.mark.parametrize("side", [3, 8, 16])
def test_its_rounding_in_float32(side: int) -> None:
    exact = tensors(33, 64, 48, side, side)
    single = results(winograd.convolve, *(t.float() for t in exact))
    for got, right in zip(single, results(torch_s, *exact), strict=True):
        assert (got.double() - right).norm() < 1e-5 * right.norm()


def test_images_that_want_no_gradient_get_none() -> None:
    images, weight, by_output = tensors(2, 3, 4, 6, 6)
    weight.requires_grad_()
    winograd.convolve(images, weight).backward(by_output)
    assert images.grad is None
    by_weight = torch.nn.grad.conv2d_weight(images, (4, 3, 3, 3), by_output, padding=1)
    torch.testing.assert_close(weight.grad, by_weight)


def test_wide_layers_alone_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Execution(step="winograd").place(ResNet9(width=16), torch.device("cpu"))
    convolved: list[tuple[int, ...]] = []

    def convolve(images: Tensor, weight: Tensor) -> Tensor:
        convolved.append(tuple(weight.shape[:2]))
        return torch_s(images, weight)

    monkeypatch.setattr(winograd, "convolve", convolve)
    images = torch.randn(2, 3, 32, 32)
    net(images)
    assert convolved == [(128, 64), (128, 128), (128, 128)]
    Execution().choose_kernels_(net)
    net(images)
    assert len(convolved) == 3


@pytest.mark.parametrize(
    "settings", [{"device_type": "cuda"}, {"precision": "bf16"}, {"memory_format": "contiguous"}]
)
def test_it_is_for_cpus_in_fp32_and_channels_last(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="step winograd: expected a CPU, fp32 and channels_last"):
        Execution(step="winograd", **settings)  # type: ignore[arg-type]


def test_twenty_updates_are_the_eager_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Convolution, "pairs", 1_000_000)  # every layer of a narrow net
    losses, weights = [], []
    for name in ("eager", "winograd"):
        torch.manual_seed(0)
        step, _ = make_step(Execution(step=name), 4, 16)  # type: ignore[arg-type]
        step.images.normal_()
        step.labels.copy_(torch.arange(16) % 10)
        step.set_learning_rate(0.002)  # rounding grows with the rate
        for _ in range(20):
            step()
        losses.append(step.loss_sum.item())
        weights.append(step._weights.theta.clone())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (weights[1] - weights[0]).norm() < 1e-3 * weights[0].norm()
    assert not torch.equal(*weights)
