"""Triton's kernels without a GPU: run by its interpreter, and compiled for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repository import ROOT


def assert_interpreted_equal(script: str) -> None:
    """Run a test's file as a script: the interpreter is chosen before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all equal\n"), done.stderr


@dataclass(frozen=True)
class Compiled:
    """A kernel for one kind of GPU."""

    ptx: str
    shared_bytes: int
    registers: int
    """Of a thread."""
    spills: list[str]
    """Bytes stored and loaded."""


def compile_kernel(
    kernel: Any,
    types: Sequence[str | tuple[str, ...]],
    constants: Mapping[str, object],
    capability: int,
    folder: Path,
    *,
    aligned: Sequence[str],
) -> Compiled:
    """Compile for a GPU by its capability, 70 for V100, and let its assembler count.

    Arguments:
        types: of the arguments before the constants; of a tuple, of its members.
        folder: for the assembler's files.
        aligned: arguments that are multiples of 16, as torch's allocations are.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(constants)], strict=True))
    places: list[tuple[int, ...]] = []
    for name in aligned:
        at, kind = names.index(name), signature[name]
        places += [(at, i) for i in range(len(kind))] if isinstance(kind, tuple) else [(at,)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in places},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    architecture = re.search(r"\.target (\w+)", made.asm["ptx"])
    assert architecture
    assert architecture[1].startswith(f"sm_{capability}")
    ptx, cubin = folder / "kernel.ptx", folder / "cubin"
    ptx.write_text(made.asm["ptx"])
    report = subprocess.run(
        [get_ptxas(capability).path, "-v", f"--gpu-name={architecture[1]}", ptx, "-o", cubin],
        capture_output=True,
        text=True,
        check=True,
    )
    registers = re.search(r"Used (\d+) registers", report.stderr)
    assert registers, report.stderr
    return Compiled(
        ptx=made.asm["ptx"],
        shared_bytes=made.metadata.shared,
        registers=int(registers[1]),
        spills=re.findall(r"(\d+) bytes spill", report.stderr),
    )
