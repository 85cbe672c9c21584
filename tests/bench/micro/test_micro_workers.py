"""Stacked forms of several workers give each the gradients that it has alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, stack_module_state, vmap

from bench.micro import workers as micro_workers
from bench.micro.comparisons import worker_groups
from bench.micro.peak import STEPS
from bench.micro.workers import group, grouped_losses, stacked_gradients
from swap_fast.config.execution import Execution
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
def test_the_variants_take_the_images_they_count(
    name: str, precision: Literal["fp32", "bf16"]
) -> None:
    make = getattr(micro_workers, name)
    assert make(Execution(precision=precision), 2, 4, 2)() == 2 * 4 * STEPS


def test_a_scaled_loss_has_scaled_gradients() -> None:
    models, images, labels = make_workers()
    parameters, buffers = stack_module_state(models)
    plain, _ = stacked_gradients(models[0], parameters, buffers, images, labels)
    scaled, _ = stacked_gradients(
        models[0], parameters, buffers, images, labels, lambda loss: 1024 * loss
    )
    for name, gradient in plain.items():
        assert_close(scaled[name] / 1024, gradient)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_on_a_fake_cuda_device_vmap_wants_contiguous_tensors(
    memory_format: Literal["contiguous", "channels_last"],
) -> None:
    execution = Execution(device_type="cuda", memory_format=memory_format)
    refused = memory_format == "channels_last"
    outcome = pytest.raises(RuntimeError, match="inside of vmap") if refused else nullcontext()
    with FakeTensorMode(), torch.device("cuda"), outcome:
        models: list[nn.Module] = [ResNet9(width=4) for _ in range(W)]
        for module in (module for model in models for module in model.modules()):
            if isinstance(module, nn.Conv2d):  # `place` swaps data, which fake tensors refuse
                weight = module.weight.detach().to(memory_format=execution.format)
                module.weight = nn.Parameter(weight)
        parameters, buffers = stack_module_state(models)
        with torch.no_grad():
            logits = vmap(lambda *own: functional_call(models[0], own[:2], own[2:]))(
                parameters, buffers, torch.randn(W, B, 3, 32, 32)
            )
        assert logits.shape == (W, B, 10)


def test_the_row_of_vmap_on_a_cuda_device_says_its_layout() -> None:
    for device, kind in (("cuda", "eager, contiguous"), ("cpu", "eager")):
        for variants in worker_groups(device, 1, 4, B).values():
            (variant,) = (each for each in variants if each.make is micro_workers.vmapped)
            assert variant.name == f"stacked: vmap over the weights, {kind}"
            expected = "contiguous" if device == "cuda" else "channels_last"
            assert variant.arguments[0].memory_format == expected


@pytest.mark.gpu
def test_streams_and_captured_stacks_on_a_device() -> None:
    execution = Execution(device_type="cuda", precision="fp16", capture=True)
    for make in (micro_workers.in_turn, micro_workers.grouped, micro_workers.on_streams):
        assert make(execution, 4, 8, 2)() == 2 * 8 * STEPS
    eager = Execution(device_type="cuda", precision="fp16", memory_format="contiguous")
    assert micro_workers.vmapped(eager, 4, 8, 2)() == 2 * 8 * STEPS
