"""What is loaded when: reports load no torch, the library loads without its extras.

Who may import whom is in .importlinter, held by `lint-imports` in run_tests.sh.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

# What makes tables and plots, and the record's schema, must work on a machine without torch; the
# sampler's thread must have no way to touch it.
WITHOUT_TORCH = (
    *("bench.report.paper_tables", "bench.plots.training", "bench.report.write"),
    *("bench.records.timing", "bench.report.compare", "bench.hardware.telemetry"),
    *("bench.landscape.records", "bench.landscape.parallel_points"),
    *("bench.export.command", "bench.export.submissions", "bench.planner.forms"),
    *("bench.runner.watch", "swap_fast.__main__", "swap_fast.averaging_files.report"),
    *("swap_fast.record", "swap_fast.callbacks.emitter", "swap_fast.callbacks.progress"),
    "swap_fast.callbacks.trackers",
)
MACHINE_PATH = re.compile(r"""(?<![\w.}])/(?:work|home|root|tmp|opt|mnt|private|Users)/""")
# Imports every module of the library; it itself cannot import the packages named in argv.
LOAD_ALL = """
import importlib, pkgutil, sys
absent = set(sys.argv[1:])
class Refuse:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        of_the_library = frame.f_globals.get("__name__", "").startswith("swap_fast")
        if of_the_library and name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"no module named {name}", name=name)
sys.meta_path.insert(0, Refuse())
import swap_fast
for module in pkgutil.walk_packages(swap_fast.__path__, "swap_fast."):
    if not module.name.endswith((".dali", ".__main__")):  # loaded where DALI was asked for
        importlib.import_module(module.name)
"""


OF_TESTS = ("test", "docs", "trainers")
"""Extras that neither package imports."""

# What is used by another name, and what is installed for a part of torch or as a program.
DEPTRY = (
    *("--known-first-party", "swap_fast", "--known-first-party", "bench", "--no-ansi"),
    "--package-module-name-map",
    "nvidia-dali-cuda120=nvidia,nvidia-ml-py=pynvml,mlflow-skinny=mlflow",
    *("--per-rule-ignores", "DEP002=tensorboard|mlperf-logging"),
)


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def _extras() -> dict[str, str]:
    return dict(_config()["options.extras_require"])


def test_records_and_reports_load_no_torch() -> None:
    assert _run(f"import {', '.join(WITHOUT_TORCH)}, sys; print('torch' in sys.modules)") == "False"


def test_the_library_loads_without_its_extras() -> None:
    lists = "\n".join(_extras().values())
    names = re.findall(r"^[A-Za-z][\w-]*", lists, re.MULTILINE)
    _run(LOAD_ALL, "nvidia", "pynvml", *sorted(name.replace("-", "_") for name in names))


def test_what_is_imported_is_declared_and_what_is_declared_is_used(tmp_path: Path) -> None:
    # deptry does not read setup.cfg.
    lists = [_config()["options"]["install_requires"]]
    lists += [text for extra, text in _extras().items() if extra not in OF_TESTS]
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("\n".join(lists), encoding="utf-8")
    command = [sys.executable, "-m", "deptry", "swap_fast", "bench", *DEPTRY]
    command += ["--requirements-files", str(requirements)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["numpy", "safetensors"])
def test_the_library_misses_what_it_needs(package: str) -> None:  # the control
    command = [sys.executable, "-c", LOAD_ALL, package]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"no module named {package}" in done.stderr


def test_no_path_of_a_machine_in_the_sources() -> None:
    sources = [p for top in ("swap_fast", "bench", "tests") for p in (ROOT / top).rglob("*.py")]
    scripts = [ROOT / "install.sh", ROOT / "run_dawnbench.sh", ROOT / "run_tests.sh"]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*sorted(sources), *scripts]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found
