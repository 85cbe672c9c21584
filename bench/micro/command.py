"""`python -m bench micro`: times a part of the work and other implementations of it, in one run."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.hardware.machine import available_cores, describe_code, describe_machine, has_compiler
from bench.micro.collective import default_ranks, measure_collective, print_collective
from bench.micro.comparisons import (
    Groups,
    data_groups,
    jpeg_groups,
    peer_groups,
    step_groups,
    worker_groups,
)
from bench.micro.data import write_jpegs
from bench.micro.interleave import time_interleaved
from bench.micro.records import MicroRecord, Timing, write_micro_record
from bench.micro.step import Setup
from bench.micro.traffic import traffic_lines
from bench.options import MicroOptions
from swap_fast.choices import choose_device
from swap_fast.config.execution import default_execution
from swap_fast.data.cifar.files import locate_dataset
from swap_fast.record import now

DEFAULT_WIDTH = {"cpu": 16, "cuda": 64}
"""Channels of the first block: the CPU recipes', and the paper's."""


def measure(options: MicroOptions) -> int:
    """Time every variant, print a table, and write a JSON record with --out."""
    device = choose_device(options.device)
    threads = options.threads or available_cores()
    width = options.width or DEFAULT_WIDTH[device]
    make_record = partial(
        MicroRecord,
        what=options.what,
        created=now(),
        width=width,
        net=options.net,
        precision=options.precision,
        batch_size=(options.batch_sizes or (options.batch_size,))[0],
        threads=threads,
        rounds=options.rounds,
        code=describe_code(),
        machine=describe_machine(device),
    )
    if options.what == "collective":
        ranks = options.ranks or default_ranks(device)
        measured = measure_collective(device, ranks, width, options.rounds, options.largest)
        if os.environ.get("RANK", "0") != "0":
            return 0
        print_collective(measured)
        record = make_record(collective=measured)
    else:
        if not has_compiler():
            print("no C++ compiler: the compiled variants are left out")
        with TemporaryDirectory() as folder:
            groups, notes = _groups(options, device, threads, width, Path(folder))
            record = make_record(results=_time(groups, options.rounds), notes=tuple(notes))
    if options.out is not None:
        print(f"\nrecord: {write_micro_record(record, options.out)}")
    return 0


def _groups(
    options: MicroOptions, device: str, threads: int, width: int, folder: Path
) -> tuple[Groups, list[str]]:
    """The groups of variants, and notes for a reader of their figures.

    Arguments:
        folder: an empty one, for files that the variants read.
    """
    if options.what == "jpeg":
        return jpeg_groups(write_jpegs(folder), device, options.batch_size, threads), []
    if options.what == "data":
        return data_groups(device, options.batch_size, threads), []
    if options.what == "workers":
        return worker_groups(device, threads, width, options.batch_size), []
    batch_sizes = options.batch_sizes or (options.batch_size,)
    default = default_execution(device)
    if options.precision != "auto":
        default = replace(default, precision=options.precision)
    steps = step_groups(default, threads, width, batch_sizes, options.net)
    print(*traffic_lines(DEFAULT_WIDTH["cuda"], 256, options.net), sep="\n")
    if not options.peers:
        return steps, []
    data = None if options.dataset == "synthetic" else locate_dataset("cifar10", options.data)
    groups: Groups = {}
    for size in batch_sizes:
        if options.images < size:
            raise ValueError(f"images: expected at least one batch of {size}, got {options.images}")
        setup = Setup(
            execution=default_execution(device),
            width=width,
            batch_size=size,
            dataset="synthetic" if data is None else "cifar10",
            data=data,
            num_images=options.images // size * size,
        )
        groups |= peer_groups(device, threads, setup)
    shown = "synthetic images" if data is None else "CIFAR-10"
    note = f"Whole training: a turn is an epoch of {options.images:,} images of {shown}."
    return groups | steps, [note]


def _time(groups: Groups, rounds: int) -> dict[str, list[Timing]]:
    """Time the variants of each group, and print their speeds."""
    results: dict[str, list[Timing]] = {}
    print(f"{rounds} rounds; images/s; ratio = the first variant over this one, round by round")
    for title, variants in groups.items():
        print(f"\n{title}\n{'':<72} {'median':>10} {'min':>10} {'max':>10}   ratio (min..max)")
        results[title] = time_interleaved(variants, rounds=rounds)
        for timing in results[title]:
            print(_line(timing), flush=True)
    return results


def _line(timing: Timing) -> str:
    speeds = timing.per_s
    if timing.unit != "images":
        median, low, high = (x / 1e9 for x in (timing.median, min(speeds), max(speeds)))
        unit = "GFLOP/s" if timing.unit == "FLOP" else "GB/s"
        name = f"{timing.name}, {timing.processes} x {timing.threads}"
        return f"{name:<72} {median:>10,.1f} {low:>10,.1f} {high:>10,.1f}   {unit}"
    low, middle, high = timing.ratio
    return (
        f"{timing.name:<72} {timing.median:>10,.0f} {min(speeds):>10,.0f} "
        f"{max(speeds):>10,.0f}   {middle:5.2f} ({low:.2f}..{high:.2f})"
    )
