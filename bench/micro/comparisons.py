"""Which ways of training stand beside each other: the step, whole loops, workers of phase 2."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bench.document.table import counted
from bench.hardware.machine import has_compiler
from bench.micro import data as micro_data
from bench.micro import data as micro_jpeg
from bench.micro import step as micro_peers
from bench.micro import step as micro_step
from bench.micro import workers as micro_workers
from bench.micro.interleave import Cost, Way, Work
from bench.micro.peak import roof_ways, step_cost
from bench.options import MicroOptions
from swap_fast.config.execution import DTYPES, Execution, default_execution
from swap_fast.config.recipe import LoaderName
from swap_fast.models import ResNet9
from swap_fast.tasks.cifar import missing_for_dali

# The groups of ways that `micro data` compares: our loaders, others', and a copy.


def data_ways(options: MicroOptions, device: str, threads: int) -> dict[str, list[Way]]:
    """Augmented batches of CIFAR size, in each type and with one thread and all of them."""
    groups: dict[str, list[Way]] = {}
    for dtype in micro_data.DTYPES:
        for count in sorted({1, threads}):
            form = f"{dtype}, {counted(count, 'thread')}"
            ours, dali = data_group(
                device, options.batch_size, dtype, count, is_headline=count == threads
            )
            groups[f"augmented batches, {form}"] = ours
            if dali:
                groups[f"DALI's own, {form}"] = dali
    return groups


def data_group(
    device: str, batch_size: int, dtype: str, threads: int, *, is_headline: bool = False
) -> tuple[list[Way], list[Way]]:
    """Our loaders beside others' ways and a copy; and ours of DALI beside DALI alone."""
    size = (device, batch_size, dtype)

    def way(name: str, make: Callable[..., Work], *arguments: object) -> Way:
        return Way(name=name, make=make, arguments=arguments, threads=threads)

    def ours(loader: LoaderName) -> Way:
        return replace(way(f"ours, {loader}", micro_data.our_batches, loader, *size), is_ours=True)

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
    others = [
        way("whole-epoch crop and flip, as airbench", micro_data.whole_epoch_crop, *size),
        way(stock, micro_data.torchvision_loader, batch_size, dtype, threads),
    ]
    ways = [
        ours("tensor"),
        *dali[:1],
        ours("torchvision"),
        *(replace(other, is_headline=is_headline) for other in others),
        way("floor: read bytes, write values", micro_data.copy_floor, *size),
    ]
    return ways, dali


def jpeg_ways(root: Path, device: str, batch_size: int, threads: int) -> dict[str, list[Way]]:
    """ImageNet's batches from JPEG files: our decoders beside torchvision's DataLoader."""
    size = (str(root), device, batch_size, threads)
    stock = f"torchvision v2, DataLoader, {threads} process{'es' if threads > 1 else ''}"
    ways = [
        Way(
            name="ours, torchvision",
            make=micro_jpeg.our_torchvision,
            arguments=size,
            is_ours=True,
        ),
        Way(
            name=stock,
            make=micro_jpeg.torchvision_jpeg_loader,
            arguments=(str(root), batch_size, threads),
            is_headline=True,
        ),
    ]
    if missing_for_dali(device) is None:
        ways.insert(
            0, Way(name="ours, DALI", make=micro_jpeg.our_dali, arguments=size, is_ours=True)
        )
    px, thread = micro_jpeg.PX, "thread" if threads == 1 else "threads"
    return {f"JPEG files of 500 x 375 pixels to {px} pixels, {threads} {thread}": ways}


Shape = tuple[int, int]
"""Processes, and threads of each."""
LOADER_PROCESSES = 8
"""At most: the stock loop has one a core."""
NUM_WORKERS = (2, 4)
"""W of the comparisons of phase 2."""


def our_executions(device: str) -> dict[str, Execution]:
    """The ways to run our step on a device, the default one first."""
    eager = replace(default_execution(device), capture=False)
    ways = {"eager": eager}
    if has_compiler():
        ways["compiled"] = replace(eager, compile=True)
    if device == "cuda":
        captured = {
            f"{name}, captured" if name != "eager" else "captured": replace(way, capture=True)
            for name, way in ways.items()
        }
        ways = captured | ways
    return ways


def our_shapes(device: str, threads: int) -> list[Shape]:
    """How the cores are shared out; first as runs do it: on a CPU, a process a core."""
    return [(threads, 1), (1, threads)] if device == "cpu" and threads > 1 else [(1, threads)]


def cost_of(width: int, batch_size: int, execution: Execution) -> Cost:
    """An image's cost in a step; compiled, its kernels are taken as fused."""
    return step_cost(
        ResNet9(width=width),
        batch_size,
        activation_bytes=DTYPES[execution.precision].itemsize,
        fused=execution.compile,
    )


def step_groups(
    device: str, threads: int, width: int, batch_sizes: tuple[int, ...]
) -> dict[str, list[Way]]:
    """The step at each batch size under the device's roof; its loop, and the batch-norm pass."""
    execution, batch_size = default_execution(device), batch_sizes[0]
    groups = {
        f"the step, batch {size}": list(_step_ways(device, threads, width, size))
        for size in batch_sizes
    }
    size = (execution, width, batch_size)
    groups["the loop around it: input, schedule, metrics, clock"] = [
        Way(name=name, make=make, arguments=size, threads=threads, is_ours=True)
        for name, make in (("the loop", micro_step.our_loop), ("ours", micro_step.our_step))
    ]
    groups["the batch-norm pass"] = [
        Way(
            name=name,
            make=micro_step.batch_norm_pass,
            arguments=(*size, mine),
            threads=threads,
            is_ours=mine,
        )
        for name, mine in (("ours", True), ("torch's update_bn", False))
    ]
    return groups


