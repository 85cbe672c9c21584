"""When the gradient's all-reduce is worth summing in buckets beside the backward pass. No torch.

Planned: no device was at hand. The buckets are those of `swap_fast.training.all_reduce` for a
net whose parameters are in one group.
"""

from dataclasses import dataclass, replace

from bench.net_cost import WEIGHT_BYTES
from bench.planner.model import Modelled, all_reduce_bytes, all_reduce_s, backward_s
from bench.planner.workload import PhaseWork, Workload
from swap_fast.config.buckets import cut_sizes

PCIE_BYTES_S = {"V100": 16e9, "A100": 32e9, "H100": 64e9}
"""By the start of a device's name: one way, 16 lanes of the generation (3, 4, 5) that it has."""
PASSES = 3
"""Over memory, of each byte that an all-reduce sends: a ring reads what came and its own part, and
what it sends is written at the other device. Beside a backward pass, that one waits for them."""
MOST_BUCKETS = 4

OVERLAP_ASSUMED = (
    f"Assumed of buckets: each byte sent costs the backward pass beside it {PASSES} passes over "
    "memory, and no multiprocessors; each bucket has the latency of an all-reduce; gradients are "
    "ready layer by layer, which those of a compiled step are not; PCIe has 16 lanes at their "
    "nominal speed, shared with nothing."
)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """By how much an update is longer than one without an all-reduce."""

    after_s: float
    """Summed at once, after the backward pass."""
    num_buckets: int
    """With which least is left; 1: none is faster than that."""
    left_s: float
    """Of them: what is summed after the backward pass, and by how much that one is slower."""

    @property
    def saved_s(self) -> float:
        """Of an update."""
        return self.after_s - self.left_s


def overlap(phase: PhaseWork, speed: Modelled, gpus: int) -> Overlap:
    """The number of buckets that adds the least time to an update, for a model on `gpus` GPUs."""
    whole = phase.net.parameters * WEIGHT_BYTES
    after_s = speed.efficiency.slowdown * all_reduce_s(whole, gpus, speed.hardware)
    counts = range(2, MOST_BUCKETS + 1)
    best = min(counts, key=lambda count: left_s(phase, speed, gpus, count))
    found_s = left_s(phase, speed, gpus, best)
    if found_s >= after_s:
        return Overlap(after_s=after_s, num_buckets=1, left_s=after_s)
    return Overlap(after_s=after_s, num_buckets=best, left_s=found_s)


def left_s(phase: PhaseWork, speed: Modelled, gpus: int, num_buckets: int) -> float:
    """By how much an update with that many buckets is longer than one without an all-reduce."""
    hardware, slowdown = speed.hardware, speed.efficiency.slowdown
    factor = slowdown * phase.micro_batch_size
    whole_s = factor * sum(backward_s(layer, hardware) for layer in phase.net.layers)
    buckets = cut_sizes([layer.parameters for layer in phase.net.layers], num_buckets)
    now_s = summed_s = slower_s = 0.0
    for number, layers in enumerate(buckets, start=1):
        num_bytes = WEIGHT_BYTES * sum(phase.net.layers[i].parameters for i in layers)
        now_s += factor * sum(backward_s(phase.net.layers[i], hardware) for i in layers)
        took_s = slowdown * all_reduce_s(num_bytes, gpus, hardware)
        summed_s = max(now_s + slower_s, summed_s) + took_s
        if number < len(buckets):
            sent = all_reduce_bytes(num_bytes, min(gpus, hardware.gpus_per_node))
            slower_s += slowdown * PASSES * sent / hardware.memory_bytes_s
    return max(summed_s, whole_s + slower_s) - whole_s


def by_link(speed: Modelled) -> dict[str, Modelled]:
    """The speed with each kind of link between the devices of a node."""
    hardware, links = speed.hardware, {"NVLink": speed}
    for kind, bytes_s in PCIE_BYTES_S.items():
        if hardware.name.startswith(kind):
            slow = replace(hardware, link_bytes_s=bytes_s)
            links[f"PCIe ({bytes_s / 1e9:g} GB/s)"] = replace(speed, hardware=slow)
    return links


def overlap_line(work: Workload, speed: Modelled, gpus: int) -> str | None:
    """Of the first phase whose models have several devices; None where there is none."""
    phase = next((p for p in work.phases if min(gpus, p.gpus_per_model) > 1), None)
    if phase is None:
        return None
    together = min(gpus, phase.gpus_per_model)
    image_s = sum(backward_s(layer, speed.hardware) for layer in phase.net.layers)
    backward_ms = 1e3 * speed.efficiency.slowdown * phase.micro_batch_size * image_s
    found = {link: overlap(phase, at, together) for link, at in by_link(speed).items()}
    words = "; ".join(f"by {link} {_words(each, phase)}" for link, each in found.items())
    return (
        f"Planned, for {phase.name}: an all-reduce of "
        f"{phase.net.parameters * WEIGHT_BYTES / 1e6:.1f} MB among {together} GPUs takes, after a "
        f"backward pass of {backward_ms:.2f} ms or in buckets beside it (--all-reduce-buckets): "
        f"{words}."
    )


def _words(found: Overlap, phase: PhaseWork) -> str:
    after = f"{1e3 * found.after_s:.2f} ms"
    if found.num_buckets == 1:
        return f"{after}, and no less in buckets"
    return (
        f"{after}, or {1e3 * found.left_s:.2f} ms in {found.num_buckets} buckets, "
        f"{phase.steps * found.saved_s:.2f} s less of the phase"
    )
