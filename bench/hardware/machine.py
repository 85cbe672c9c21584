"""The machine, the libraries and the code of a run; a CPU core as a device. No torch at import."""

import os
import platform
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.hardware.telemetry import driver_version
from swap_fast.record import CPU_UNITS, Code, DeviceType, Machine, library_version


def core_numbers() -> set[int]:
    """The CPU cores that this process may use, by the operating system's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@contextmanager
def on_own_core(cores: Collection[int]) -> Iterator[bool]:
    """Run this thread on the first of `cores` that no other run has; gives whether there is one.

    Else it runs on any of them. Threads and processes that are started within, such as a loader's,
    stay on the same core: it is all that one device has. Afterwards this thread may run where it
    might before. Where `cores` is empty nothing happens.
    """
    with ExitStack() as stack:
        own = next((core for core in sorted(cores) if _take(core, stack)), None)
        if cores:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores if own is None else {own})
        yield own is not None


def _take(core: int, stack: ExitStack) -> bool:
    """Mark the core as taken until the stack's end or the process's; False where it is.

    The mark is a name in Linux's abstract namespace of sockets: one process of the machine at a
    time can bind it, and it needs no file.
    """
    mark = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
    try:
        mark.bind(f"\0swap_fast core {core}")
    except OSError:
        return False
    return True


LIBRARIES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda120", "nvidia-ml-py", "safetensors")


def describe_machine(device_type: DeviceType) -> Machine:
    """The machine as a record keeps it, with null for what is absent."""
    libraries = {name: library_version(name) for name in LIBRARIES}
    cpu = _cpu_model()
    machine: Machine = {
        "device_type": device_type,
        "device": cpu,
        "device_count": os.cpu_count() or 1,
        "cpu": cpu,
        "cpu_count": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "driver": driver_version(),
        "cuda": None,
        "libraries": libraries,
    }
    if units := _cpu_units():
        machine["cpu_units"] = units
    if device_type == "cuda":
        import torch

        machine["device"] = torch.cuda.get_device_name()
        machine["device_count"] = torch.cuda.device_count()
        machine["cuda"] = torch.version.cuda
    return machine


def available_cores() -> int:
    """How many CPU cores this process may use."""
    return len(core_numbers())


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return any(name and shutil.which(name) for name in names)


def device_uuid(device_type: str) -> str | None:
    """The UUID of this process's device; None of a CPU, empty if torch has none."""
    if device_type != "cuda":
        return None
    import torch

    return str(getattr(torch.cuda.get_device_properties(torch.device("cuda")), "uuid", ""))


def describe_code() -> Code:
    """The version, and the commit where the code stands in a git checkout."""
    here = Path(__file__).resolve().parents[2]
    commit = _git(here, "rev-parse", "HEAD")
    changed = _git(here, "status", "--porcelain", "--", "swap_fast", "bench")
    return {
        "version": library_version("swap_fast"),
        "commit": commit,
        "changed": None if commit is None else bool(changed),
    }


class CoresUsed(NamedTuple):
    """CPU cores that were used on a host, on average."""

    host: str
    """Its name."""
    by_all: float
    """Programs together."""
    by_own: float
    """Of these, by one rank and its children."""


class OtherWork:
    """How many CPU cores of this machine other programs use, from this object's making on.

    Time that a hypervisor gave to another guest counts too. Linux only.

    Arguments:
        proc: the kernel's tables of processes.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc, self._ticks_a_second = proc, os.sysconf("SC_CLK_TCK")
        self._began = time.monotonic(), self._ticks()

    def read(self) -> CoresUsed | None:
        """Since this object was made; None where the system does not tell."""
        began, before = self._began
        now, elapsed_s = self._ticks(), time.monotonic() - began
        if before is None or now is None:
            return None
        ticks = self._ticks_a_second * elapsed_s
        by_all, by_own = ((b - a) / ticks for a, b in zip(before, now, strict=True))
        return CoresUsed(socket.gethostname(), by_all, by_own)

    def _ticks(self) -> tuple[int, int] | None:
        """Clock ticks that all programs ran since the start, and this one with its children."""
        try:
            line = (self._proc / "stat").read_text().split("\n", 1)[0]
            user, nice, system, _, _, irq, soft, stolen = map(int, line.split()[1:9])
            return user + nice + system + irq + soft + stolen, self._own_ticks(os.getpid())
        except (OSError, ValueError):
            return None

    def _own_ticks(self, pid: int) -> int:
        process = self._proc / str(pid)
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        lists = (tasks.read_text() for tasks in process.glob("task/*/children"))
        children = [int(child) for each in lists for child in each.split()]
        return sum(map(int, fields[11:15])) + sum(map(self._own_ticks, children))


def other_cores(readings: Sequence[CoresUsed | None]) -> float | None:
    """Of the readings of all ranks: the most CPU cores that other programs used on any host."""
    hosts: dict[str, list[CoresUsed]] = {}
    for reading in readings:
        if reading is None:
            return None
        hosts.setdefault(reading.host, []).append(reading)
    others = (
        max(rank.by_all for rank in ranks) - sum(rank.by_own for rank in ranks)
        for ranks in hosts.values()
    )
    return round(max(0.0, *others), 3)


def peak_memory_gib() -> float:
    """The largest resident memory of this process so far, on the host."""
    return resident_bytes()[1] / 2**30


def peak_device_memory_gib(device_type: str) -> tuple[float | None, float | None]:
    """The most device memory that torch reserved and allocated so far; None of a CPU."""
    if device_type != "cuda":
        return None, None
    import torch

    return torch.cuda.max_memory_reserved() / 2**30, torch.cuda.max_memory_allocated() / 2**30


def resident_bytes() -> tuple[int, int]:
    """The resident memory of this process: now, and at its largest.

    On Linux both are of this program alone; elsewhere both are the largest, which may include that
    of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    unit = 1 if platform.system() == "Darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, peak


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_units() -> list[str]:
    flags = _cpuinfo("flags").split()
    return [unit for unit in CPU_UNITS if unit in flags]


def _cpuinfo(field: str) -> str:
    """What Linux says of the first core; empty where it does not."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
