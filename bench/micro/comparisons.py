"""The variants that `bench micro` compares, by group; the first of each group is ours.

Several groups also have the device's peak: a matrix product and a copy in memory.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import net_cost
from bench.document import counted
from bench.hardware.machine import has_compiler
from bench.micro import data, step, workers
from bench.micro.interleave import Variant
from bench.micro.peak import peak_variants
from bench.micro.records import Cost
from bench.options import MicroNet
from swap_fast.config.execution import DTYPES, Execution, default_execution
from swap_fast.config.recipe import LoaderName
from swap_fast.config.step_choice import StepName
from swap_fast.tasks.cifar import missing_for_dali
from swap_fast.training.choice import candidates

Groups = dict[str, list[Variant]]
"""Variants that take turns, by the group's title."""
LOADER_PROCESSES = 8
"""At most: the stock loop has one for each core."""
NUM_WORKERS = (2, 4)
"""W of the comparisons of phase 2."""


def data_groups(device: str, batch_size: int, threads: int) -> Groups:
    """Augmented batches of CIFAR size, in each type, with one thread and with all threads."""
    groups: Groups = {}
    has_dali = missing_for_dali(device) is None
    loaders: tuple[LoaderName, ...] = ("tensor", *(("dali",) if has_dali else ()), "torchvision")
    for dtype in data.DTYPES:
        for count in sorted({1, threads}):
            size, form = (device, batch_size, dtype), f"{dtype}, {counted(count, 'thread')}"
            variant = partial(Variant, threads=count)
            ours = [
                variant(f"ours, {name}", data.our_batches, (name, *size), is_ours=True)
                for name in loaders
            ]
            headline = partial(variant, is_headline=count == threads)
            stock = (batch_size, dtype, count)
            groups[f"augmented batches, {form}"] = [
                *ours,
                headline("whole-epoch crop and flip, as airbench", data.whole_epoch_crop, size),
                headline(_stock_name(count), data.torchvision_loader, stock),
                variant("floor: read bytes, write values", data.copy_floor, size),
            ]
            if has_dali:
                operators = "DALI alone: the same operators, batches that lie ready"
                groups[f"DALI's own, {form}"] = [
                    ours[1],
                    variant(operators, data.bare_dali, (*size, count)),
                    variant("DALI alone: its own crop and flip", data.stock_dali, (*size, count)),
                ]
    return groups


def jpeg_groups(root: Path, device: str, batch_size: int, threads: int) -> Groups:
    """ImageNet's batches from JPEG files: our decoders and torchvision's DataLoader."""
    size = (device, batch_size, threads)
    stock = (str(root), batch_size, threads)
    variants = [
        Variant(f"ours, {name}", data.our_jpegs, (decoder, str(root), *size), is_ours=True)
        for name, decoder in (("DALI", "dali"), ("torchvision", "torchvision"))
        if decoder == "torchvision" or missing_for_dali(device) is None
    ]
    variants.append(
        Variant(_stock_name(threads), data.torchvision_jpeg_loader, stock, is_headline=True)
    )
    title = f"JPEG files of 500 x 375 pixels to {data.PX} pixels, {counted(threads, 'thread')}"
    return {title: variants}


def _stock_name(processes: int) -> str:
    return f"torchvision v2, DataLoader, {processes} process{'es' if processes > 1 else ''}"


def step_groups(
    default: Execution,
    threads: int,
    width: int,
    batch_sizes: tuple[int, ...],
    net: MicroNet = "resnet9",
) -> Groups:
    """The step at each batch size; of the paper's net also the loop around it and the batch-norm
    pass.

    Arguments:
        default: the device's execution, in the precision asked for.
    """
    groups = {
        f"the step, batch {size}": list(_step_variants(default, threads, width, size, net))
        for size in batch_sizes
    }
    if net != "resnet9":
        return groups
    size = (_of_wide_nets(default, width, net), width, batch_sizes[0])
    groups["the loop around it: input, schedule, metrics, clock"] = [
        Variant("the loop", step.our_loop, size, threads=threads, is_ours=True),
        Variant("ours", step.our_step, size, threads=threads, is_ours=True),
    ]
    groups["the batch-norm pass"] = [
        Variant("ours", step.batch_norm_pass, (*size, True), threads=threads, is_ours=True),
        Variant("torch's update_bn", step.batch_norm_pass, (*size, False), threads=threads),
    ]
    return groups


def _step_variants(
    default: Execution, threads: int, width: int, batch_size: int, net: MicroNet
) -> Iterator[Variant]:
    device = default.device_type
    shapes = _processes_and_threads(device, threads)
    executions = _our_executions(default, fusable=True)
    if default.can_be_winograd:
        executions["winograd"] = replace(default, step="winograd")
    first = _of_wide_nets(default, width, net)
    executions = {first.step: first} | executions if first != default else executions
    for kind, execution in executions.items():
        for processes, each in shapes:
            yield Variant(
                f"ours, {kind}{_in_processes(processes)}",
                step.our_step,
                (execution, width, batch_size, net),
                processes=processes,
                threads=each,
                cost=_cost(width, batch_size, execution, net),
                is_ours=True,
            )
    eager = replace(default, capture=False)
    kinds: list[StepName] = ["eager", "compiled"] if has_compiler() else ["eager"]
    for kind in kinds:
        for execution, layout in (
            (replace(eager, step=kind, memory_format="contiguous"), "NCHW"),
            (replace(eager, step=kind), "channels_last"),
        ):
            yield Variant(
                f"torch, {kind}, {layout}",
                step.torch_step,
                (execution, width, batch_size, net),
                threads=threads,
                cost=_cost(width, batch_size, execution, net),
            )
    yield from peak_variants(device, eager.precision, shapes)


