"""The run folders of a results folder: what each run is, whose phase 1 serves, which goes on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import describe_machine
from bench.request import Request
from swap_fast.checkpoint import write_file
from swap_fast.record import plain
from swap_fast.run_folder import phase1_of

FILE = "run.json"

_NOT_OF_PHASE_1 = frozenset(
    {
        *("name", "summary", "table", "paper_scale", "target_accuracy", "loader"),
        *("phase2", "num_workers", "keep_momentum"),
        *("batch_norm_batch_size", "batch_norm_augmented"),
    }
)
"""Fields of a recipe that phase 1 does not depend on."""

Description = dict[str, Any]


def describe_run(request: Request, data: dict[str, Any], world_size: int) -> Description:
    """What a run is, as its folder keeps it."""
    machine = describe_machine(request.execution.device_type)
    return plain(
        {
            "recipe": asdict(request.recipe),
            "seed": request.seed,
            "data": data,
            "execution": asdict(request.execution),
            "machine": {
                **{name: machine[name] for name in ("device_type", "device", "device_count")},
                "torch": machine["libraries"]["torch"],
                "world_size": world_size,
                "threads": request.threads,
            },
        }
    )


def write_description(folder: Path, description: Description) -> None:
    """Put it into the run's folder."""
    write_file(folder / FILE, (json.dumps(description, indent=1) + "\n").encode())


def read_description(folder: Path) -> Description | None:
    """What the folder's run is; None where it does not say."""
    try:
        content = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def find_start(checkpoints: Path, description: Description) -> Path | None:
    """The oldest run with the same phase 1, done: seed, data, execution and machine included."""
    wanted = _phase1(description)
    for folder in sorted(checkpoints.glob("*"), key=lambda path: path.name.rsplit("-", 1)[-1]):
        found = read_description(folder)
        if found is None or _phase1(found) != wanted:
            continue
        position = phase1_of(folder)
        if position is not None and position.stopped_by is not None:
            return folder
    return None


def _phase1(description: Description) -> Description:
    """What of a run decides its phase 1 and the time that it takes."""
    recipe = {k: v for k, v in description.get("recipe", {}).items() if k not in _NOT_OF_PHASE_1}
    return {**description, "recipe": recipe}
