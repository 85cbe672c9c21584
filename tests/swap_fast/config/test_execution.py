"""Precision and memory format."""

from __future__ import annotations

import pytest
import torch
from small_trainer import SmallNet

from swap_fast.config.execution import Execution, default_execution

CPU = torch.device("cpu")


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_models_and_images_have_the_format(memory_format: str) -> None:
    execution = Execution(memory_format=memory_format)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = SmallNet()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert execution.place(model, CPU) is model
    kernel = model.get_parameter("body.0.weight")
    last = memory_format == "channels_last"
    assert kernel.is_contiguous(memory_format=torch.channels_last) is last
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    images = execution.empty_images((2, 3, 8, 8), CPU)
    assert images.is_contiguous(memory_format=torch.channels_last) is last
    assert images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_matrix_work_is_done_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    execution = Execution(precision=precision)  # type: ignore[arg-type]
    assert execution.empty_images((1, 3, 4, 4), CPU).dtype == dtype
    linear = torch.nn.Linear(3, 2)
    with execution.autocast():
        assert linear(torch.ones(1, 3)).dtype == dtype
    assert linear.weight.dtype == torch.float32
    assert linear(torch.ones(1, 3)).dtype == torch.float32


def test_defaults() -> None:
    assert default_execution("cpu") == Execution(device_type="cpu", precision="fp32")
    on_gpu = Execution(device_type="cuda", precision="fp16", capture=True)
    assert default_execution("cuda") == on_gpu
    assert Execution().memory_format == "channels_last"
    assert Execution().step == "eager"


def test_one_bucket_goes_unsaid_as_in_older_records() -> None:
    assert "all_reduce_buckets" not in Execution().settings()
    assert Execution(all_reduce_buckets=3).settings()["all_reduce_buckets"] == 3
    assert Execution(**Execution().settings()) == Execution()
