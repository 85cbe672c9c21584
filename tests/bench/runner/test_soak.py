"""Runs of every kind that are killed: once each in CI, and again and again with `pytest -m soak`.

SWAP_SOAK_KILLS says how often each kind is killed (40, which takes 5 to 10 minutes a kind), and
SWAP_SOAK_RECORD names a file for what was seen. Each kind adds its own part to that file:
`pytest -m soak -k search tests/bench/runner/test_soak.py` makes one part again.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FakeCifar
from processes import alive_in_group, all_end
from same_bits import write_cifar

from bench.hardware.machine import describe_code, describe_machine
from swap_fast.record import EpochRow, now
from swap_fast.record_files import read_records

KILLS = int(os.environ.get("SWAP_SOAK_KILLS", "40"))
ENDED_S = 20.0
"""By then nothing of a run in which a process was killed may be left."""

COMMAND = (sys.executable, "-m", "bench")
SMALL = (
    *("--train-images", "1024", "--width", "4", "--phase1.global-batch-size", "128"),
    *("--phase1.max-epochs", "6", "--phase1.warmup-epochs", "2", "--phase2.max-epochs", "2"),
    *("--num-workers", "2", "--phase1.gpus-per-model", "2"),
    *("--device", "cpu", "--threads", "1", "--quiet"),
)
RUN = (*COMMAND, "run", "cifar10_quick", *SMALL, "--phase1.horizon-epochs", "6", "--ranks", "2")
SEARCH = """
import sys
from bench.cli import main
from bench.search import study
study.HEARTBEAT_S, study.GRACE_S = 1, 2  # a killed process's point is soon another's
sys.exit(main(sys.argv[1:]))
"""
TABLE = """
import sys
from dataclasses import replace
from bench.cli import main
from swap_fast.recipes.cifar10 import RECIPES

def smaller(recipe):
    phases = {"phase1": {"global_batch_size": 128, "max_epochs": 3}, "phase2": {"max_epochs": 2}}
    made = {
        name: replace(getattr(recipe, name), **changed, warmup_epochs=0.0, horizon_epochs=None)
        for name, changed in phases.items()
        if hasattr(recipe, name)
    }
    return replace(recipe, width=4, train_images=1024, **made)

for name in ("cifar100_sgd_small_cpu", "cifar100_sgd_large_cpu", "cifar100_swap_cpu"):
    RECIPES[name] = lambda recipe=smaller(RECIPES[name]()): recipe
sys.exit(main(sys.argv[1:]))
"""
API = """
import sys
from pathlib import Path

import swap_fast
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))

