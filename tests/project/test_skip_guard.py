"""tests/skip_guard.py: which skips make a run fail, seen from outside, by exit code and output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import TESTS


def _run(folder: Path, *options: str, **sources: str) -> tuple[int, list[str]]:
    """A pytest run of its own over these files, with the guard on: exit code, output lines."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(f"import pytest\n\n{source}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "skip_guard", "-p", "xdist"]
    done = subprocess.run(
        [*command, "--rootdir", str(folder), *options],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
            "PYTHONPATH": str(TESTS),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_foreseen_skips_and_expected_failures_pass(tmp_path: Path) -> None:
    code, lines = _run(
        tmp_path,
        test_case="""
def test_a():
    pytest.skip("no CUDA device")

@pytest.mark.skipif(True, reason="no shared data")
def test_b():
    pass

@pytest.mark.xfail
def test_c():
    raise ValueError

def test_d():
    pass
""",
    )
    assert code == 0
    assert lines[-1].startswith("1 passed, 2 skipped, 1 xfailed in ")
    assert not any("not allowed" in line for line in lines)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_every_form_of_other_skips_fails_and_is_named(tmp_path: Path, processes: str) -> None:
    code, lines = _run(
        tmp_path,
        "--numprocesses",
        processes,
        test_case="""
def test_called():
    pytest.skip("later")

def test_longer():
    pytest.skip("no CUDA device, or so")

@pytest.mark.skip
def test_marked():
    pass

@pytest.fixture
def thing():
    pytest.skip("in the fixture")

def test_fixture(thing):
    pass

def test_passes():
    pass
""",
        test_absent="pytest.importorskip('no_such_module_here')",
        test_module="pytest.skip('all of it', allow_module_level=True)",
    )
    assert code == 1
    (start,) = (index for index, line in enumerate(lines) if "skips not allowed" in line)
    named = dict(line.split(": ", 1) for line in lines[start + 1 : start + 7])
    assert named.pop("test_absent.py").startswith("could not import 'no_such_module_here'")
    assert named == {
        "test_case.py::test_called": "later",
        "test_case.py::test_longer": "no CUDA device, or so",
        "test_case.py::test_marked": "unconditional skip",
        "test_case.py::test_fixture": "in the fixture",
        "test_module.py": "all of it",
    }
    assert lines[-1].startswith("1 passed, 6 skipped in ")
