"""The machine, the libraries and the code of a run. No torch at import."""

import os
import platform
import resource
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from bench.hardware.cores import core_numbers
from bench.hardware.telemetry import driver_version
from swap_fast.record import Code, DeviceType, Machine

LIBRARIES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda120", "nvidia-ml-py", "safetensors")


def describe_machine(device_type: DeviceType) -> Machine:
    """The machine as a record keeps it, with null for what is absent."""
    libraries = {name: _version(name) for name in LIBRARIES}
    machine: Machine = {
        "device_type": device_type,
        "device": _cpu_model(),
        "device_count": os.cpu_count() or 1,
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "driver": driver_version(),
        "cuda": None,
        "libraries": libraries,
    }
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


def choose_device(device: str) -> DeviceType:
    """The type of device for "auto", "cpu" or "cuda".

    Raises:
        ValueError: "cuda" without a CUDA device.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("device: expected a CUDA device, found none; use --device cpu")
    return "cpu" if device == "cpu" or not available else "cuda"


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
        "version": _version("swap_fast"),
        "commit": commit,
        "changed": None if commit is None else bool(changed),
    }


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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
