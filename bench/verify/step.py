"""What only a GPU can confirm of the step, one check each; most have a form for CPUs."""

import time
from dataclasses import replace

import torch
from torch import nn

from bench.hardware.machine import device_uuid, has_compiler, resident_bytes
from bench.hardware.telemetry import Sampler
from bench.verify.check import Check, Form, UnavailableError
from bench.verify.contract import BATCH, Trained, growth, largest_difference, same_kernels
from swap_fast.config.execution import Execution, default_execution
from swap_fast.models import ResNet9
from swap_fast.training.batchnorm import StatisticsPass
from swap_fast.training.capture import Captures
from swap_fast.training.clock import Clock
from swap_fast.training.weights import Weights


def _execution(device_type: str) -> Execution:
    """fp16 with its loss scale on both; captured where that can be."""
    return replace(default_execution(device_type), precision="fp16")


def replay(form: Form) -> str:
    """The captured step beside the eager one; on a CPU its trace."""
    tolerance = 1e-3 if form.device_type == "cuda" else 0.0
    with same_kernels():
        # Each device's own precision: what is compared is the replay, not the rounding.
        execution = default_execution(form.device_type)
        difference = max(
            largest_difference(execution, scaled=True, measured=measured)
            for measured in (False, True)
        )
    assert difference <= tolerance, f"differs by {difference:.1e}, allowed {tolerance:g}"
    return f"largest relative difference over 20 updates {difference:.1e}"


def statistics(form: Form) -> str:
    """Phase 3's pass, captured where that can be, against torch's own `update_bn`."""
    execution = _execution(form.device_type)
    device = torch.device(form.device_type)
    torch.manual_seed(0)
    weights = Weights(execution.place(ResNet9(width=8), device))
    batches = [torch.randn(64, 3, 32, 32, device=device).to(execution.dtype) for _ in range(3)]
    batches = [batch.to(memory_format=execution.format) for batch in batches]
    with execution.autocast():
        torch.optim.swa_utils.update_bn(batches, weights.model)
    theirs = weights.statistics.clone()
    # The same batches in one buffer, so that their passes are replays.
    buffer = execution.empty_images((64, 3, 32, 32), device)
    statistics_pass = StatisticsPass(weights, execution.autocast)
    captures = Captures() if execution.capture else None
    statistics_pass.warm_up(buffer, captures=captures)
    statistics_pass(buffer.copy_(batch) for batch in batches)
    means = len(theirs) // 2
    # update_bn takes the mean of the batches' variances, which leaves out what is between them.
    difference = float(
        (weights.statistics - theirs)[:means].abs().max() / theirs[:means].abs().max()
    )
    assert difference < 1e-3, f"running means differ from torch's by {difference:.1e}"
    return f"running means within {difference:.1e} of torch's update_bn"


def launches(form: Form) -> str:
    """The profiler's count of graph launches."""
    if form.device_type != "cuda":
        raise UnavailableError("CUDA graphs")
    from torch.profiler import ProfilerActivity, profile

    trained = Trained(_execution(form.device_type), scaled=True)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    # One cycle, whose events are kept; without it, torch warns that another would drop them.
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
    """What 1,000 updates leave allocated."""
    device_type = form.device_type
    trained = Trained(_execution(device_type), scaled=True)

    def allocated() -> float:
        if device_type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.memory_reserved() + torch.cuda.memory_allocated()
        return resident_bytes()[0]

    times = 100 if form.small else 1000
    share = growth(trained.step, allocated, times=times)
    limit = 0.0 if device_type == "cuda" else 0.02
    assert share <= limit, f"memory grew by {share:.2%} over {times:,} updates"
    return f"memory grew by {share:.2%} over {times:,} updates"


def precision(form: Form) -> str:
    """Types and layouts of what flows through the net."""
    execution = _execution(form.device_type)
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
    """A first update whose gradient is not finite."""
    trained = Trained(_execution(form.device_type), scaled=True)
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
    """A compiled update beside an eager one."""
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
    difference = float((thetas[0] - thetas[1]).abs().max() / thetas[0].abs().max())
    assert difference < 1e-3, f"differs by {difference:.1e}"
    return f"within {difference:.1e} of the eager update"


def telemetry(form: Form) -> str:
    """What the driver tells of the device while it works."""
    device_type = form.device_type
    if device_type != "cuda":
        raise UnavailableError("a CUDA device")
    sampler, trained = Sampler(), Trained(_execution(device_type), scaled=True)
    clock = Clock(torch.cuda.synchronize, around=sampler.lap)
    with sampler.watching(device_uuid(device_type)):
        with clock.lap("phase1"):
            started = time.monotonic()
            while time.monotonic() - started < 3:
                trained.step()
        seen = sampler.finish()
    assert seen is not None
    if seen.missing:  # a slice, a virtual device, a container: see bench/hardware/nvml.py
        raise UnavailableError(", ".join(f"{what} ({why})" for what, why in seen.missing.items()))
    lap = seen.laps["phase1"]
    assert lap.energy_j is not None, "the driver counts no energy"
    assert lap.energy_j > 0, "no energy was counted"
    return f"{seen.device}: {lap.energy_j:.0f} J in 3 s of updates"


STEP_CHECKS = (
    Check(name="replay", claim="a captured step stays equal to the eager one", confirm=replay),
    Check(
        name="statistics",
        claim="the captured batch-norm pass agrees with torch's `update_bn`",
        confirm=statistics,
    ),
    Check(name="launches", claim="an update is one graph launch and no other", confirm=launches),
    Check(name="memory", claim="1,000 updates allocate nothing more", confirm=memory),
    Check(
        name="precision",
        claim="every layer computes in fp16 channels_last, from fp32 weights",
        confirm=precision,
    ),
    Check(
        name="overflow",
        claim="a first update that overflows leaves weights and velocity as they were",
        confirm=overflow,
    ),
    Check(
        name="compiled",
        claim="a compiled update agrees with the eager one",
        confirm=compiled,
        limit_s=180,
    ),
    Check(
        name="telemetry",
        claim="the driver tells the device's energy, clocks and throttling",
        confirm=telemetry,
    ),
)
