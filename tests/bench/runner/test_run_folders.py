"""Which run goes on, which is left alone, and whose phase 1 another takes over."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.cli import main
from bench.runner import run_folders
from bench.runner.attempts import Attempt, is_running
from bench.runner.run_folders import (
    Description,
    RunSpec,
    describe_run,
    find_place,
    find_start,
    write_description,
)
from swap_fast.config.execution import Execution
from swap_fast.recipes.cifar10 import cifar10_quick
from swap_fast.recipes.cifar100 import (
    cifar100_sgd_large_cpu,
    cifar100_swa_large_cpu,
    cifar100_swap_40_cpu,
    cifar100_swap_cpu,
)

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


def describe(made: RunSpec, **changed: Any) -> Description:
    return describe_run(made, {"sha256": "ab"}, 1) | changed


def begin(made: RunSpec, created: str, *, done: bool = False, **changed: Any) -> Path:
    """A run's folder as it is after its beginning, and perhaps its record."""
    about = describe(made, created=created, **changed)
    folder = find_place(replace(made, resume="no"), about).folder
    write_description(folder, about)
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
    with pytest.raises(ValueError, match=r"^--resume: ") as refused:
        find_place(other, describe(other))
    assert f"{folder.name} was begun with recipe.width 8, not 16; give it" in str(refused.value)
    assert "\n" not in str(refused.value)
    # A table looks for its own alone.
    place = find_place(replace(other, resume="if_same"), describe(other))
    assert place.folder != folder
    with pytest.raises(ValueError, match=r"data\.sha256 'ab', not 'cd'"):
        find_place(made, describe(made, data={"sha256": "cd"}))


def test_another_machine_is_no_difference(tmp_path: Path) -> None:
    made = request(tmp_path)
    folder = begin(made, "2026-11-22T12:00:00", machine={"device": "another"})
    assert find_place(made, describe(made)).folder == folder


def test_a_run_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    made = request(tmp_path)
    folder = begin(made, "2026-11-22T12:00:00")
    with Attempt(folder):
        assert is_running(folder)
        assert find_place(made, describe(made)).folder != folder
        with pytest.raises(ValueError, match="got one that another process is at; wait for it"):
            Attempt(folder)
    assert not is_running(folder)


def test_who_only_looks_keeps_no_attempt_from_beginning(tmp_path: Path) -> None:
    (tmp_path / "attempt-run.lock").touch()
    with open(tmp_path / "attempt-run.lock") as looked:
        fcntl.flock(looked, fcntl.LOCK_SH)
        Timer(0.2, lambda: fcntl.flock(looked, fcntl.LOCK_UN)).start()
        with Attempt(tmp_path):
            assert is_running(tmp_path)


def test_what_was_lost_is_known_from_the_signs_of_life(tmp_path: Path) -> None:
    class KilledError(Exception):
        """In place of a signal."""

    for name, lived_s, kept_s in (("run", 100.0, 60.0), ("worker3", 10.0, 0.0)):
        attempt = Attempt(tmp_path, name)
        attempt.keep(kept_s)
        with pytest.raises(KilledError), attempt:
            raise KilledError
        (path,) = tmp_path.glob(f"attempt-{name}-*.json")
        began = json.loads(path.read_text())["began"]
        os.utime(path, (began + lived_s, began + lived_s))
    with Attempt(tmp_path, "worker3") as again:  # ends well, and leaves nothing
        assert again.goes_on
    with Attempt(tmp_path) as last:
        assert last.interruptions() == {"count": 2, "lost_s": pytest.approx(50.0, abs=1e-3)}


def test_an_attempt_that_ends_well_leaves_nothing_to_tell(tmp_path: Path) -> None:
    with Attempt(tmp_path) as first:
        assert first.interruptions() is None
    with Attempt(tmp_path) as second:
        assert not second.goes_on
        assert second.interruptions() is None


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
    kept = [sorted(p.name for p in o.glob("checkpoints/*/*")) for o in (tmp_path / "whole", out)]
    assert kept[0] == kept[1]
    # The same command once more finds it done.
    before = path.read_bytes()
    assert main([*run, str(out)]) == 0
    assert path.read_bytes() == before
    assert len(list((out / "runs").glob("*.json"))) == 1
