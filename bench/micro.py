"""`python -m bench micro`: measures a part of the work beside others' ways, in one run."""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench import micro_data, micro_step
from bench.alternation import Timing, Way, Work, alternate
from bench.machine import (
    available_cores,
    choose_device,
    describe_code,
    describe_machine,
    has_compiler,
)
from bench.options import MicroOptions
from swap_fast.config import LoaderName
from swap_fast.data.loaders import missing_for_dali


def measure(options: MicroOptions) -> int:
    """Time every way, print a table, and keep a JSON record where one is wanted."""
    device = choose_device(options.device)
    threads = options.threads or available_cores()
    groups = (step_ways if options.what == "step" else data_ways)(options, device, threads)
    results: dict[str, list[Timing]] = {}
    print(f"{options.rounds} rounds; images/s; ratio = the first way over this one, round by round")
    for title, ways in groups.items():
        print(f"\n{title}\n{'':<52} {'median':>10} {'min':>10} {'max':>10}   ratio (min..max)")
        results[title] = alternate(ways, rounds=options.rounds)
        for timing in results[title]:
            low, middle, high = timing.ratio
            speeds = timing.images_per_s
            print(
                f"{timing.name:<52} {timing.median:>10,.0f} {min(speeds):>10,.0f} "
                f"{max(speeds):>10,.0f}   {middle:5.2f} ({low:.2f}..{high:.2f})"
            )
    if options.out is not None:
        print(f"\nrecord: {_write(options, device, threads, results)}")
    return 0


def step_ways(options: MicroOptions, device: str, threads: int) -> dict[str, list[Way]]:
    """The step, the loop around it, and the batch-norm pass."""
    size = (device, options.width, options.batch_size)
    ours = Way(name="ours", make=micro_step.our_step, arguments=size, threads=threads)
    ways = [ours]
    if device == "cpu" and threads > 1:
        apart = f"ours, {threads} processes of 1 thread (what runs use)"
        ways.insert(0, Way(name=apart, make=micro_step.our_step, arguments=size, processes=threads))
    compiles = (False, True) if device == "cuda" or has_compiler() else (False,)
    if len(compiles) == 1:
        print("no C++ compiler: the compiled ways are left out")
    for compiled in compiles:
        for channels_last in (False, True):
            name = f"torch, {'compiled' if compiled else 'eager'}, "
            name += "channels_last" if channels_last else "NCHW"
            arguments = (*size, compiled, channels_last)
            ways.append(
                Way(name=name, make=micro_step.torch_step, arguments=arguments, threads=threads)
            )
    return {
        "the step": ways,
        "the loop around it: input, schedule, metrics, clock": [
            Way(name="the loop", make=micro_step.our_loop, arguments=size, threads=threads),
            ours,
        ],
        "the batch-norm pass": [
            Way(
                name=name,
                make=micro_step.batch_norm_pass,
                arguments=(*size, mine),
                threads=threads,
            )
            for name, mine in (("ours", True), ("torch's update_bn", False))
        ],
    }


def data_ways(options: MicroOptions, device: str, threads: int) -> dict[str, list[Way]]:
    """Augmented batches of CIFAR size, in each type and with one thread and all of them."""
    groups: dict[str, list[Way]] = {}
    for dtype in micro_data.DTYPES:
        for count in sorted({1, threads}):
            form = f"{dtype}, {count} thread{'s' if count > 1 else ''}"
            ours, dali = data_group(device, options.batch_size, dtype, count)
            groups[f"augmented batches, {form}"] = ours
            if dali:
                groups[f"DALI's own, {form}"] = dali
    return groups


def data_group(
    device: str, batch_size: int, dtype: str, threads: int
) -> tuple[list[Way], list[Way]]:
    """Our loaders beside others' ways and a copy; and ours of DALI beside DALI alone."""
    size = (device, batch_size, dtype)

    def way(name: str, make: Callable[..., Work], *arguments: object) -> Way:
        return Way(name=name, make=make, arguments=arguments, threads=threads)

    def ours(loader: LoaderName) -> Way:
        return way(f"ours, {loader}", micro_data.our_batches, loader, *size)

    dali = []
    if missing_for_dali(device) is None:
        operators = "DALI alone: the same operators, batches that lie ready"
        dali = [
            ours("dali"),
            way(operators, micro_data.bare_dali, *size, threads),
            way("DALI alone: its own crop and flip", micro_data.stock_dali, *size, threads),
        ]
    processes = f"{threads} process{'es' if threads > 1 else ''}"
    stock = f"torchvision v2, DataLoader, {processes}"
    ways = [
        ours("tensor"),
        *dali[:1],
        ours("torchvision"),
        way("whole-epoch crop and flip, as airbench", micro_data.whole_epoch_crop, *size),
        way(stock, micro_data.torchvision_loader, batch_size, dtype, threads),
        way("floor: read bytes, write values", micro_data.copy_floor, *size),
    ]
    return ways, dali


def _write(
    options: MicroOptions, device: str, threads: int, results: dict[str, list[Timing]]
) -> Path:
    assert options.out is not None
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = {
        "created": created,
        "what": options.what,
        "width": options.width,
        "batch_size": options.batch_size,
        "threads": threads,
        "rounds": options.rounds,
        "code": describe_code(),
        "machine": describe_machine(device),
        "results": {title: [asdict(t) for t in timings] for title, timings in results.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = created[:19].replace(":", "").replace("-", "")
    path = options.out / f"micro-{options.what}-{device}-{stamp}.json"
    with open(path, "x", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
    return path
