"""The all-reduce of `swap_fast.distributed` by message size, and a copy in memory."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.hardware.machine import available_cores
from bench.micro.peak import synchronize
from bench.micro.records import Collective, Message
from bench.runner.launch import launch
from swap_fast.config.execution import DTYPES
from swap_fast.distributed import Comm, connect
from swap_fast.models import ResNet9

SMALLEST, LARGEST = 2**10, 2**26
"""Bytes of the messages; each is 4 times the one before it."""
PATIENCE_S = 0.05
"""About how long a round repeats a collective."""
MOST_REPEATS = 100


def message_sizes(gradient_bytes: int) -> list[int]:
    """Bytes of every message: powers of four, and the gradient's exact size among them."""
    return sorted({SMALLEST * 4**power for power in range(9)} | {gradient_bytes})


def default_ranks(device_type: str) -> int:
    """One process for each device; on a CPU one for each core, at least 2.

    Raises:
        ValueError: there is only one CUDA device.
    """
    if device_type == "cpu":
        return max(2, available_cores())
    count = torch.cuda.device_count()
    if count < 2:
        raise ValueError(
            f"micro collective: expected 2 CUDA devices or more, got {count}; --device cpu "
            "measures gloo"
        )
    return count


def measure_collective(
    device_type: str, ranks: int, width: int, rounds: int, largest: int = LARGEST
) -> Collective:
    """Time all-reduces on `ranks` processes; the record's part of them.

    Raises:
        ValueError: fewer than two ranks.
        RuntimeError: a rank failed.
    """
    if ranks < 2:
        raise ValueError(f"ranks: expected 2 or more, got {ranks}")
    parameters = sum(p.numel() for p in ResNet9(width=width).parameters())
    threads = max(1, available_cores() // ranks)
    return launch(measure_rank, device_type, threads, parameters, rounds, largest, num_ranks=ranks)


def measure_rank(
    device_type: str, threads: int, parameters: int, rounds: int, largest: int
) -> Collective:
    """One rank's part; all ranks return what all of them found."""
    torch.set_num_threads(threads)
    comm = connect(device_type)
    device = torch.device(device_type, comm.local_rank if device_type == "cuda" else 0)
    rows, left_out = [], []
    try:
        for precision in ("fp32", "fp16"):
            dtype = DTYPES[precision]
            for size in message_sizes(parameters * dtype.itemsize):
                if size > max(largest, SMALLEST):
                    continue
                message = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
                try:
                    comm.all_reduce_(message)
                except RuntimeError as error:  # on every rank: the backend has no such sum
                    left_out.append(f"{precision}: {error}")
                    break
                rows.append(
                    Message(
                        bytes=size,
                        precision=precision,
                        gradient=size == parameters * dtype.itemsize,
                        all_reduce_s=_rounds(comm, message, comm.all_reduce_, rounds),
                        copy_s=_rounds(comm, message, message.clone().copy_, rounds),
                    )
                )
        return Collective(
            backend="nccl" if device_type == "cuda" else "gloo",
            ranks=comm.world_size,
            threads=threads,
            rows=rows,
            left_out=left_out,
        )
    finally:
        comm.close()


def _rounds(
    comm: Comm, message: Tensor, work: Callable[[Tensor], Tensor], rounds: int
) -> list[float]:
    """Seconds of a call in each round: the mean over repeats, of the slowest rank."""
    once = _slowest(comm, _seconds(comm, message, work, 2)) / 2
    repeats = min(MOST_REPEATS, max(1, int(PATIENCE_S / max(once, 1e-9))))
    return [_slowest(comm, _seconds(comm, message, work, repeats)) / repeats for _ in range(rounds)]


def _seconds(comm: Comm, message: Tensor, work: Callable[[Tensor], Tensor], repeats: int) -> float:
    comm.barrier()
    synchronize(message.device)
    started = time.perf_counter()
    for _ in range(repeats):
        work(message)
    synchronize(message.device)
    return time.perf_counter() - started


def _slowest(comm: Comm, seconds: float) -> float:
    """The same on every rank, so that all repeat equally often."""
    return max(comm.gather(seconds))


def print_collective(measured: Collective) -> None:
    """A line a message, as the table of the report has it."""
    print(f"all-reduce over {measured.backend}, {measured.ranks} processes")
    print(f"{'bytes':>12} {'type':<5} {'median us':>12} {'bus GB/s':>9} {'copy GB/s':>10}")
    for row in measured.rows:
        print(
            f"{row.bytes:>12,} {row.precision:<5} {1e6 * row.median_s:>12,.1f} "
            f"{measured.bus_bandwidth(row) / 1e9:>9.4f} {row.copy_bytes_per_s / 1e9:>10.4f}"
            f"{'  the gradient' if row.gradient else ''}"
        )
    for reason in measured.left_out:
        print(f"left out: {reason}")
