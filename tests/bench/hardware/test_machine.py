"""A process of one thread on a core of its own, and beside others that have theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bench.hardware.machine import CoresUsed, OtherWork, core_numbers, on_own_core, other_cores
from bench.options import RunOptions
from bench.runner import session
from swap_fast.recipes.cifar10 import RECIPES

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the platform pins no thread"
)
# Other runs on this machine may have its cores, so that what is taken is asked of two numbers that
# no machine has: the marks are names alone.
FAR = {100_000, 100_001}


def test_a_core_is_taken_once_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append(set(cores)))
    before = os.sched_getaffinity(0)
    with on_own_core(FAR) as first, on_own_core(FAR) as second, on_own_core(FAR) as third:
        assert (first, second, third) == (True, True, False)
    assert pinned == [{100_000}, {100_001}, FAR, before, before, before]
    with on_own_core(FAR) as again:
        assert again


def test_the_mark_of_another_process_counts_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None)
    code = (
        "import os, sys\nfrom bench.hardware.machine import on_own_core\n"
        "os.sched_setaffinity = lambda pid, cores: None\n"
        "with on_own_core({100_002}):\n    print('taken', flush=True)\n    sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == "taken\n"
        with on_own_core({100_002}) as has_core:
            assert not has_core
        other.kill()
    with on_own_core({100_002}) as has_core:
        assert has_core


def write_proc(proc: Path, *, busy: tuple[int, ...], own: int, child: int) -> None:
    """The kernel's tables of this process with one child, in clock ticks."""
    user, nice, system, irq, stolen = busy
    proc.mkdir(exist_ok=True)
    (proc / "stat").write_text(f"cpu  {user} {nice} {system} 9000 500 {irq} 0 {stolen} 7 0\ncpu0\n")
    for pid, ticks, children in ((os.getpid(), own, "77 "), (77, child, "")):
        (proc / f"{pid}/task/{pid}").mkdir(parents=True, exist_ok=True)
        (proc / f"{pid}/stat").write_text(f"{pid} (a ) b) S {'0 ' * 10}{ticks} 1 2 3 20 0")
        (proc / f"{pid}/task/{pid}/children").write_text(children)


def test_other_programs_are_what_this_one_and_its_children_did_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.0, 10.0))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    hz = os.sysconf("SC_CLK_TCK")
    write_proc(tmp_path / "proc", busy=(0, 0, 0, 0, 0), own=0, child=0)
    beside = OtherWork(tmp_path / "proc")
    write_proc(
        tmp_path / "proc",
        busy=(8 * hz, 4 * hz, 2 * hz, hz, 2 * hz),
        own=5 * hz,
        child=4 * hz,
    )
    reading = beside.read()
    assert reading is not None
    host, *cores = reading
    assert cores == pytest.approx([1.7, 0.9])
    assert other_cores([reading]) == pytest.approx(0.8)
    # Two ranks of this host, and one of another where nothing else ran.
    elsewhere = CoresUsed("elsewhere", 1.0, 1.01)
    assert other_cores([reading, CoresUsed(host, 1.7, 0.6), elsewhere]) == pytest.approx(0.2)
    assert other_cores([elsewhere]) == 0
    assert other_cores([reading, None]) is None


def test_a_system_without_such_tables_tells_nothing(tmp_path: Path) -> None:
    assert OtherWork(tmp_path / "none").read() is None


def test_what_is_started_within_stays_on_the_core() -> None:
    before = core_numbers()
    seen: list[set[int]] = []
    with on_own_core({min(before)}):
        thread = threading.Thread(target=lambda: seen.append(core_numbers()))
        thread.start()
        thread.join()
        command = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert seen == [{min(before)}]
    assert child.stdout.split() == [str(min(before))]
    assert core_numbers() == before


def test_where_no_core_can_be_pinned_runs_go_on_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with on_own_core(session.choose_cores(RunOptions(), "cpu")) as has_core:
        assert not has_core
    with pytest.raises(ValueError, match="cores: expected any with no way to pin a thread here"):
        session.choose_cores(RunOptions(cores="own"), "cpu")


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        ("cifar10_cpu", {}, ((2, 1), ())),  # four workers take turns
        ("cifar10_cpu", {"cores": "own"}, ((2, 1), (4, 6))),
        ("cifar10_cpu", {"cores": (6,)}, ((1, 1), (6,))),
        ("cifar10_cpu", {"threads": 2, "ranks": 1}, ((1, 2), ())),
        ("cifar100_sgd_small", {"cores": "own"}, ((1, 1), (4, 6))),  # one device of two
    ],
)
def test_a_device_is_a_process_of_one_thread(
    recipe: str, options: dict, expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 6})
    made = RunOptions(device="cpu", **options)
    found = session.processes(made, RECIPES[recipe](), "cpu"), session.choose_cores(made, "cpu")
    assert found == expected


@pytest.mark.parametrize(
    ("options", "device_type", "message"),
    [
        ({"cores": (0, 0)}, "cpu", "cores: expected different numbers of 0 or more, got 0, 0"),
        ({"cores": "own", "threads": 2}, "cpu", "threads: expected 1 on cores of its own, got 2"),
        ({"cores": (0, 99_999)}, "cpu", "cores: expected some of .*, got 99999"),
        ({"cores": "own"}, "cuda", "cores: expected any with a CUDA device, got own"),
    ],
)
def test_cores_that_cannot_be_are_one_line(options: dict, device_type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        session.choose_cores(RunOptions(**options), device_type)
