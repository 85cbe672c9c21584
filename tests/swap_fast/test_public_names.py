"""Every public name of the package is where `swap_fast` looks for it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

import swap_fast


@pytest.mark.parametrize("name", sorted(set(swap_fast.__all__) - {"RECIPES"}))
def test_a_class_or_a_function_is_found_by_its_own_name(name: str) -> None:
    assert getattr(swap_fast, name).__name__ == name


def test_the_recipes_are_found_by_name() -> None:
    assert swap_fast.RECIPES["cifar10_swap"]().name == "cifar10_swap"


def test_type_checkers_and_completion_know_the_same_names() -> None:
    shown = {
        name.name: node.module.removeprefix("swap_fast.")
        for node in ast.walk(ast.parse(inspect.getsource(swap_fast)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("swap_fast.")
        for name in node.names
    }
    assert shown == swap_fast._HOME
    assert set(swap_fast.__all__) < set(dir(swap_fast))


MISUSED = """
import swap_fast
from torch import nn

result = swap_fast.swap(lambda: nn.Linear(2, 2), [], workers="8")
print(result.acuracy, result.accuracy)
swap_fast.swop
swap_fast.Phase(global_batch_size=8, peak_lr=0.1, epochs=3)
"""


@pytest.mark.slow
def test_a_type_checker_finds_what_a_user_s_file_misuses(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MISUSED)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "mine.py"]
    mypy += [f"--config-file={tmp_path / 'none'}", f"--cache-dir={tmp_path / 'cache'}"]
    (tmp_path / "none").write_text("[mypy]\nfollow_imports = silent\n")
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(mypy, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert sorted(set(found)) == ["5", "6", "7", "8"], done.stdout


@pytest.mark.parametrize("module", ["swap_fast", "bench"])
def test_a_command_says_its_version(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"swap_fast {swap_fast.__version__}\n"


def test_another_name_is_not() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute .swop.$"):
        _ = swap_fast.swop
