"""Checks of the step."""

import time
from dataclasses import replace

import torch
from torch import nn

from bench.hardware.machine import device_uuid, has_compiler, resident_bytes
from bench.hardware.telemetry import Sampler
from bench.verify.check import Form, UnavailableError
from bench.verify.equivalence import (
    BATCH,
    Trained,
    fp16_execution,
    growth,
    largest_difference,
    relative_difference,
    same_kernels,
)
from swap_fast.config.execution import default_execution
from swap_fast.models import ResNet9
from swap_fast.training.batchnorm import BatchNormRecompute
from swap_fast.training.capture import Captures
from swap_fast.training.clock import Clock
from swap_fast.training.weights import Weights


def replay(form: Form) -> str:
    """Compare the captured step with the eager one; on a CPU its trace."""
    tolerance = 1e-3 if form.device_type == "cuda" else 0.0
    with same_kernels():
        # In each device's default precision: this compares the replay, not the rounding.
        execution = default_execution(form.device_type)
        difference = max(
            largest_difference(execution, scaled=True, measured=measured)
            for measured in (False, True)
        )
    assert difference <= tolerance, f"differs by {difference:.1e}, allowed {tolerance:g}"
    return f"largest relative difference over 20 updates {difference:.1e}"


def statistics(form: Form) -> str:
    """Compare phase 3's pass, captured on a GPU, with torch's own `update_bn`."""
    execution = fp16_execution(form.device_type)
    device = torch.device(form.device_type)
    torch.manual_seed(0)
    weights = Weights(execution.place(ResNet9(width=8), device))
    batches = [torch.randn(64, 3, 32, 32, device=device).to(execution.dtype) for _ in range(3)]
    batches = [batch.to(memory_format=execution.format) for batch in batches]
    with execution.autocast():
        torch.optim.swa_utils.update_bn(batches, weights.model)
    theirs = weights.statistics.clone()
    # The same batches through one buffer, so that the passes are replays.
    buffer = execution.empty_images((64, 3, 32, 32), device)
    recompute_batchnorm = BatchNormRecompute(weights, execution.autocast)
    captures = Captures() if execution.capture else None
    recompute_batchnorm.warm_up(buffer, captures=captures)
    recompute_batchnorm(buffer.copy_(batch) for batch in batches)
    means = len(theirs) // 2
    # Means only: update_bn averages the batches' variances, without the variance between batches.
    difference = relative_difference(weights.statistics[:means], theirs[:means])
    assert difference < 1e-3, f"running means differ from torch's by {difference:.1e}"
    return f"running means within {difference:.1e} of torch's update_bn"


def launches(form: Form) -> str:
    """Count the graph launches of updates with the profiler."""
    if form.device_type != "cuda":
        raise UnavailableError("CUDA graphs")
    from torch.profiler import ProfilerActivity, profile

    trained = Trained(fp16_execution(form.device_type), scaled=True)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    # With `acc_events` torch does not warn that another cycle would drop the events.
    with profile(activities=activities, acc_events=True) as seen:
        for _ in range(50):
            trained.step()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in seen.key_averages()}
    graphs = sum(n for key, n in counts.items() if "GraphLaunch" in key)
    kernels = sum(n for key, n in counts.items() if "LaunchKernel" in key)
    assert graphs == 50, f"50 updates made {graphs} graph launches"
    assert kernels == 0, f"50 updates launched {kernels} kernels outside the graph"
    return "50 updates, 50 graph launches, no other"


def memory(form: Form) -> str:
    """Measure the memory that 1,000 updates leave allocated."""
    trained = Trained(fp16_execution(form.device_type), scaled=True)

    def allocated() -> float:
        if form.device_type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.memory_reserved() + torch.cuda.memory_allocated()
        return resident_bytes()[0]

    times = 100 if form.small else 1000
    share = growth(trained.step, allocated, times=times)
    text = f"memory grew by {share:.2%} over {times:,} updates"
    assert share <= (0.0 if form.device_type == "cuda" else 0.02), text
    return text


def precision(form: Form) -> str:
    """Record the type and layout of each layer's output."""
    execution = fp16_execution(form.device_type)
    weights = Weights(execution.place(ResNet9(width=8), torch.device(form.device_type)))
    seen: list[tuple[torch.dtype, bool]] = []
    for module in weights.model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, __, out: seen.append(
                    (out.dtype, out.is_contiguous(memory_format=torch.channels_last))
                )
            )
    images = execution.empty_images((4, 3, 32, 32), weights.theta.device).normal_()
    with execution.autocast():
        weights.model(images)
    assert len(seen) == 16, f"expected 16 layers, saw {len(seen)}"
    assert set(seen) == {(torch.float16, True)}, f"saw {sorted(set(map(str, seen)))}"
    assert {p.dtype for p in weights.model.parameters()} == {torch.float32}
    return "16 layers fp16 channels_last, weights and statistics fp32"


def overflow(form: Form) -> str:
    """Run a first update whose gradient is not finite."""
    trained = Trained(fp16_execution(form.device_type), scaled=True)
    theta, scale = trained.weights.theta.detach().clone(), trained.optimizer.scaler.get_scale()
    trained.step.images.fill_(torch.inf)
    trained.step.labels.zero_()
    trained.step.set_learning_rate(0.1)
    trained.step()
    assert torch.equal(trained.weights.theta.detach(), theta), "the weights moved"
    assert not trained.optimizer.velocity.any(), "the velocity moved"
    after = trained.optimizer.scaler.get_scale()
    assert after == scale / 2, f"the scale went from {scale:g} to {after:g}"
    return f"left out; the scale went from {scale:g} to {after:g}"


def compiled(form: Form) -> str:
    """Compare a compiled update with an eager one."""
    if form.device_type == "cpu" and not has_compiler():
        raise UnavailableError("a C++ compiler")
    thetas = []
    for compile_ in (False, True):
        execution = replace(default_execution(form.device_type), precision="fp32", compile=compile_)
        trained = Trained(execution, scaled=False)
        trained.step.images.copy_(
            torch.linspace(-2, 2, trained.step.images.numel()).view(BATCH, 3, 32, 32)
        )
        trained.step.set_learning_rate(0.01)
        trained.step()
        thetas.append(trained.weights.theta.detach().clone())
    difference = relative_difference(thetas[1], thetas[0])
    assert difference < 1e-3, f"differs by {difference:.1e}"
    return f"within {difference:.1e} of the eager update"


def telemetry(form: Form) -> str:
    """Sample the driver's figures during 3 s of updates."""
    if form.device_type != "cuda":
        raise UnavailableError("a CUDA device")
    sampler, trained = Sampler(), Trained(fp16_execution("cuda"), scaled=True)
    clock = Clock(torch.cuda.synchronize, around=sampler.lap)
    with sampler.watching(device_uuid("cuda")):
        with clock.lap("phase1"):
            started = time.monotonic()
            while time.monotonic() - started < 3:
                trained.step()
        seen = sampler.finish()
    assert seen is not None
    if seen.missing:  # a slice, a virtual device, a container: see bench/hardware/telemetry.py
        raise UnavailableError(", ".join(f"{what} ({why})" for what, why in seen.missing.items()))
    lap = seen.laps["phase1"]
    assert lap.energy_j is not None, "the driver counts no energy"
    assert lap.energy_j > 0, "no energy was counted"
    return f"{seen.device}: {lap.energy_j:.0f} J in 3 s of updates"
