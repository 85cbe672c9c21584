"""Which run goes on, which is left alone, and whose phase 1 another takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main
from bench.runner import run_folders
from bench.runner.run_folders import RunSpec, describe_run, find_place, find_start
from swap_fast.checkpoint.attempts import Attempt, is_running
from swap_fast.checkpoint.files import write_json
from swap_fast.checkpoint.run_folder import RUN_FILE, RunInfo, enter_folder, keep_step
from swap_fast.config.execution import Execution
from swap_fast.config.step_choice import StepChoice
from swap_fast.recipes.cifar10 import cifar10_quick
from swap_fast.recipes.cifar100 import (
    cifar100_sgd_large_cpu,
    cifar100_swa_large_cpu,
    cifar100_swap_40_cpu,
    cifar100_swap_cpu,
)
from swap_fast.record import QUIET_CORES

SMALL = [
    *("--dataset", "cifar10", "--train-images", "1024", "--width", "4"),
    *("--phase1.max-epochs", "2", "--phase1.warmup-epochs", "0.5", "--ranks", "1"),
    *("--threads", "1", "--device", "cpu", "--quiet"),
]


def request(out: Path, **changed: Any) -> RunSpec:
    made = RunSpec(
        recipe=cifar10_quick(),
        overrides=(),
        seed=0,
        data=None,
        out=out,
        execution=Execution(),
        threads=1,
        code={},
        started=0.0,
        resume="yes",
    )
    return replace(made, **changed)


def describe(made: RunSpec, **changed: Any) -> RunInfo:
    """Settings and fields may be changed."""
    info = describe_run(made, {"sha256": "ab"}, 1)
    own = {name: changed.pop(name) for name in ("created", "machine") if name in changed}
    return replace(info, settings=info.settings | changed, **own)


def begin(made: RunSpec, created: str, *, done: bool = False, **changed: Any) -> Path:
    """A run's folder as it is after its beginning, and perhaps its record."""
    info = describe(made, created=created, **changed)
    folder = find_place(replace(made, resume="no"), info).folder
    write_json(folder / RUN_FILE, info)
    if done:
        (made.out / "runs").mkdir(exist_ok=True)
        (made.out / "runs" / f"{folder.name}.json").write_text("{}")
    return folder


def test_the_newest_unfinished_run_goes_on(tmp_path: Path) -> None:
    made = request(tmp_path)
    assert find_place(made, describe(made)).record is None
    begin(made, "2026-11-22T12:00:00", done=True)
    begin(made, "2026-11-22T12:00:01")
    newest = begin(made, "2026-11-22T12:00:02")
    begin(replace(made, seed=1), "2026-11-22T12:00:03")
    place = find_place(made, describe(made))
    assert (place.folder, place.created, place.record) == (newest, "2026-11-22T12:00:02", None)


def test_a_run_that_is_done_is_left_alone(tmp_path: Path) -> None:
    made = request(tmp_path)
    done = begin(made, "2026-11-22T12:00:00", done=True)
    place = find_place(made, describe(made))
    assert place.folder == done
    assert place.record == tmp_path / "runs" / f"{done.name}.json"
    # A table's run on another kind of machine is another run.
    assert find_place(replace(made, resume="if_same"), describe(made)).record is None


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    made = request(tmp_path)
    folder = begin(made, "2026-11-22T12:00:00")
    recipe = replace(made.recipe, width=16)
    other = replace(made, recipe=recipe)
    with pytest.raises(ValueError, match=r"^resume: ") as refused:
        find_place(other, describe(other))
    assert f"{folder.name} was started, got recipe.width 16 in place of 8" in str(refused.value)
    assert "\n" not in str(refused.value)
    # A table looks for its own alone.
    place = find_place(replace(other, resume="if_same"), describe(other))
    assert place.folder != folder
    with pytest.raises(ValueError, match=r"data\.sha256 'cd' in place of 'ab'"):
        find_place(made, describe(made, data={"sha256": "cd"}))


def test_another_machine_is_no_difference(tmp_path: Path) -> None:
    made = request(tmp_path)
    folder = begin(made, "2026-11-22T12:00:00", machine={"device": "another"})
    assert find_place(made, describe(made)).folder == folder


