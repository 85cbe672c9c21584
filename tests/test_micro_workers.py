"""Stacked forms of several workers give each the gradients that it has alone."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from bench import micro_workers
from bench.footprint import STEPS
from bench.micro_workers import group, grouped_losses, stacked_gradients
from swap_fast.execution import Execution
from swap_fast.models import ResNet9

W, B = 3, 8


def make_workers() -> tuple[list[nn.Module], Tensor, Tensor]:
    torch.manual_seed(0)
    models: list[nn.Module] = [ResNet9(width=4).double().train() for _ in range(W)]
    images = torch.randn(W, B, 3, 32, 32, dtype=torch.float64)
    return models, images, torch.randint(10, (W, B))


def alone(
    models: list[nn.Module], images: Tensor, labels: Tensor
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Each worker's gradients and loss from a pass of its own; its statistics are updated."""
    losses = []
    for model, x, y in zip(models, images, labels, strict=True):
        loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        losses.append(loss.detach())
    return [
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for model in models
    ], torch.stack(losses)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_vmapped_gradients_and_statistics_are_the_workers_own() -> None:
    models, images, labels = make_workers()
    parameters, buffers = stack_module_state(models)
    gradients, losses = stacked_gradients(models[0], parameters, buffers, images, labels)
    expected, expected_losses = alone(models, images, labels)
    assert_close(losses, expected_losses)
    for worker in range(W):
        for name, gradient in expected[worker].items():
            assert_close(gradients[name][worker], gradient)
        for name, buffer in models[worker].named_buffers():
            assert_close(buffers[name][worker].double(), buffer.double())


def test_grouped_gradients_and_statistics_are_the_workers_own() -> None:
    models, images, labels = make_workers()
    model = group(models)
    losses = grouped_losses(model, images, labels)
    losses.sum().backward()
    expected, expected_losses = alone(models, images, labels)
    assert_close(losses.detach(), expected_losses)
    shapes = dict(models[0].named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        apart = parameter.grad.view(W, *shapes[name].shape)
        for worker in range(W):
            assert_close(apart[worker], expected[worker][name])
    for name, buffer in model.named_buffers():
        if buffer.dim() > 0:
            apart = buffer.view(W, -1)
            for worker in range(W):
                assert_close(apart[worker], models[worker].get_buffer(name))


def test_the_stack_is_a_copy() -> None:
    models, images, labels = make_workers()
    before = [p.clone() for p in models[0].parameters()]
    grouped_losses(group(models), images, labels).sum().backward()
    assert all(p.grad is None for p in models[0].parameters())
    assert all(map(torch.equal, models[0].parameters(), before))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["in_turn", "grouped", "vmapped"])
def test_the_ways_take_the_images_they_count(name: str, precision: Literal["fp32", "bf16"]) -> None:
    way = getattr(micro_workers, name)
    assert way(Execution(precision=precision), 2, 4, 2)() == 2 * 4 * STEPS


def test_a_scaled_loss_has_scaled_gradients() -> None:
    models, images, labels = make_workers()
    parameters, buffers = stack_module_state(models)
    plain, _ = stacked_gradients(models[0], parameters, buffers, images, labels)
    scaled, _ = stacked_gradients(
        models[0], parameters, buffers, images, labels, lambda loss: 1024 * loss
    )
    for name, gradient in plain.items():
        assert_close(scaled[name] / 1024, gradient)


@pytest.mark.gpu
def test_streams_and_captured_stacks_on_a_device() -> None:
    execution = Execution(device_type="cuda", precision="fp16", capture=True)
    for way in (micro_workers.in_turn, micro_workers.grouped, micro_workers.on_streams):
        assert way(execution, 4, 8, 2)() == 2 * 8 * STEPS
    eager = Execution(device_type="cuda", precision="fp16")
    assert micro_workers.vmapped(eager, 4, 8, 2)() == 2 * 8 * STEPS
