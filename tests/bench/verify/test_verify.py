"""`verify-gpu`: its record, its time limits and its repeats, and every check's CPU form."""

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
import torch
from processes import all_end
from repository import ROOT, TESTS

from bench.cli import main
from bench.planner.model import by_device_name
from bench.runner.process import NoAnswerError
from bench.verify import command as verify
from bench.verify import runs as run_checks
from bench.verify import step as step_checks
from bench.verify.check import Check, CheckProcess, Form, UnavailableError
from bench.verify.command import CHECKS
from bench.verify.equivalence import growth
from bench.verify.speed import planned, too_slow
from swap_fast.config.execution import Execution
from swap_fast.shutdown import InterruptedRunError
from swap_fast.training.step import Step

LIMIT_S = 2.0


def fine(form: Form) -> str:
    """Confirmed."""
    return f"seen on {form.device_type}, {'small' if form.small else 'whole'}"


def broken(form: Form) -> str:
    """Fail, as long as nobody mends it."""
    if "MENDED" in os.environ:
        return "mended"
    raise AssertionError("nothing\nheld")


def missing(form: Form) -> str:
    """Need something."""
    raise UnavailableError("two of them")


def hanging(form: Form) -> str:
    """Never end, with a process of its own."""
    subprocess.Popen(["sleep", "600"])
    while True:
        time.sleep(1)


