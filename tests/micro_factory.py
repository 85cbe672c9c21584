"""Records of `bench micro`, for the tests of their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from record_factory import CPU

MACHINE = {**CPU, "device": "A CPU", "libraries": {"torch": "2.10.0"}}


def timing(name: str, per_s: list[float], **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "unit": "images",
        "processes": 1,
        "threads": 2,
        "cost": None,
        "is_ours": name.startswith("ours"),
        "is_headline": False,
        "per_s": per_s,
        "ratios": [1.0] * len(per_s),
        "facts": {},
        **changed,
    }


COST = {"flop": 1e9, "bytes": 2e7}
FACTS = {"first_step_s": 1.5, "peak_memory_bytes": 2**31, "operators": 1234.0}
MICRO: dict[str, Any] = {
    "what": "step",
    "created": "2026-03-02T03:04:05+00:00",
    "width": 16,
    "batch_size": 256,
    "threads": 2,
    "rounds": 3,
    "machine": MACHINE,
    "code": {"version": None, "commit": None, "changed": None},
    "notes": ["A note."],
    "collective": None,
    "schema_version": 3,
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
