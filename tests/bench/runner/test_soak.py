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
from processes import alive_in_group
from safetensors.torch import load_file

from bench.hardware.machine import describe_code, describe_machine

KILLS = int(os.environ.get("SWAP_SOAK_KILLS", "200"))
EPOCHS_OF_A_WORKER = 2
RUN = [
    *(sys.executable, "-m", "bench", "run", "cifar10_quick", "--dataset", "synthetic"),
    *("--train-images", "1024", "--width", "4", "--phase1.global-batch-size", "128"),
    *("--phase1.max-epochs", "6", "--phase1.horizon-epochs", "6"),
    *("--phase1.warmup-epochs", "2", "--phase2.max-epochs", str(EPOCHS_OF_A_WORKER)),
    *("--device", "cpu", "--threads", "1", "--quiet", "--resume"),
]
LONGEST_S = 40 * 60
VICTIMS = ("all at once", "launcher", "one rank")
ENDED_S = 20.0
"""By then nothing of a run in which a process was killed may be left."""
LONGEST_TRY_S = 14.0
"""Beyond the start of the processes and the longest stage without a checkpoint, phase 3, so that
a try may reach the end from anywhere."""


def final(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("checkpoints/*/final.safetensors")
    return load_file(path)


def where(out: Path) -> str:
    """The phase in which the run is, by what it has saved."""
    names = {path.stem for path in out.glob("checkpoints/*/*.json")}
    if any(out.glob("runs/*.json")):
        return "the end"
    if names >= {f"worker{worker}-epoch{EPOCHS_OF_A_WORKER}" for worker in range(4)}:
        return "phase 3"
    if "phase1" in names:
        return "phase 2"
    return "phase 1" if any(name.startswith("phase1-") for name in names) else "the set-up"


def is_rank(pid: int) -> bool:
    """Whether a launcher started it to train, as Python's own helpers are not."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """SIGKILL, to all processes of a run, to its launcher, or to one of its ranks."""
    ranks = [pid for pid in alive_in_group(process.pid) if is_rank(pid)]
    if victim == "one rank" and ranks:
        os.kill(ranks[-1], signal.SIGKILL)
    elif victim == "launcher":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=ENDED_S)


@pytest.mark.soak
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    began, chance = time.monotonic(), random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    command = [*RUN, "--ranks", "2", "--out"]
    subprocess.run([*command, str(whole)], check=True)
    kills: Counter[str] = Counter()
    victims: Counter[str] = Counter()
    runs = 0
    while sum(kills.values()) < KILLS:
        process = subprocess.Popen(
            [*command, str(killed)], start_new_session=True, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=chance.uniform(0.0, LONGEST_TRY_S))
        except subprocess.TimeoutExpired:
            kills[where(killed)] += 1
            victims[victim := chance.choice(VICTIMS)] += 1
            kill(process, victim)
        else:
            assert process.returncode == 0
            check(whole, killed)
            _forget(killed)  # done: begin another, of the same bits
            runs += 1
        deadline = time.monotonic() + ENDED_S
        while alive_in_group(process.pid):
            assert time.monotonic() < deadline, "an orphan was left"
            time.sleep(0.1)
        assert time.monotonic() - began < LONGEST_S
    subprocess.run([*command, str(killed)], check=True)
    check(whole, killed)
    if path := os.environ.get("SWAP_SOAK_RECORD"):
        told = {
            "kills": sum(kills.values()),
            "kills_in": dict(sorted(kills.items())),
            "killed": dict(sorted(victims.items())),
            "runs": runs + 1,
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
