"""`bench watch`, on runs that are done, that go on and that died, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from event_factory import at, began, done, epoch, phase_end, training

from bench.cli import main
from bench.runner.watch import Follower, find_run
from swap_fast.callbacks.events import EventFile, merge_events, read_events
from swap_fast.checkpoint.attempts import Attempt

pytestmark = pytest.mark.usefixtures("small_cifar")

RUN = [
    *(sys.executable, "-m", "bench", "run", "cifar10_quick", "--dataset", "cifar10"),
    *("--train-images", "1024", "--width", "4", "--phase1.global-batch-size", "64"),
    *("--phase1.max-epochs", "20", "--phase1.horizon-epochs", "20", "--phase2.max-epochs", "1"),
    *("--device", "cpu", "--ranks", "1", "--threads", "1"),
]
WATCH = [sys.executable, "-m", "bench", "watch"]


def tell(folder: Path, *events: dict, part: str = "run", rank: int = 0) -> None:
    file = EventFile(folder, part=part, rank=rank)
    for event in events:
        file({**event, "part": part, "rank": rank})
    file.close()


def small_run(out: Path, name: str = "small-seed3-20261122120000") -> Path:
    """The folder of a run that has begun, long ago, and trained an epoch."""
    folder = out / "checkpoints" / name
    tell(folder, began(run=name), training(1, 1), epoch(5, 1, 0, 1))
    return folder


def watch(out: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["watch", *arguments, "--out", str(out)])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("once", [["--once"], []])
def test_a_run_that_is_done(
    once: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_run(tmp_path)
    end = [phase_end(5, 1, 0, 1, "stopping_accuracy"), training(6, 2, 0), epoch(9, 2, 0, 1)]
    tell(folder, *end, epoch(12, 2, 0, 2), phase_end(12, 2, 0, 2, "max_epochs"), done(20))
    tell(folder, training(6, 2, 1, step=0), phase_end(13, 2, 1, 2, "max_epochs"), rank=1)
    merge_events(folder)
    code, lines = watch(tmp_path, *once, capsys=capsys)
    assert code == 0
    assert lines[0].startswith("small-seed3-20261122120000: done; started 2026-11-2")
    assert lines[0].endswith(", 2 processes, Example CPU")
    assert lines[1:] == [
        "phase 1           100%  epoch 1/3  train 50.00%  test 43.75%  done",
        "phase 2, worker 0 100%  epoch 2/2  train 50.00%  test 43.75%  done",
        "phase 2, worker 1 100%  epoch 2/2  test 43.75%  done",
        "test accuracy 75.00%, 50.00% before averaging; training time 60.0 s; record: "
        "results/runs/small.json",
    ]


@pytest.mark.parametrize(
    ("metric", "tests", "line"),
    [
        (None, (0.75, 0.5), "test accuracy 75.00%, 50.00% before averaging; training time 60.0 s"),
        (None, (None, None), "test accuracy not measured; training time 60.0 s"),
        ("rmse", (1.5, 2.0), "rmse 1.5, 2 before averaging; training time 60.0 s"),
    ],
)
def test_a_run_of_swap_has_no_record_and_measures_what_it_likes(
    metric: str | None, tests: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints" / "Net-seed0-20261122120000"
    end = done(20) | dict(zip(("test_accuracy", "accuracy_before_averaging"), tests, strict=True))
    del end["record"]
    told = began(run=folder.name, plan=began()["plan"] | {"metric": metric})
    tell(folder, told, training(1, 1), epoch(5, 1, 0, 1, test_accuracy=tests[0]), end)
    code, lines = watch(tmp_path, "--once", capsys=capsys)
    assert (code, lines[-1]) == (0, line)
    assert "nan" not in "".join(lines)


def test_a_run_that_died_is_said_to_be_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run(tmp_path)
    code, lines = watch(tmp_path, capsys=capsys)
    assert code == 1
    assert ": dead: no process runs it, last sign of life " in lines[0]
    assert lines[1] == "phase 1            33%  epoch 1/3  train 50.00%  test 43.75%  stopped"


def test_a_run_that_a_process_is_at_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_run(tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    with Attempt(folder):
        code, lines = watch(tmp_path, "--once", capsys=capsys)
        assert not Follower(folder).view.run  # nothing is read before it is asked for
        follower = Follower(folder)
        follower.poll()
        assert not follower.is_over()
    assert code == 0
    assert lines[0].startswith("small-seed3-20261122120000: running; started")
    assert "100 images/s" in lines[1]
    (lock,) = {path.name for path in folder.iterdir()} - set(before)
    assert lock == "attempt-run.lock"  # the attempt's own: to watch leaves nothing


@pytest.mark.parametrize(
    ("kind", "values", "code", "words"),
    [
        ("interrupted", {"reason": "SIGTERM"}, 75, "interrupted (SIGTERM)"),
        ("failed", {"error": "ValueError: no"}, 1, "failed (ValueError: no)"),
    ],
)
def test_a_run_that_ended_badly(
    kind: str,
    values: dict,
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = small_run(tmp_path)
    tell(folder, at(9, kind, **values))
    status, lines = watch(tmp_path, capsys=capsys)
    assert (status, lines[0].split(";")[0].split(": ", 1)[1]) == (code, words)
    with Attempt(folder):  # resumed, and not yet begun
        status, lines = watch(tmp_path, "--once", capsys=capsys)
    assert (status, lines[0].split(";")[0].split(": ")[1]) == (0, "running")


def test_a_run_of_another_machine_is_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints" / "far"
    tell(folder, began(run="far", host="another"), training(1, 1), epoch(5, 1, 0, 1))
    code, lines = watch(tmp_path, "--once", capsys=capsys)
    assert code == 0
    assert lines[0].startswith("far: on another, last sign of life ")
    follower = Follower(folder)
    follower.poll()
    assert not follower.is_over()
    # Two jobs on it: one fails, then the other.
    for worker in (0, 1):
        tell(folder, began(6, host="another"), training(7, 2, worker), part=f"worker{worker}")
    for worker, over in ((0, False), (1, True)):
        tell(folder, at(8 + worker, "failed", error="gone"), part=f"worker{worker}")
        tell(folder, at(8, "part_done"))
        follower.poll()
        assert follower.is_over() == over
    code, _ = watch(tmp_path, capsys=capsys)
    assert code == 1


def test_between_two_jobs_it_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run(tmp_path)
    tell(folder, phase_end(6, 1, 0, 1, "max_epochs"), at(7, "part_done"))
    _, lines = watch(tmp_path, "--once", capsys=capsys)
    assert "between two parts: no process runs now" in lines[0]
    tell(folder, began(8), training(8, 2, 1), epoch(9, 2, 1, 1), part="worker1")
    _, lines = watch(tmp_path, "--once", capsys=capsys)  # that worker was killed
    assert "dead: no process runs it" in lines[0]
    assert lines[3] == "phase 2, worker 1  50%  epoch 1/2  train 50.00%  test 43.75%  stopped"


def test_a_run_is_found_by_name_beginning_path_or_age(tmp_path: Path) -> None:
    folders = [small_run(tmp_path, name) for name in ("b-1", "b-10", "a-1")]
    for age, folder in enumerate(folders):
        (path,) = folder.glob("events*")
        os.utime(path, (1000 + age, 1000 + age))
    (tmp_path / "checkpoints" / "c-silent").mkdir()
    assert find_run(None, tmp_path) == folders[2]
    assert find_run("b-1", tmp_path) == folders[0]  # whole, though another begins with it
    assert find_run("b", tmp_path) == folders[1]
    assert find_run(str(folders[0]), tmp_path / "elsewhere") == folders[0]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ([], "watch: expected a run in "),
        (["zzz"], "watch: expected a run whose name begins with 'zzz' in "),
    ],
)
def test_without_such_a_run_it_says_so(
    run: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "old").mkdir(parents=True)  # of a version that told nothing
    assert main(["watch", *run, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def wait_for(out: Path, kind: str, process: subprocess.Popen) -> Path:
    """The folder of a run of another process, once it has told of such an event."""
    while True:
        assert process.poll() is None, "it ended too early"
        for folder in out.glob("checkpoints/*"):
            if any(event["event"] == kind for event in read_events(folder)):
                return folder
        time.sleep(0.02)


@pytest.mark.slow
def test_a_real_run_is_watched_to_its_interruption_and_its_end(tmp_path: Path) -> None:
    run = [*RUN, "--out", str(tmp_path)]
    with subprocess.Popen([*run, "--json"], stdout=subprocess.PIPE, text=True) as process:
        folder = wait_for(tmp_path, "checkpoint", process)
        once = subprocess.run(
            [*WATCH, "--once", "--out", str(tmp_path)], capture_output=True, text=True, check=True
        )
        head, phase1, *_ = once.stdout.splitlines()
        assert head.startswith(f"{folder.name}: running; ")
        assert phase1.split()[4].endswith("/20")
        with subprocess.Popen(
            [*WATCH, folder.name, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as watching:
            assert watching.stdout is not None
            assert watching.stdout.readline().startswith(f"{folder.name}: running; ")
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            seen, _ = watching.communicate(timeout=60)
    assert (process.returncode, watching.returncode) == (75, 75)
    told = [json.loads(line) for line in said.splitlines()]
    assert told[-1]["event"] == "interrupted"
    # Told within a test, it ends there, and its last epoch comes again.
    stopped = [event["epoch"] for event in told if event["event"] == "checkpoint"][-1]
    assert f"{folder.name}: interrupted (" in seen
    assert " stopped" in seen
    done = subprocess.run([*run, "--resume"], capture_output=True, text=True, check=True)
    assert f"phase 1           resumed after epoch {stopped}, as it was saved" in done.stdout
    events = read_events(folder)
    kinds = [event["event"] for event in events]
    assert (kinds.count("began"), kinds[-1]) == (2, "done")
    epochs = {e["epoch"] for e in events if e["event"] == "epoch" and e["phase"] == 1}
    assert epochs == set(range(1, 21))
    assert [path.name for path in folder.glob("events*")] == ["events.jsonl"]


@pytest.mark.slow
def test_a_killed_run_is_dead_and_goes_on_behind_its_half_line(tmp_path: Path) -> None:
    run = [*RUN, "--quiet", "--out", str(tmp_path)]
    with subprocess.Popen(run) as process:
        folder = wait_for(tmp_path, "checkpoint", process)
        process.kill()
    (path,) = folder.glob("events*")
    path.write_bytes(path.read_bytes()[:-7])
    watching = subprocess.run(
        [*WATCH, "--out", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert watching.returncode == 1
    assert "dead: no process runs it" in watching.stdout
    subprocess.run([*run, "--resume"], check=True)
    kinds = [event["event"] for event in read_events(folder)]
    assert (kinds.count("began"), kinds.count("done")) == (2, 1)


def test_ctrl_c_leaves(tmp_path: Path) -> None:
    folder = small_run(tmp_path)
    with (
        Attempt(folder),
        subprocess.Popen(
            [*WATCH, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_to_watch_loads_no_torch(tmp_path: Path) -> None:
    small_run(tmp_path)
    program = (
        "import sys\nfrom bench.cli import main\n"
        f"main(['watch', '--once', '--out', {str(tmp_path)!r}])\n"
        "assert not {'torch', 'numpy', 'jinja2'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
