"""A stand-in for CUDA: torch's CUDA wheel on a machine without a GPU, for the tests.

One preloaded library takes the place of the CUDA runtime and driver, cuBLAS, cuDNN, NCCL and NVML.
Device memory is host memory; streams, events and the rules of capture are real; kernels do nothing
but are recorded. `values.py` gives the results: it runs torch's CUDA operators on the CPU over the
same bytes, and captured ones at each replay. torch's own host code is not changed.

Not here: the speed and the rounding of a GPU, CUPTI (the profiler sees no kernels), the kernels of
inductor, cuSOLVER, cuSPARSE, cuFFT, and libraries that bring a CUDA runtime along (DALI).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cuda_stand_in.stubs import write_stubs

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
TORCH = "2.10"
"""The minor release whose calls the stand-in answers."""
KINDS = ("kernels", "library calls", "copies", "fills", "host functions", "graph launches", "waits")
HEADERS = (
    "nvidia/cuda_runtime/include",
    "nvidia/cudnn/include",
    "nvidia/nccl/include",
    "triton/backends/nvidia/include",  # cuda.h
)


def why_not_here() -> str | None:
    """Why the stand-in cannot be built on this machine, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the stand-in for CUDA needs Linux on x86-64"
    if not torch.__version__.startswith(f"{TORCH}."):
        return f"the stand-in for CUDA needs torch {TORCH}, not {torch.__version__}"
    if shutil.which("gcc") is None:
        return "the stand-in for CUDA needs gcc"
    return None


def build(folder: Path) -> StandIn:
    """Compile the stand-in into a folder, with the headers of the installed wheels."""
    site = Path(torch.__file__).resolve().parent.parent
    write_stubs(site, folder / "stubs.c")
    subprocess.run(
        [
            *("gcc", "-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror"),
            "-Wno-unused-parameter",  # most of CUDA's many parameters have no meaning here
            *(f"-I{site / header}" for header in HEADERS),
            *("-Wl,-soname,libstand_in.so", "-o", str(folder / "libstand_in.so")),
            *(str(source) for source in sorted(HERE.glob("*.c"))),
            *(str(HERE.parent / "nvml_stand_in.c"), str(folder / "stubs.c"), "-lpthread", "-ldl"),
        ],
        check=True,
    )
    for name in ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"):
        (folder / name).symlink_to("libstand_in.so")
    return StandIn(folder)


@dataclass(frozen=True)
class StandIn:
    """The built stand-in; each program runs on it in a process of its own."""

    folder: Path

    def environment(self, *, devices: int, values: int) -> dict[str, str]:
        """This process's environment, with the stand-in before the machine's own libraries."""
        search_path = os.environ.get("LD_LIBRARY_PATH")
        return {
            **os.environ,
            "LD_PRELOAD": str(self.folder / "libstand_in.so"),
            "LD_LIBRARY_PATH": f"{self.folder}:{search_path}" if search_path else str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}:{HERE}",
            "STANDIN_DEVICES": str(devices),
            "STANDIN_LIB": str(self.folder),
            "STANDIN_VALUES": str(values) if values else "",
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
        }

    def start(
        self,
        program: str | Sequence[str],
        *,
        devices: int = 1,
        values: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program; its output is piped as text.

        Arguments:
            program: Python code, or the interpreter's arguments (`["-m", "bench", ...]`).
            devices: how many there seem to be.
            values: 0, kernels do nothing; 1, torch's give their results; 2, Triton's too (slow).
            env: further variables, such as STANDIN_LOG.
        """
        arguments = ["-c", program] if isinstance(program, str) else program
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=CHECKOUT,
            env={**self.environment(devices=devices, values=values), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        program: str | Sequence[str],
        *,
        devices: int = 1,
        values: int = 1,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, as `start` does.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; its processes are killed.
        """
        process = self.start(program, devices=devices, values=values, env=env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with its ranks: they are in its group
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def counts() -> dict[str, int]:
    """On the stand-in: what this process has launched, and how often it waited, by kind.

    An operator of values.py counts as a kernel; what is captured counts in no launch.
    """
    library = ctypes.CDLL(str(Path(os.environ["STANDIN_LIB"]) / "libstand_in.so"))
    return dict(
        zip(KINDS, (ctypes.c_long * len(KINDS)).in_dll(library, "standin_counts"), strict=True)
    )
