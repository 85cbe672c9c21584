"""The groups of ways that `micro data` compares: our loaders, others', and a copy."""

from collections.abc import Callable
from pathlib import Path

from bench.document.table import counted
from bench.micro import data as micro_data
from bench.micro import jpeg as micro_jpeg
from bench.micro.interleave import Way, Work
from bench.options import MicroOptions
from swap_fast.config.recipe import LoaderName
from swap_fast.tasks.cifar import missing_for_dali


def data_ways(options: MicroOptions, device: str, threads: int) -> dict[str, list[Way]]:
    """Augmented batches of CIFAR size, in each type and with one thread and all of them."""
    groups: dict[str, list[Way]] = {}
    for dtype in micro_data.DTYPES:
        for count in sorted({1, threads}):
            form = f"{dtype}, {counted(count, 'thread')}"
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


def jpeg_ways(root: Path, device: str, batch_size: int, threads: int) -> dict[str, list[Way]]:
    """ImageNet's batches from JPEG files: our decoders beside torchvision's DataLoader."""
    size = (str(root), device, batch_size, threads)
    stock = f"torchvision v2, DataLoader, {threads} process{'es' if threads > 1 else ''}"
    ways = [
        Way(name="ours, torchvision", make=micro_jpeg.our_torchvision, arguments=size),
        Way(
            name=stock,
            make=micro_jpeg.torchvision_loader,
            arguments=(str(root), batch_size, threads),
        ),
    ]
    if missing_for_dali(device) is None:
        ways.insert(0, Way(name="ours, DALI", make=micro_jpeg.our_dali, arguments=size))
    px, thread = micro_jpeg.PX, "thread" if threads == 1 else "threads"
    return {f"JPEG files of 500 x 375 pixels to {px} pixels, {threads} {thread}": ways}
