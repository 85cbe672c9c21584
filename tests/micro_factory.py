"""Records of `bench micro`, for the tests of their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = {"device_type": "cpu", "device": "A CPU", "libraries": {"torch": "2.10.0"}}

OLD: dict[str, Any] = {
    "created": "2026-01-02T03:04:05+00:00",
    "what": "step",
    "width": 16,
    "batch_size": 256,
    "threads": 2,
    "rounds": 3,
    "machine": MACHINE,
    "results": {
        "the step": [
            {"name": "ours", "images_per_s": [800.0, 900.0, 1000.0], "ratios": [1.0, 1.0, 1.0]},
            {"name": "theirs", "images_per_s": [400.0, 600.0, 500.0], "ratios": [2.0, 1.5, 2.0]},
        ]
    },
}


def timing(name: str, per_s: list[float], **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "unit": "images",
        "processes": 1,
        "threads": 2,
        "cost": None,
        "per_s": per_s,
        "ratios": [1.0] * len(per_s),
        "facts": {},
        **changed,
    }


COST = {"flop": 1e9, "bytes": 2e7}


FACTS = {"first_step_s": 1.5, "peak_memory_bytes": 2**31, "operators": 1234.0}


NEW: dict[str, Any] = {
    **{key: value for key, value in OLD.items() if key != "results"},
    "schema_version": 2,
    "created": "2026-03-02T03:04:05+00:00",
    "code": {},
    "notes": ["A note."],
    "collective": None,
    "results": {
        "the step, batch 256": [
            timing("ours, eager", [90.0, 100.0, 110.0], cost=COST, facts=FACTS),
            timing("torch", [50.0, 50.0, 50.0], cost=COST, ratios=[1.8, 2.0, 2.2]),
            timing("ours, a process a core", [70.0], cost=COST, processes=2, threads=1),
            timing("roof: product", [1.25e11, 1.0e11, 1.5e11], unit="FLOP", ratios=[]),
            timing("roof: copy", [1.0e10], unit="bytes", ratios=[]),
        ]
    },
}


def write(folder: Path, name: str, record: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(record))
