"""`python -m bench verify-gpu`: confirms on a GPU what only a GPU can, and writes a record."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.hardware.machine import describe_code, describe_machine
from bench.micro.records import time_stamp
from bench.verify import data, runs, speed, step
from bench.verify.check import Check, CheckProcess, Form, UnavailableError
from swap_fast.choices import choose, choose_device
from swap_fast.data.cifar.files import locate_dataset
from swap_fast.files import write_file
from swap_fast.record import now


def _check(
    confirm: Callable[[Form], str], claim: str, *, limit_s: float = 90.0, uses_data: bool = False
) -> Check:
    """A check with the name of its function."""
    name = confirm.__name__.replace("_", "-")
    return Check(name=name, claim=claim, confirm=confirm, limit_s=limit_s, uses_data=uses_data)


CHECKS: tuple[Check, ...] = (
    _check(step.replay, "a captured step stays equal to the eager one"),
    _check(step.statistics, "the captured batch-norm pass agrees with torch's `update_bn`"),
    _check(step.launches, "an update is one graph launch and no other"),
    _check(
        step.feed, "batches and learning rates that the graph reads are those that the host gives"
    ),
    _check(step.memory, "1,000 updates allocate nothing more"),
    _check(step.precision, "every layer computes in fp16 channels_last, from fp32 weights"),
    _check(step.overflow, "a first update that overflows leaves weights and velocity as they were"),
    _check(step.compiled, "a compiled update agrees with the eager one", limit_s=180),
    _check(step.fused, "an update with the fused kernels agrees with torch's operators"),
    _check(step.telemetry, "the driver tells the device's energy, clocks and throttling"),
    _check(data.gather, "the gather kernel makes the plan's batches, eager and captured"),
    _check(
        data.dali_cifar,
        "DALI's GPU pipeline makes the CPU pipeline's batches, beside a replayed step too",
    ),
    _check(
        data.dali_imagenet,
        "JPEGs decoded on the GPU are the CPU decoder's to a few parts in 255",
    ),
    _check(
        step.no_waiting,
        "no update of a real epoch waits for the device, with each loader",
        limit_s=120,
    ),
    _check(
        step.accuracy,
        "two epochs learn as much captured as eager, and enough",
        limit_s=120,
        uses_data=True,
    ),
    _check(
        speed.shared_pool,
        "graphs share one pool: it is as large as the largest needs, not as their sum",
        limit_s=60,
    ),
    _check(
        speed.imagenet_memory,
        "the captured steps of all of ImageNet's stages fit the device's memory together",
        limit_s=240,
    ),
    _check(
        runs.together,
        "ranks whose all-reduce is in the graph agree with one process",
        limit_s=120,
    ),
    _check(
        runs.groups,
        "workers of several ranks agree with one process, summed in fp32, in fp16 and in buckets",
        limit_s=120,
    ),
    _check(
        runs.teardown, "process groups end after their collectives were in a graph", limit_s=120
    ),
    _check(
        runs.whole_run,  # of step auto: it compiles what `compiled` and `fused` above have checked
        "a tiny run ends well on one device and on all, twice in a row",
        limit_s=600,
    ),
    _check(
        runs.resume,
        "a run that is interrupted and resumed ends with the weights of one that was not",
        limit_s=240,
    ),
    _check(
        speed.speed,
        "steps and epochs reach half the images/s that the planner expects of the device",
        limit_s=240,
    ),
)
"""In the order in which they run."""
DESCRIBE_S = 60.0
"""Seconds that it may take to find and describe the device."""
SCHEMA_VERSION = 2
"""Of the record; version 1 had no form, and no check taken over from another record."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check."""

    name: str
    claim: str
    outcome: str
    """"confirmed", "failed" or "unavailable"."""
    detail: str
    """What was seen, or what is missing."""
    time_s: float
    record: str | None = None
    """The file of the record that confirmed it; None: this record."""


