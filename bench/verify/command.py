"""`python -m bench verify-gpu`: confirms on a GPU what only a GPU can, and writes a record."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.hardware.machine import choose_device, describe_code, describe_machine
from bench.micro.records import time_stamp
from bench.verify.check import Check, CheckProcess, Form, UnavailableError
from bench.verify.data import INPUT_CHECKS
from bench.verify.ranks import RANK_CHECKS
from bench.verify.runs import RUN_CHECKS
from bench.verify.speed import MEMORY_CHECKS, SPEED_CHECKS
from bench.verify.step import LOOP_CHECKS, STEP_CHECKS
from swap_fast.checkpoint.files import write_file
from swap_fast.choices import choose
from swap_fast.data.cifar.files import locate_dataset
from swap_fast.record import now

CHECKS: tuple[Check, ...] = (
    *STEP_CHECKS,
    *INPUT_CHECKS,
    *LOOP_CHECKS,
    *MEMORY_CHECKS,
    *RANK_CHECKS,
    *RUN_CHECKS,
    *SPEED_CHECKS,
)
"""In the order in which they run."""
DESCRIBE_S = 60.0
"""So long it may take to find the device, and to say what it is."""
SCHEMA_VERSION = 2
"""Of the record; version 1 had no form, and no check taken over from another record."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check came to."""

    name: str
    claim: str
    outcome: str
    """"confirmed", "failed" or "unavailable"."""
    detail: str
    """What was seen, or what is missing."""
    time_s: float
    record: str | None = None
    """The record of the run that confirmed it; None: this one."""


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

    The record is written again as each check ends, so that a check which hangs, or an interrupt,
    costs no other's result. What an earlier record of the same machine, libraries, code and sizes
    has as confirmed is taken over from it.

    Arguments:
        device: "cpu", "cuda" or "auto".
        out: the folder of the records.
        data: a folder with CIFAR-10.
        small: sizes for a device with little time; a CPU always has them.
        everything: run what is confirmed too.
        only: names of checks: these alone run, even if confirmed.

    Raises:
        ValueError: "cuda" without a CUDA device, a name that is no check's, or no data in `data`.
    """
    names = [check.name for check in CHECKS]
    only = [choose("check", name, names) for name in only]
    device_type = choose_device(device)
    form = Form(device_type=device_type, small=small or device_type == "cpu")
    with CheckProcess() as process:
        try:
            machine = process.ask(describe_machine, device_type, limit_s=DESCRIBE_S)
        except RuntimeError as error:
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
                if outcome.outcome == "failed":  # what CUDA answers next may be the same error
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


def _confirm(check: Check, form: Form, process: CheckProcess) -> Outcome:
    """Run one check there, and tell of it."""
    process.start()
    print(f"{'runs':<11} {check.name:<15} {check.claim} (limit {check.limit_s:g} s)", flush=True)
    started = time.perf_counter()
    try:
        outcome, detail = "confirmed", process.ask(check.confirm, form, limit_s=check.limit_s)
    except UnavailableError as missing:
        outcome, detail = "unavailable", f"needs {missing}"
    except RuntimeError as error:
        outcome, detail = "failed", str(error)
    time_s = round(time.perf_counter() - started, 3)
    print(f"{outcome:<11} {check.name:<15} {detail} ({time_s:.1f} s)", flush=True)
    return Outcome(
        name=check.name, claim=check.claim, outcome=outcome, detail=detail, time_s=time_s
    )


class Record:
    """The record of one run, on disk as far as the run is."""

    def __init__(self, out: Path, form: Form, machine: dict[str, Any]) -> None:
        created = now()
        self.outcomes: list[Outcome] = []
        self._kind = f"verify-{form.device_type}"
        self.path = out / f"{self._kind}-{time_stamp(created)}.json"
        number = 1
        while self.path.exists():  # of a run in the same second
            number += 1
            self.path = out / f"{self._kind}-{time_stamp(created)}_{number}.json"
        self._about: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "created": created,
            "code": describe_code(),
            "machine": machine,
            "small": form.small,
        }

    def add(self, outcome: Outcome) -> None:
        """Write the record again, with one outcome more."""
        self.outcomes.append(outcome)
        content = {**self._about, "checks": [asdict(each) for each in self.outcomes]}
        write_file(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def confirmed_before(self) -> dict[str, Outcome]:
        """By name, what earlier records of the same code, machine and sizes have as confirmed.

        Of code that differs from its commit nothing is known, and nothing is taken over.
        """
        found: dict[str, Outcome] = {}
        if self._about["code"]["changed"]:
            return found
        same = {name: value for name, value in self._about.items() if name != "created"}
        for path in sorted(self.path.parent.glob(f"{self._kind}-*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if any(content[name] != value for name, value in same.items()):
                    continue
                outcomes = [Outcome(**each) for each in content["checks"]]
            except (AttributeError, KeyError, OSError, TypeError, ValueError):
                continue  # cut short, or of another version
            for outcome in outcomes:
                # A later failure takes the place of an earlier success.
                found.pop(outcome.name, None)
                if outcome.outcome == "confirmed":
                    found[outcome.name] = replace(outcome, record=outcome.record or path.name)
        return {check.name: found[check.name] for check in CHECKS if check.name in found}