def dying(form: Form) -> str:
    """End the process, as an assertion of a driver does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def says_its_process(form: Form) -> str:
    """Say which process it was in."""
    print("this is not seen")
    return str(os.getpid())


def check(confirm: Any, limit_s: float = 60.0, name: str | None = None) -> Check:
    """A check with its function's name."""
    name = name or confirm.__name__
    return Check(name=name, claim="a claim", confirm=confirm, limit_s=limit_s)


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of one commit, whatever the checkout is at."""
    code = {"version": "1", "commit": "c0ffee", "changed": False}
    monkeypatch.setattr(verify, "describe_code", lambda: code)


def set_checks(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(verify, "CHECKS", checks)


def outcomes(path: Path) -> list[tuple[str, str]]:
    """Names and outcomes of a record."""
    return [(o["name"], o["outcome"]) for o in json.loads(path.read_text())["checks"]]


@pytest.mark.slow  # processes that import torch
def test_what_hangs_or_dies_costs_its_own_check_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    set_checks(
        monkeypatch,
        check(says_its_process, name="first"),
        check(missing),
        check(says_its_process, name="same"),
        check(hanging, limit_s=LIMIT_S),
        check(says_its_process, name="next"),
        check(dying),
        check(broken),
        check(says_its_process, name="last"),
    )
    written: list[list[tuple[str, str]]] = []
    write_file = verify.write_file

    def write(path: Path, content: bytes) -> None:
        write_file(path, content)
        written.append(outcomes(path))

    monkeypatch.setattr(verify, "write_file", write)
    assert verify.verify("cpu", tmp_path) == 1
    (path,) = tmp_path.iterdir()
    details = {o["name"]: o["detail"] for o in json.loads(path.read_text())["checks"]}
    assert outcomes(path) == [
        ("first", "confirmed"),
        ("missing", "unavailable"),
        ("same", "confirmed"),
        ("hanging", "failed"),
        ("next", "confirmed"),
        ("dying", "failed"),
        ("broken", "failed"),
        ("last", "confirmed"),
    ]
    assert written == [outcomes(path)[: number + 1] for number in range(8)]
    assert details["missing"] == "needs two of them"
    assert details["hanging"] == "no answer within 2 s"
    assert details["dying"] == "its process was ended by SIGKILL"
    assert details["broken"] == "AssertionError: nothing held"
    # What needs something leaves its process as it was; after a failure there is another.
    assert details["first"] == details["same"]
    assert len({details[name] for name in ("same", "next", "last")}) == 3
    printed = capfd.readouterr().out
    assert "this is not seen" not in printed
    assert printed.index("runs        hanging") < printed.index("failed      hanging")
    assert "4 confirmed, 3 failed, 1 unavailable; record: " in printed
    for name in ("first", "next", "last"):
        assert all_end(int(details[name]))


@pytest.mark.slow
def test_a_repeat_runs_what_is_not_confirmed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unchanged: None,
) -> None:
    set_checks(monkeypatch, check(fine), check(broken), check(missing))
    assert verify.verify("cpu", tmp_path) == 1
    (first,) = tmp_path.iterdir()
    monkeypatch.setenv("MENDED", "1")
    capsys.readouterr()
    assert verify.verify("cpu", tmp_path) == 0
    (second,) = set(tmp_path.iterdir()) - {first}
    printed = capsys.readouterr().out
    assert "confirmed before, with the same code here: fine; --all repeats" in printed
    assert "runs        fine" not in printed
    checks = {o["name"]: o for o in json.loads(second.read_text())["checks"]}
    assert checks["fine"]["record"] == first.name
    assert checks["broken"]["record"] is None
    assert outcomes(second) == [
        ("fine", "confirmed"),
        ("broken", "confirmed"),
        ("missing", "unavailable"),
    ]
    # All, or those named, run whatever was confirmed.
    assert verify.verify("cpu", tmp_path, only=["fine"]) == 0
    assert "runs        fine" in capsys.readouterr().out
    assert verify.verify("cpu", tmp_path, everything=True) == 0
    printed = capsys.readouterr().out
    assert "confirmed before" not in printed
    assert all(f"runs        {name}" in printed for name in ("fine", "broken", "missing"))


def test_what_another_machine_code_or_size_confirmed_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchanged: None
) -> None:
    set_checks(monkeypatch, check(fine), check(broken))
    form, machine = Form(device_type="cpu", small=True), {"device": "a"}

    def kept(kind: str, name: str = "fine", detail: str = "") -> None:
        outcome = verify.CheckResult(name=name, claim="", outcome=kind, detail=detail, time_s=0.0)
        verify.Record(tmp_path, form, machine).add(outcome)

    def taken(form: Form = form, device: str = "a") -> list[str]:
        return list(verify.Record(tmp_path, form, {"device": device}).confirmed_before())

    kept("confirmed")
    kept("confirmed", name="gone")  # a check that this version does not have
    assert taken() == ["fine"]
    assert taken(device="b") == []
    assert taken(Form(device_type="cpu")) == []
    assert taken(Form(device_type="cuda", small=True)) == []
    for code in (
        {"version": "1", "commit": "decaf", "changed": False},
        {"version": "1", "commit": "c0ffee", "changed": True},  # it differs from its commit
    ):
        with monkeypatch.context() as other:
            other.setattr(verify, "describe_code", lambda code=code: code)
            assert taken() == []
    (tmp_path / "verify-cpu-1.json").write_text('{"cut short')
    (tmp_path / "verify-cpu-2.json").write_text("[]")
    assert taken() == ["fine"]
    kept("failed")  # the newest counts
    assert taken() == []


@pytest.mark.slow
def test_an_interrupt_leaves_the_record_and_no_process(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from bench.verify import command as verify\n"
        "import test_verify as own\n"
        "if __name__ == '__main__':\n"
        "    verify.CHECKS = [own.check(own.says_its_process), own.check(own.hanging, 60)]\n"
        f"    verify.verify('cpu', Path({str(tmp_path)!r}))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    path = os.pathsep.join([str(ROOT), str(TESTS), str(Path(__file__).parent)])
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("runs        hanging"):
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    (record,) = tmp_path.glob("verify-cpu-*.json")
    (told,) = json.loads(record.read_text())["checks"]
    assert told["outcome"] == "confirmed"
    assert all_end(int(told["detail"]))


def test_a_name_that_is_no_check_s_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-gpu", "--only", "replai"]) == 2
    assert "replay" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_is_killed_takes_what_it_started_with_it() -> None:
    with CheckProcess() as process:
        group = int(process.call(says_its_process, Form(device_type="cpu"), limit_s=60))
        with pytest.raises(NoAnswerError, match=r"^no answer within 2 s$"):
            process.call(hanging, Form(device_type="cpu"), limit_s=LIMIT_S)
        assert all_end(group)
        assert process.call(fine, Form(device_type="cpu"), limit_s=60) == "seen on cpu, whole"


NO_CPU_FORM = {"launches", "fused", "telemetry", "shared-pool", "imagenet-memory"}
MAY_BE_MISSING = NO_CPU_FORM | {"compiled", "dali-cifar", "dali-imagenet"}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))  # for as many processes of pytest
def test_every_check_with_a_form_for_cpus_is_confirmed(
    part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [check.name for check in CHECKS][part::3]
    command = ["verify-gpu", "--device", "cpu", "--out", str(tmp_path), "--only", *names]
    assert main(command) == 0
    (path,) = tmp_path.glob("verify-cpu-*.json")
    record = json.loads(path.read_text())
    assert record["machine"]["device_type"] == "cpu"
    assert record["small"]
    found = {each["name"]: each["outcome"] for each in record["checks"]}
    assert list(found) == names
    assert {name for name, outcome in found.items() if outcome == "unavailable"} <= MAY_BE_MISSING
    assert all(found[name] == "unavailable" for name in NO_CPU_FORM & found.keys())
    assert "failed" not in found.values()
    assert "say nothing about a GPU" in capsys.readouterr().out


def test_growth_is_the_share_that_is_added() -> None:
    held: list[int] = []
    # 20 calls before the first count, then 5.
    assert growth(lambda: held.append(1), lambda: float(len(held)), times=5) == 5 / 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_device_s_name_says_which_the_planner_knows(name: str, expected: str | None) -> None:
    assert by_device_name(name) == expected


def test_the_planner_expects_more_of_steps_than_of_epochs_and_of_newer_devices() -> None:
    v100, h100 = planned("v100"), planned("h100")
    # The paper's 8 V100 train phase 2 at 20.8k images/s each; the authors' later program at 14.1k.
    assert 14_142 < v100[0] < 25_000
    for steps, epochs in (v100, h100):
        assert epochs < steps
    assert h100[0] > 3 * v100[0]


def test_a_device_below_half_of_the_planner_s_rates_is_too_slow() -> None:
    steps, epochs = planned("a100")
    assert too_slow("a100", "captured", 0.51 * steps, 0.51 * epochs) == []
    (line,) = too_slow("a100", "captured", steps, 0.49 * epochs)
    assert line.startswith(f"captured: {0.49 * epochs:,.0f} images/s in epochs, expected ")


# That the checks can fail: each with what it is to find.


SMALL = Form(device_type="cpu", small=True)


@pytest.mark.slow  # the watch imports much of torch
def test_a_loop_that_reads_a_value_of_the_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_checks, "LOADERS", ("tensor",))
    step_checks.no_waiting(SMALL)
    set_learning_rate = Step.set_learning_rate

    def reads(self: Step, learning_rate: float) -> None:
        set_learning_rate(self, learning_rate)
        float(self.loss_sum)

    monkeypatch.setattr(Step, "set_learning_rate", reads)
    with pytest.raises(AssertionError, match="_local_scalar_dense waits for the device"):
        step_checks.no_waiting(SMALL)


@pytest.mark.parametrize(
    ("eager", "captured", "expected"),
    [
        (0.7, 0.62, "apart, allowed 4%"),
        (0.15, 0.15, "expected 20% or more"),
        (1.0, 1.0, "nothing is right throughout"),
    ],
)
def test_accuracies_that_are_apart_too_low_or_too_good_are_found(
    monkeypatch: pytest.MonkeyPatch, eager: float, captured: float, expected: str
) -> None:
    both = Execution(device_type="cuda", capture=True)
    monkeypatch.setattr(step_checks, "default_execution", lambda device_type: both)
    monkeypatch.setattr(
        step_checks,
        "_test_accuracy",
        lambda recipe, dataset, execution: captured if execution.capture else eager,
    )
    with pytest.raises(AssertionError, match=expected):
        step_checks.accuracy(SMALL)


def resume_to(
    monkeypatch: pytest.MonkeyPatch, stopped: float, again: float, ends_early: bool = False
) -> str:
    """`resume` of runs that end at these distances from the undisturbed one, which moves by 1."""

    def launch(
        function: Any, form: Form, folder: Path, runs: dict[str, Any], num_ranks: int
    ) -> None:
        if runs.get("stopped") is not None and not ends_early:
            raise InterruptedRunError("stopped")

    ends = {"alone": 1.0, "stopped": 1.0 + stopped, "again": 1.0 + again}
    monkeypatch.setattr(run_checks, "launch", launch)
    monkeypatch.setattr(
        run_checks, "_saved", lambda folder, run: (torch.tensor([0.0]), torch.tensor([ends[run]]))
    )
    return run_checks.resume(SMALL)


def test_a_resumed_run_is_held_against_what_kernels_differ_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "equal to the bit" in resume_to(monkeypatch, 0.0, 0.5)
    assert "1.0e-03 of the way" in resume_to(monkeypatch, 1e-3, 5e-4)
    with pytest.raises(AssertionError, match=r"5\.0e-02 of the way from the undisturbed run"):
        resume_to(monkeypatch, 0.05, 1e-3)
    with pytest.raises(AssertionError, match="too far to judge"):
        resume_to(monkeypatch, 0.05, 0.05)
    with pytest.raises(AssertionError, match="attempt 1 of 3 ended by itself"):
        resume_to(monkeypatch, 0.0, 0.0, ends_early=True)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_the_run_that_is_resumed_is_for_any_number_of_ranks(ranks: int) -> None:
    phase = run_checks._recipe(ranks, 4).phase1
    updates = phase.max_epochs * (run_checks.IMAGES // phase.global_batch_size)
    assert run_checks.STOPPED_AFTER[0] < updates < sum(run_checks.STOPPED_AFTER)


def test_whole_runs_that_do_not_learn_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(losses: list[float], world_size: int) -> dict[str, Any]:
        rows = [{"train_loss": loss} for loss in losses]
        return {"epochs": rows, "world_size": world_size, "test_accuracy": 0.2}

    def run(losses: list[float]) -> str:
        monkeypatch.setattr(
            run_checks, "_run_twice", lambda form, ranks, data, out: [record(losses, ranks)] * 2
        )
        return run_checks.whole_run(SMALL)

    assert run([2.0, 1.8, 1.7, 1.6]).startswith("1 rank: 20.0%, 20.0%")
    with pytest.raises(AssertionError, match=r"1 rank: phase 1's loss went from 2\.0 to 2\.1"):
        run([2.0, 1.8, 2.1, 1.6])
    with pytest.raises(AssertionError, match="losses"):
        run([2.0, float("nan"), 1.7, 1.6])


def test_a_page_lists_what_only_a_gpu_can_confirm() -> None:
    text = (ROOT / "docs/never_run_on_a_gpu.md").read_text()
    for each in CHECKS:
        assert f"`{each.name}`: {each.claim}" in text