if __name__ == "__main__":
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(1)
    centres = torch.randn(4, 6, generator=random)
    labels = torch.randint(4, (16_000,), generator=random)
    data = centres[labels] + torch.randn(16_000, 6, generator=random), labels
    out = Path(sys.argv[2])
    phase1 = swap_fast.Phase(global_batch_size=64, peak_lr=0.1, max_epochs=4)
    phase2 = swap_fast.Phase(global_batch_size=32, peak_lr=0.05, max_epochs=3)
    result = swap_fast.swap(
        net, data, data, workers=2, phase1=phase1, phase2=phase2, device="cpu", progress=False,
        folder=out / "run", resume=True,
    )
    result.save(out / "result", overwrite=True)
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of run: it ends by itself, and the same command goes on with a killed one."""

    command: Callable[[Path], tuple[str, ...]]
    """Of the folder with the data; what follows it is --out FOLDER."""
    midway: str
    """Files of an output folder, for glob: the first of them is there when half is done."""
    victims: tuple[str, ...] = ("all at once",)
    """What is killed: also "launcher" and "one process", of those that have several."""


def script(text: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text, *arguments)


SEVERAL = ("all at once", "launcher", "one process")
KINDS = {
    "run": Kind(
        command=lambda data: (*RUN, "--data", str(data / "cifar10"), "--resume"),
        midway="checkpoints/*/worker0-epoch1.json",
        victims=SEVERAL,
    ),
    "separate": Kind(
        command=lambda data: (
            *(*RUN, "--data", str(data / "cifar10"), "--resume", "--phase2", "separate"),
        ),
        midway="checkpoints/*/worker0-epoch1.json",
        victims=SEVERAL,
    ),
    "search": Kind(
        command=lambda data: script(
            SEARCH,
            *("search", "cifar10_quick", *SMALL, "--grid", "stopping_accuracy=0.2,0.9"),
            *("--held-out", "512", "--name", "mine", "--ranks", "1"),
            *("--data", str(data / "cifar10")),
        ),
        midway="search/mine/runs/*-point-*.json",
    ),
    "table": Kind(
        command=lambda data: script(
            TABLE,
            *("table", "2", "--runs", "1", "--size", "cpu", "--device", "cpu", "--ranks", "1"),
            *("--quiet", "--data", str(data / "cifar100")),
        ),
        midway="runs/[!.]*.json",
    ),
    "api": Kind(command=lambda data: script(API), midway="run/worker0-epoch2.json"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sets in the layouts of CIFAR-10 and CIFAR-100."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar(folder / "cifar10", train_images=2_560, test_images=200)
    random_ = np.random.default_rng(0)
    splits = [random_.integers(256, size=(n, 3073), dtype=np.uint8) for n in (1_536, 200)]
    for split in splits:
        split[:, 0] = random_.integers(100, size=len(split))
    FakeCifar("cifar100", *splits).write_binary(folder / "cifar100")
    return folder


def started(command: tuple[str, ...], out: Path) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--out", str(out)], start_new_session=True, **quiet)


def completed(command: tuple[str, ...], out: Path) -> Path:
    out.mkdir(exist_ok=True)
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return out


# What must be the same.


def files_of(out: Path) -> dict[str, Path]:
    """All files of an output folder by their names, without the times in these."""
    return {
        re.sub(r"\d{14}", "TIME", str(path.relative_to(out))): path
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def rows_of(epochs: list[EpochRow]) -> list[EpochRow]:
    return [replace(row, time_s=0.0) for row in epochs]


def facts_of(path: Path) -> Any:
    """What a file says but for times; None of one that is all about times."""
    if path.suffix == ".safetensors":
        return path.read_bytes()
    if path.name == "search.csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
        return [{name: cell for name, cell in row.items() if name != "Time (s)"} for row in rows]
    if path.parent.name == "result" and path.suffix == ".json":
        record = json.loads(path.read_text())
        rows = [row | {"time_s": 0.0} for row in record["epochs"]]
        return record["accuracies"], rows, record["pairwise_distances"]
    return None


def check(whole: Path, killed: Path) -> None:
    """The same files as those of an undisturbed run, with the same bits, rows and accuracies."""
    ours, expected = files_of(killed), files_of(whole)
    assert ours.keys() == expected.keys()
    for name, path in expected.items():
        assert facts_of(ours[name]) == facts_of(path), name
    for runs in (path for path in whole.rglob("runs") if path.is_dir()):
        pairs = [read_records(runs), read_records(killed / runs.relative_to(whole))]
        assert [skipped for _, skipped in pairs] == [[], []]
        told = [
            [(r.recipe, r.test_accuracy, r.worker_accuracies, rows_of(r.epochs)) for r in records]
            for records, _ in pairs
        ]
        assert told[0] == told[1]


# In CI: each kind is killed when half of it is done.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["separate", "search", "table", "api"])
def test_killed_midway_it_ends_with_the_same(kind: str, data: Path, tmp_path: Path) -> None:
    command = KINDS[kind].command(data)
    whole, killed = completed(command, tmp_path / "whole"), tmp_path / "killed"
    process = started(command, killed)
    while not list(killed.glob(KINDS[kind].midway)):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert all_end(process.pid, within_s=ENDED_S), "an orphan was left"
    time.sleep(3.5 if kind == "search" else 0.0)  # until its point is another's
    check(whole, completed(command, killed))


# The soak.


def moment(out: Path) -> str:
    """Where a run is, by what it has saved."""
    if found := [p for p in out.rglob("runs/*.json") if p.name[0] != "."]:
        return f"with {len(found)} records"
    names = {path.stem for path in out.rglob("*.json")}
    if "phase1" in names:
        return "in phase 2 or 3"
    return "in phase 1" if any(name.startswith("phase1-") for name in names) else "in the set-up"


def is_rank(pid: int) -> bool:
    """Whether a launcher started it to train, as Python's own helpers are not."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """SIGKILL, to all processes of a run, to its launcher, or to one of those that train."""
    ranks = [pid for pid in alive_in_group(process.pid) if is_rank(pid)]
    if victim == "one process" and ranks:
        os.kill(ranks[-1], signal.SIGKILL)
    elif victim == "launcher":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_it_ends_with_the_same(
    kind: str, data: Path, tmp_path: Path
) -> None:
    began, chance, of = time.monotonic(), random.Random(kind), KINDS[kind]
    command, killed = of.command(data), tmp_path / "killed"
    whole = completed(command, tmp_path / "whole")
    # More than a whole run takes, on this machine as busy as it is: a try may reach the end.
    longest_s = 1.3 * (time.monotonic() - began)
    killed.mkdir()
    moments: Counter[str] = Counter()
    victims: Counter[str] = Counter()
    ends = 1
    while moments.total() < KILLS:
        process = started(command, killed)
        try:
            process.wait(timeout=chance.uniform(0.0, longest_s))
        except subprocess.TimeoutExpired:
            moments[moment(killed)] += 1
            victims[victim := chance.choice(of.victims)] += 1
            kill(process, victim)
        else:
            assert process.returncode == 0
            if kind == "search" and ",running" in (killed / "search/mine/search.csv").read_text():
                continue  # by a killed process, as far as the others know
            check(whole, killed)
            _forget(killed)  # done: begin another, of the same bits
            ends += 1
        assert all_end(process.pid, within_s=ENDED_S), "an orphan was left"
    time.sleep(3.5 if kind == "search" else 0.0)
    check(whole, completed(command, killed))
    assert KILLS < 10 or moments["in the set-up"] < 0.7 * KILLS, (
        "too few were killed while they trained"
    )
    if path := os.environ.get("SWAP_SOAK_RECORD"):
        seen = {
            "kills": moments.total(),
            "kills_at": dict(sorted(moments.items())),
            "killed": dict(sorted(victims.items())),
            "ends": ends,
            "bit_equal": True,
            "wall_s": round(time.monotonic() - began, 1),
            "created": now(),
            "code": describe_code(),
            "machine": describe_machine("cpu"),
        }
        _add(Path(path), kind, seen)


def _forget(out: Path) -> None:
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _add(path: Path, kind: str, seen: dict[str, Any]) -> None:
    """Put a kind's part into the record, in the order of the kinds; the others stay."""
    kinds = json.loads(path.read_text()).get("kinds", {}) if path.exists() else {}
    kinds[kind] = seen
    parts = {name: kinds[name] for name in KINDS if name in kinds}
    total = sum(part["kills"] for part in parts.values())
    path.write_text(json.dumps({"kills": total, "kinds": parts}, indent=1) + "\n")
