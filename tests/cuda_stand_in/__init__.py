"""A stand-in for CUDA: torch's CUDA wheel on a machine without a GPU, for the tests.

One preloaded library takes the place of CUDA's runtime and driver, NCCL and NVML. Device memory is
host memory; streams, events and the rules of capture are real; kernels do nothing but are counted.
`values.py` runs torch's CUDA operators on the CPU over the same bytes, and captured ones at each
replay. torch's own host code is not changed.

Not here: the speed and the rounding of a GPU, CUPTI (the profiler sees no kernels), the kernels of
inductor, cuBLAS and cuDNN (values.py takes their place), cuSOLVER, cuSPARSE, cuFFT, and libraries
that bring a CUDA runtime along (DALI).
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
from typing import Any

import torch

from cuda_stand_in.stubs import write_stubs

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
TORCH = "2.10"
"""The minor release whose calls the stand-in answers."""
KINDS = ("kernels", "library calls", "copies", "fills", "host functions", "graph launches", "waits")
HEADERS = ("nvidia/cuda_runtime", "nvidia/nccl", "triton/backends/nvidia")


def why_not_here() -> str | None:
    """Why the stand-in cannot be built on this machine, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the stand-in for CUDA needs Linux on x86-64"
    if not torch.__version__.startswith(f"{TORCH}."):
        return f"the stand-in for CUDA needs torch {TORCH}, not {torch.__version__}"
    return None if shutil.which("gcc") else "the stand-in for CUDA needs gcc"


def build(folder: Path) -> StandIn:
    """Compile the stand-in into a folder, with the headers of the installed wheels."""
    site = Path(torch.__file__).resolve().parent.parent
    write_stubs(site, folder / "stubs.c")
    sources = [*sorted(HERE.glob("*.c")), HERE.parent / "nvml_stand_in.c", folder / "stubs.c"]
    # Most parameters of CUDA's functions have no meaning here.
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    headers = [f"-I{site / header}/include" for header in HEADERS]
    made = ["-shared", "-fPIC", "-Wl,-soname,libstand_in.so", "-o", folder / "libstand_in.so"]
    options = [*warnings, "-O1", "-g", *headers, *made, *sources, "-lpthread", "-ldl"]
    subprocess.run(["gcc", *options], check=True)
    for name in ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"):
        (folder / name).symlink_to("libstand_in.so")
    return StandIn(folder)


def counts() -> dict[str, int]:
    """On the stand-in: what this process has launched, and how often it waited.

    An operator of values.py counts as a kernel; what is captured counts as no launch.
    """
    library = ctypes.CDLL(f"{os.environ['STANDIN_LIB']}/libstand_in.so")
    return dict(zip(KINDS, (ctypes.c_long * 7).in_dll(library, "standin_counts"), strict=True))


@dataclass(frozen=True)
class StandIn:
    """The built stand-in; each program runs on it in a process of its own."""

    folder: Path

    def start(
        self,
        program: str | Sequence[str],
        *,
        devices: int = 1,
        values: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program in a process group of its own; its output is piped as text.

        Arguments:
            program: Python code, or the interpreter's arguments (`["-m", "bench", ...]`).
            devices: how many there seem to be.
            values: 0, CUDA's functions alone; 1, torch's operators too; 2, Triton's kernels too,
                which is slow.
            env: further variables: STANDIN_DELAY=SEED delays work until it is waited for,
                STANDIN_LOG=1 tells of errors.
        """
        search_path = os.environ.get("LD_LIBRARY_PATH", "")
        variables = {
            "LD_PRELOAD": f"{self.folder}/libstand_in.so",
            "LD_LIBRARY_PATH": f"{self.folder}:{search_path}".rstrip(":"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}:{HERE}",
            "STANDIN_DEVICES": str(devices),
            "STANDIN_LIB": str(self.folder),
            "STANDIN_VALUES": str(values) if values else "",
            "TRITON_CACHE_DIR": f"{self.folder}/triton",
        }
        return subprocess.Popen(
            [sys.executable, *(["-c", program] if isinstance(program, str) else program)],
            cwd=CHECKOUT,
            env={**os.environ, **variables, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, program: str | Sequence[str], *, timeout: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, with the options of `start`, to its end.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; its processes are killed.
        """
        process = self.start(program, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with its ranks: they are in its group
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