def _step_ways(device: str, threads: int, width: int, batch_size: int) -> Iterator[Way]:
    shapes = our_shapes(device, threads)
    for kind, execution in our_executions(device).items():
        for processes, each in shapes:
            yield Way(
                name=f"ours, {kind}{_in_processes(processes)}",
                make=micro_step.our_step,
                arguments=(execution, width, batch_size),
                processes=processes,
                threads=each,
                cost=cost_of(width, batch_size, execution),
                is_ours=True,
            )
    for compiled in (False, True) if has_compiler() else (False,):
        for layout in ("contiguous", "channels_last"):
            execution = replace(
                default_execution(device),
                capture=False,
                compile=compiled,
                memory_format="contiguous" if layout == "contiguous" else "channels_last",
            )
            name = f"torch, {'compiled' if compiled else 'eager'}, "
            yield Way(
                name=name + ("NCHW" if layout == "contiguous" else "channels_last"),
                make=micro_step.torch_step,
                arguments=(execution, width, batch_size),
                threads=threads,
                cost=cost_of(width, batch_size, execution),
            )
    yield from roof_ways(device, default_execution(device).precision, shapes)


def peer_groups(
    device: str,
    threads: int,
    width: int,
    batch_size: int,
    *,
    synthetic: bool,
    data: Path | None,
    num_images: int,
) -> dict[str, list[Way]]:
    """Whole loops over real batches, input included: ours, the stock loop, torch's best."""
    task = micro_peers.Task(
        execution=default_execution(device),
        width=width,
        batch_size=batch_size,
        dataset="synthetic" if synthetic else "cifar10",
        data=data,
        num_images=num_images,
    )
    eager = replace(task.execution, capture=False)
    ways = [
        Way(
            name=f"ours, crop, flip, cutout{_in_processes(processes)}",
            make=micro_peers.our_training,
            arguments=(task,),
            processes=processes,
            threads=each,
            cost=cost_of(width, batch_size, task.execution),
            is_ours=True,
        )
        for processes, each in our_shapes(device, threads)
    ]
    loaders = min(threads, LOADER_PROCESSES)
    ways.append(
        Way(
            name=f"stock: eager, NCHW, DataLoader of {loaders}, crop, flip, .item()",
            make=micro_peers.stock_training,
            arguments=(task, loaders),
            threads=threads,
            cost=cost_of(width, batch_size, eager),
            is_headline=True,
        )
    )
    modes: tuple[str | None, ...] = (None,)
    if has_compiler():
        modes = ("max-autotune", "reduce-overhead") if device == "cuda" else ("default",)
    for mode in modes:
        how = "eager" if mode is None else f"compiled ({mode})"
        ways.append(
            Way(
                name=f"torch's best practice: channels_last, {how}, fused SGD, crop, flip",
                make=micro_peers.best_practice_training,
                arguments=(task, mode),
                threads=threads,
                cost=cost_of(width, batch_size, replace(eager, compile=mode is not None)),
                is_headline=True,
            )
        )
    shapes = our_shapes(device, threads)
    ways += roof_ways(device, task.execution.precision, shapes)
    return {f"whole training, input included, batch {batch_size}": ways}


def worker_groups(device: str, threads: int, width: int, batch_size: int) -> dict[str, list[Way]]:
    """Phase 2's updates of W workers on one device, in turn and side by side."""
    default = default_execution(device)
    groups = {}
    for workers in NUM_WORKERS:
        ways = [
            Way(
                name="in turn",
                make=micro_workers.in_turn,
                arguments=(default, width, batch_size, workers),
                threads=threads,
                is_ours=True,
            )
        ]
        if device == "cpu" and threads > 1 and workers % threads == 0:
            ways.append(
                Way(
                    name="in turn" + _in_processes(threads),
                    make=micro_workers.in_turn,
                    arguments=(default, width, batch_size, workers // threads),
                    processes=threads,
                    is_ours=True,
                )
            )
        for kind, execution in our_executions(device).items():
            ways.append(
                Way(
                    name=f"stacked: grouped convolutions, {kind}",
                    make=micro_workers.grouped,
                    arguments=(execution, width, batch_size, workers),
                    threads=threads,
                )
            )
        vmapped, kind = replace(default, capture=False), "eager"
        if device == "cuda":  # whose batch norms torch cannot `vmap` in channels_last
            vmapped, kind = replace(vmapped, memory_format="contiguous"), "eager, contiguous"
        ways.append(
            Way(
                name=f"stacked: vmap over the weights, {kind}",
                make=micro_workers.vmapped,
                arguments=(vmapped, width, batch_size, workers),
                threads=threads,
            )
        )
        if device == "cuda":
            ways.append(
                Way(
                    name="side by side on streams",
                    make=micro_workers.on_streams,
                    arguments=(default, width, batch_size, workers),
                    threads=threads,
                )
            )
        groups[f"{workers} workers of phase 2, batch {batch_size} each"] = ways
    return groups


def _in_processes(processes: int) -> str:
    return f", {processes} processes of 1 thread" if processes > 1 else ""
