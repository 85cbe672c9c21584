"""The check of launches, over a profile of known events in place of a device's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, record_function

from bench.verify import step as checks
from bench.verify.check import Form


@pytest.mark.parametrize(
    ("before", "events", "expected"),
    [
        (0, ("cudaGraphLaunch",), "50 updates, 50 graph launches, no other"),
        (1, ("cudaGraphLaunch",), "50 updates made 49 graph launches"),
        (0, ("cudaGraphLaunch",) * 2, "50 updates made 100 graph launches"),
        (0, ("cudaGraphLaunch", "cudaLaunchKernel"), "launched 50 kernels outside the graph"),
    ],
)
def test_launches_are_counted_and_torch_warns_of_nothing(
    before: int, events: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = 0

    def step() -> None:
        nonlocal updates
        updates += 1
        if updates > before:
            for name in events:
                with record_function(name):
                    pass

    loaded: list[int] = []
    started = SimpleNamespace(start_epoch=lambda *_, **__: None, before=loaded.append)
    step.feed = started  # type: ignore[attr-defined]
    monkeypatch.setattr(checks, "Trained", lambda *_, **__: SimpleNamespace(step=step))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    on_a_cpu = SimpleNamespace(CPU=ProfilerActivity.CPU, CUDA=ProfilerActivity.CPU)
    monkeypatch.setattr(torch.profiler, "ProfilerActivity", on_a_cpu)
    try:
        told = checks.launches(Form(device_type="cuda"))
    except AssertionError as failure:
        told = str(failure)
    assert expected in told
    assert loaded == [*range(50)]
