"""Observed facts of a step: launch counts from events, memory, the first update."""

from __future__ import annotations

import mmap

import pytest
import torch

from bench.hardware.machine import peak_device_memory_gib, peak_memory_gib, resident_bytes
from bench.micro.peak import STEPS, count_launches, observe


def test_kernels_and_the_calls_that_start_them() -> None:
    events = [
        ("aten::mm", False, False),
        ("cudaLaunchKernel", False, True),
        ("cudaLaunchKernel", False, True),
        ("cudaMemcpyAsync", False, True),
        ("cudaGraphLaunch", False, True),
        ("volta_sgemm_128x64", True, True),
        ("vectorized_elementwise_kernel", True, True),
        ("Memcpy DtoD", True, True),
        ("Memset (Device)", True, True),
    ]
    assert count_launches(events, "cuda") == {"kernels": 2, "host_launches": 3}


def test_operators_that_no_other_called() -> None:
    events = [
        ("aten::linear", False, True),
        ("aten::addmm", False, False),
        ("aten::relu", False, True),
        ("cpp_fused_relu", False, True),
        ("ProfilerStep", False, False),
    ]
    assert count_launches(events, "cpu") == {"operators": 2}


def test_a_step_is_observed() -> None:
    calls = []
    kept: list[torch.Tensor] = []
    left, right = torch.ones(8, 8), torch.ones(8, 8)

    def make():  # type: ignore[no-untyped-def]
        kept.append(torch.ones(2**24))  # 64 MiB

        def step() -> None:
            calls.append("step")
            torch.mm(left, right, out=left)

        return step

    observed = observe(torch.device("cpu"), make, 3, prepare=lambda: calls.append("prepare"))
    assert calls == ["prepare", "step", *["step"] * STEPS]
    assert observed() == 3 * STEPS
    facts = observed.facts()
    assert facts["operators"] == 1
    assert facts["first_step_s"] > 0
    assert facts["peak_memory_bytes"] >= 0


def test_resident_memory_grows_with_what_is_kept() -> None:
    before, _ = resident_bytes()
    size = 2**26
    kept = mmap.mmap(-1, size)  # pages of its own: malloc may have freed ones at hand
    kept.write(b"1" * size)
    now, peak = resident_bytes()
    assert now - before > 0.9 * size
    assert peak >= now
    assert peak_memory_gib() * 2**30 >= peak


def test_the_device_s_peak_is_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    assert peak_device_memory_gib("cuda") == (3, 1)
    assert peak_device_memory_gib("cpu") == (None, None)


@pytest.mark.gpu
def test_a_captured_step_is_one_launch() -> None:
    from bench.micro.step import our_step
    from swap_fast.config.execution import Execution

    facts = our_step(Execution(device_type="cuda", precision="fp16", capture=True), 4, 8).facts()
    assert facts["host_launches"] < 5 < facts["kernels"]
    assert facts["peak_memory_bytes"] > 0