def verify(
    device: str,
    out: Path,
    *,
    data: Path | None = None,
    small: bool = False,
    everything: bool = False,
    only: Sequence[str] = (),
) -> int:
    """Run the checks that are not confirmed yet; 1 where one failed.

    The record is written each time a check ends, so that a check that hangs, or an interrupt, does
    not lose the other results. Checks that an earlier record of the same machine, libraries, code
    and sizes has as confirmed are copied from it.

    Arguments:
        device: "cpu", "cuda" or "auto".
        out: the folder of the records.
        data: a folder with CIFAR-10.
        small: sizes for a device with little time; a CPU always has them.
        everything: also run the checks that are confirmed.
        only: names of checks: run these and no others, even if confirmed.

    Raises:
        ValueError: "cuda" without a CUDA device, an unknown check, or no data in `data`.
    """
    names = [check.name for check in CHECKS]
    only = [choose("check", name, names) for name in only]
    device_type = choose_device(device)
    form = Form(device_type=device_type, small=small or device_type == "cpu")
    with CheckProcess() as process:
        try:
            machine = process.call(describe_machine, device_type, limit_s=DESCRIBE_S)
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(f"the machine could not be described: {error}") from None
        record = Record(out, form, machine)
        before = {} if everything else record.confirmed_before()
        taken = [name for name in before if name not in only]
        if taken:
            print(f"confirmed before, with the same code here: {', '.join(taken)}; --all repeats")
        todo = [c for c in CHECKS if c.name not in taken and (not only or c.name in only)]
        if not form.small and any(check.uses_data for check in todo):
            form = replace(form, data=locate_dataset("cifar10", data))
        for check in CHECKS:
            if check.name in taken:
                record.add(before[check.name])
            elif check in todo:
                outcome = _confirm(check, form, process)
                record.add(outcome)
                if outcome.outcome == "failed":  # CUDA may go on to return the same error
                    process.end()
    outcomes = record.outcomes
    counts = [
        f"{sum(outcome.outcome == kind for outcome in outcomes)} {kind}"
        for kind in ("confirmed", "failed", "unavailable")
    ]
    print(f"{', '.join(counts)}; record: {record.path}")
    if device_type == "cpu":
        print("on a CPU: these are the checks' CPU forms, and say nothing about a GPU")
    return 1 if any(outcome.outcome == "failed" for outcome in outcomes) else 0


def _confirm(check: Check, form: Form, process: CheckProcess) -> CheckResult:
    """Run one check in the process, and print its result."""
    process.start()
    print(f"{'runs':<11} {check.name:<15} {check.claim} (limit {check.limit_s:g} s)", flush=True)
    started = time.perf_counter()
    try:
        outcome, detail = "confirmed", process.call(check.confirm, form, limit_s=check.limit_s)
    except UnavailableError as missing:
        outcome, detail = "unavailable", f"needs {missing}"
    except (RuntimeError, ValueError) as error:
        outcome, detail = "failed", str(error)
    time_s = round(time.perf_counter() - started, 3)
    print(f"{outcome:<11} {check.name:<15} {detail} ({time_s:.1f} s)", flush=True)
    return CheckResult(
        name=check.name, claim=check.claim, outcome=outcome, detail=detail, time_s=time_s
    )


class Record:
    """The record of one `verify-gpu`, written again after each check."""

    def __init__(self, out: Path, form: Form, machine: dict[str, Any]) -> None:
        created = now()
        self.outcomes: list[CheckResult] = []
        self._kind = f"verify-{form.device_type}"
        self.path = out / f"{self._kind}-{time_stamp(created)}.json"
        number = 1
        while self.path.exists():  # a record of the same second
            number += 1
            self.path = out / f"{self._kind}-{time_stamp(created)}_{number}.json"
        self._about: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "created": created,
            "code": describe_code(),
            "machine": machine,
            "small": form.small,
        }

    def add(self, outcome: CheckResult) -> None:
        """Add an outcome, and write the record."""
        self.outcomes.append(outcome)
        content = {**self._about, "checks": [asdict(each) for each in self.outcomes]}
        write_file(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def confirmed_before(self) -> dict[str, CheckResult]:
        """By name, the checks that earlier records of the same code, machine and sizes confirmed.

        None where the code differs from its commit.
        """
        found: dict[str, CheckResult] = {}
        if self._about["code"]["changed"]:
            return found
        same = {name: value for name, value in self._about.items() if name != "created"}
        for path in sorted(self.path.parent.glob(f"{self._kind}-*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if any(content[name] != value for name, value in same.items()):
                    continue
                outcomes = [CheckResult(**each) for each in content["checks"]]
            except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
                continue  # damaged, or of another version
            for outcome in outcomes:
                # A later failure replaces an earlier success.
                found.pop(outcome.name, None)
                if outcome.outcome == "confirmed":
                    found[outcome.name] = replace(outcome, record=outcome.record or path.name)
        return {check.name: found[check.name] for check in CHECKS if check.name in found}