def _of_wide_nets(default: Execution, width: int, net: MicroNet = "resnet9") -> Execution:
    """On a CPU with Winograd's convolutions, where `--step auto` tries them; else the default."""
    if default.device_type != "cpu":
        return default
    is_wide = "winograd" in candidates(default, step.make_net(net, width))
    return replace(default, step="winograd") if is_wide else default


def _our_executions(default: Execution, *, fusable: bool) -> dict[str, Execution]:
    """The executions of our step on a device, the default one first."""
    executions = {"eager": replace(default, capture=False)}
    if has_compiler():
        executions["compiled"] = replace(executions["eager"], step="compiled")
    if default.device_type == "cuda" and fusable:
        executions["fused"] = replace(executions["eager"], step="fused")
    if default.device_type == "cuda":
        captured = {
            "captured" if name == "eager" else f"{name}, captured": replace(each, capture=True)
            for name, each in executions.items()
        }
        executions = captured | executions
    return executions


def _processes_and_threads(device: str, threads: int) -> list[tuple[int, int]]:
    """How the cores are divided, first as runs do it: on a CPU, one process for each core."""
    return [(threads, 1), (1, threads)] if device == "cpu" and threads > 1 else [(1, threads)]


def _in_processes(processes: int) -> str:
    return f", {processes} processes of 1 thread" if processes > 1 else ""


def _cost(width: int, batch_size: int, execution: Execution, net: MicroNet = "resnet9") -> Cost:
    """An image's cost in a step; of a compiled or fused one, with fused kernels."""
    count = net_cost.resnet9 if net == "resnet9" else net_cost.speed_net
    # Of the step with our kernels, ResNet-9's norms alone are fused.
    fused = execution.step == "compiled" or (execution.step == "fused" and net == "resnet9")
    counted_net = count(width, 10, fused=fused)
    step_bytes = counted_net.step_bytes(
        batch_size, DTYPES[execution.precision].itemsize, fused_update=execution.fused_update
    )
    return Cost(flop=float(counted_net.train_flop), bytes=step_bytes / batch_size)


def peer_groups(device: str, threads: int, setup: step.Setup) -> Groups:
    """Whole loops over real batches, input included: ours, the stock loop, torch's best."""
    width, batch_size = setup.width, setup.batch_size
    shapes = _processes_and_threads(device, threads)
    eager = replace(setup.execution, capture=False)
    our_setup = replace(setup, execution=_of_wide_nets(setup.execution, width))
    variants = [
        Variant(
            f"ours, crop, flip, cutout{_in_processes(processes)}",
            step.our_training,
            (our_setup,),
            processes=processes,
            threads=each,
            cost=_cost(width, batch_size, our_setup.execution),
            is_ours=True,
        )
        for processes, each in shapes
    ]
    loaders = min(threads, LOADER_PROCESSES)
    variants.append(
        Variant(
            f"stock: eager, NCHW, DataLoader of {loaders}, crop, flip, .item()",
            step.stock_training,
            (setup, loaders),
            threads=threads,
            cost=_cost(width, batch_size, eager),
            is_headline=True,
        )
    )
    modes: tuple[str | None, ...] = (None,)
    if has_compiler():
        modes = ("max-autotune", "reduce-overhead") if device == "cuda" else ("default",)
    for mode in modes:
        how = "eager" if mode is None else f"compiled ({mode})"
        variants.append(
            Variant(
                f"torch's best practice: channels_last, {how}, fused SGD, crop, flip",
                step.best_practice_training,
                (setup, mode),
                threads=threads,
                cost=_cost(width, batch_size, replace(eager, step="compiled" if mode else "eager")),
                is_headline=True,
            )
        )
    variants += peak_variants(device, setup.execution.precision, shapes)
    return {f"whole training, input included, batch {batch_size}": variants}


def worker_groups(device: str, threads: int, width: int, batch_size: int) -> Groups:
    """Phase 2's updates of W workers on one device, in turn and side by side."""
    return {
        f"{count} workers of phase 2, batch {batch_size} each": list(
            _worker_variants(device, threads, width, batch_size, count)
        )
        for count in NUM_WORKERS
    }


def _worker_variants(
    device: str, threads: int, width: int, batch_size: int, num_workers: int
) -> Iterator[Variant]:
    default, size = default_execution(device), (width, batch_size, num_workers)
    yield Variant("in turn", workers.in_turn, (default, *size), threads=threads, is_ours=True)
    if device == "cpu" and threads > 1 and num_workers % threads == 0:
        share = (default, width, batch_size, num_workers // threads)
        name = f"in turn{_in_processes(threads)}"
        yield Variant(name, workers.in_turn, share, processes=threads, is_ours=True)
    for kind, execution in _our_executions(default, fusable=False).items():
        name = f"stacked: grouped convolutions, {kind}"
        yield Variant(name, workers.grouped, (execution, *size), threads=threads)
    vmapped, kind = replace(default, capture=False), "eager"
    if device == "cuda":  # torch cannot `vmap` batch norm in channels_last
        vmapped, kind = replace(vmapped, memory_format="contiguous"), "eager, contiguous"
    name = f"stacked: vmap over the weights, {kind}"
    yield Variant(name, workers.vmapped, (vmapped, *size), threads=threads)
    if device == "cuda":
        name = "side by side on streams"
        yield Variant(name, workers.on_streams, (default, *size), threads=threads)