@pytest.mark.parametrize("resume", ["yes", "if_same"])
def test_a_damaged_run_file_says_what_to_do(resume: Any, tmp_path: Path) -> None:
    made = request(tmp_path, resume=resume)
    folder = begin(made, "2026-11-22T12:00:00")
    content = bytearray((folder / RUN_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / RUN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"expected JSON .*; delete this folder, or") as refused:
        find_place(made, describe(made))
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    # Runs that have nothing to do with it go on: another seed's, and one that looks for a phase 1.
    assert find_place(replace(made, seed=1), describe(replace(made, seed=1))).record is None
    assert find_start(folder.parent, describe(made)) is None
    # A command in one line, with the status of a user's error.
    assert main(["run", "cifar10_quick", *SMALL, "--resume", "--out", str(tmp_path)]) == 2


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    made = request(tmp_path)
    folder = begin(made, "2026-11-22T12:00:00")
    with Attempt(folder):
        assert is_running(folder)
        assert find_place(made, describe(made)).folder != folder
        with pytest.raises(ValueError, match="got one that another process is at; wait for it"):
            Attempt(folder)
    assert not is_running(folder)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (cifar100_swap_cpu, cifar100_swap_40_cpu, True),
        (cifar100_sgd_large_cpu, cifar100_swa_large_cpu, True),
        (cifar100_sgd_large_cpu, cifar100_swap_cpu, False),
    ],
)
def test_recipes_share_a_phase_1_where_nothing_of_it_differs(
    first: Any, second: Any, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folders, "last_of", lambda folder, phase: _Done)
    one, other = (request(tmp_path, recipe=make()) for make in (first, second))
    folder = begin(one, "2026-11-22T12:00:00")
    assert find_start(folder.parent, describe(other)) == (folder if shared else None)
    for changed in ({"seed": 1}, {"data": {"sha256": "cd"}}, {"machine": {}}, {"execution": {}}):
        assert find_start(folder.parent, describe(other, **changed)) is None


CHOICE = StepChoice(chosen="fused", times_s={"eager": {"phase 1": 0.5}}, dropped={})


def test_a_resumed_run_keeps_the_step_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = request(tmp_path)
    folder = begin(made, "2026-11-22T12:00:00")
    assert find_place(made, describe(made)).step_choice is None
    keep_step(folder, CHOICE)
    place = find_place(made, describe(made))
    assert (place.folder, place.step_choice) == (folder, CHOICE)
    info = replace(describe(made), step_choice=place.step_choice)
    with enter_folder(folder, info):
        assert find_place(replace(made, folder=folder), info).step_choice == CHOICE
    # So does a run that takes over its phase 1.
    monkeypatch.setattr(run_folders, "last_of", lambda folder, phase: _Done)
    other = replace(made, resume="no", share_phase1=True)
    place = find_place(other, describe(other, created="2026-11-22T13:00:00"))
    assert (place.start, place.step_choice) == (folder, CHOICE)


class _Done:
    stopped_by = "max_epochs"


def final(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("checkpoints/*/final.safetensors")
    return load_file(path)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(small_cifar: Path, tmp_path: Path) -> None:
    run = ["run", "cifar10_quick", *SMALL, "--resume", "--out"]
    assert main([*run, str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "bench", *run, str(out)]
    for events in (1, 2, 4):  # after so many checkpoints
        with subprocess.Popen(command, start_new_session=True) as process:
            while len(list(out.glob("checkpoints/*/*.json"))) < 2 + events:
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
    assert not list((out / "runs").glob("*.json"))
    assert main([*run, str(out)]) == 0
    whole, ours = final(tmp_path / "whole"), final(out)
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())
    (path,) = (out / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["interruptions"]["count"] == 3
    assert record["interruptions"]["lost_s"] > 0
    assert record["other_work"] is None or record["other_work"] >= QUIET_CORES
    kept = [sorted(p.name for p in o.glob("checkpoints/*/*")) for o in (tmp_path / "whole", out)]
    assert kept[0] == kept[1]
    # The same command once more finds it done.
    before = path.read_bytes()
    assert main([*run, str(out)]) == 0
    assert path.read_bytes() == before
    assert len(list((out / "runs").glob("*.json"))) == 1
