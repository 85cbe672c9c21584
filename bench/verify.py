"""`python -m bench verify-gpu`: confirms on a GPU what only a GPU can, and writes a record."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.check import Check, UnavailableError
from bench.checks import STEP_CHECKS
from bench.input_checks import INPUT_CHECKS
from bench.machine import choose_device, describe_code, describe_machine
from bench.micro_records import now, time_stamp
from swap_fast.record import write_json_record

CHECKS = (*STEP_CHECKS, *INPUT_CHECKS)
"""In the order in which they run."""


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


def verify(device: str, out: Path) -> int:
    """Run every check that the device has a form for; 1 where one failed.

    Raises:
        ValueError: "cuda" without a CUDA device.
    """
    device_type = choose_device(device)
    outcomes = []
    for check in CHECKS:
        outcome = _confirm(check, device_type)
        outcomes.append(outcome)
        print(f"{outcome.outcome:<11} {outcome.name:<13} {outcome.detail}", flush=True)
    failed = [outcome.name for outcome in outcomes if outcome.outcome == "failed"]
    print(f"record: {_write(outcomes, device_type, out)}")
    if device_type == "cpu":
        print("on a CPU: these are the checks' CPU forms, and say nothing about a GPU")
    return 1 if failed else 0


def _confirm(check: Check, device_type: str) -> Outcome:
    started = time.perf_counter()
    try:
        outcome, detail = "confirmed", check.confirm(device_type)
    except UnavailableError as missing:
        outcome, detail = "unavailable", f"needs {missing}"
    except Exception as error:  # whatever a GPU answers is a finding, and the other checks go on
        outcome, detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Outcome(
        name=check.name,
        claim=check.claim,
        outcome=outcome,
        detail=detail,
        time_s=round(time.perf_counter() - started, 3),
    )


def _write(outcomes: list[Outcome], device_type: str, out: Path) -> Path:
    created = now()
    record: dict[str, Any] = {
        "schema_version": 1,
        "created": created,
        "code": describe_code(),
        "machine": describe_machine(device_type),
        "checks": [asdict(outcome) for outcome in outcomes],
    }
    return write_json_record(record, out, f"verify-{device_type}-{time_stamp(created)}")
