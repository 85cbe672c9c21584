"""A run that is killed again and again: run with `pytest -m soak`, for up to 40 minutes.

SWAP_SOAK_KILLS says how often (200), SWAP_SOAK_RECORD a file for what was seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.machine import describe_code, describe_machine

KILLS = int(os.environ.get("SWAP_SOAK_KILLS", "200"))
RUN = [
    *(sys.executable, "-m", "bench", "run", "cifar10_quick", "--dataset", "synthetic"),
    *("--train-images", "2048", "--width", "4", "--phase1.global-batch-size", "128"),
    *("--phase1.max-epochs", "30", "--phase1.horizon-epochs", "30"),
    *("--phase1.warmup-epochs", "2", "--phase2.max-epochs", "15", "--device", "cpu"),
    *("--threads", "1", "--quiet", "--resume"),
]
LONGEST_S = 40 * 60


def final(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("checkpoints/*/final.safetensors")
    return load_file(path)


def where(out: Path) -> str:
    """The phase in which the run is, by what it has saved."""
    names = {path.stem for path in out.glob("checkpoints/*/*.json")}
    if any(path.name == "final.safetensors" for path in out.glob("checkpoints/*/*")):
        return "phase 3"
    if "phase1" in names:
        return "phase 2"
    return "phase 1" if any(name.startswith("phase1-") for name in names) else "the set-up"


def alive(group: int) -> list[str]:
    """Processes of a group that are more than zombies."""
    done = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return [stat for pgid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


@pytest.mark.soak
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    began, chance = time.monotonic(), random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    subprocess.run([*RUN, "--ranks", "2", "--out", str(whole)], check=True)
    kills: Counter[str] = Counter()
    while sum(kills.values()) < KILLS:
        # One process or two: between phases their number may change, and is kept within one.
        process = subprocess.Popen(
            [*RUN, "--ranks", "2", "--out", str(killed)], start_new_session=True
        )
        try:
            process.wait(timeout=chance.uniform(0.0, 16.0))
        except subprocess.TimeoutExpired:
            kills[where(killed)] += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            assert process.returncode == 0
            if (killed / "runs").exists():  # done: begin another, of the same bits
                check(whole, killed)
                _forget(killed)
        deadline = time.monotonic() + 10
        while alive(process.pid):
            assert time.monotonic() < deadline, "an orphan was left"
            time.sleep(0.1)
        assert time.monotonic() - began < LONGEST_S
    subprocess.run([*RUN, "--ranks", "2", "--out", str(killed)], check=True)
    check(whole, killed)
    if path := os.environ.get("SWAP_SOAK_RECORD"):
        told = {
            "kills": sum(kills.values()),
            "kills_in": dict(sorted(kills.items())),
            "bit_equal": True,
            "wall_s": round(time.monotonic() - began, 1),
            "code": describe_code(),
            "machine": describe_machine("cpu"),
        }
        Path(path).write_text(json.dumps(told, indent=1) + "\n")


def check(whole: Path, killed: Path) -> None:
    """The same weights, one record, and no file but those of an undisturbed run."""
    ours, expected = final(killed), final(whole)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    files = [sorted(path.name for path in out.glob("checkpoints/*/*")) for out in (whole, killed)]
    assert files[0] == files[1]
    assert len(list((killed / "runs").glob("*.json"))) == 1


def _forget(out: Path) -> None:
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
