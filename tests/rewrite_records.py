"""Rewrites records of earlier schema versions in place: `python tests/rewrite_records.py RESULTS`.

Every record below RESULTS is rewritten: of runs (versions 1 to 5, a search's too), of measurements
(1 and 2) and of landscapes (1). What was decided by the text of a note, a name or a title before
is a field of the new record; flips are named. Files of the present version stay as they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.landscape.records import SCHEMA_VERSION as LANDSCAPE_VERSION
from bench.landscape.records import CosineRecord, PlaneRecord
from bench.micro.records import SCHEMA_VERSION as MICRO_VERSION
from bench.micro.records import MicroRecord
from swap_fast.config.recipe import RECIPE_KINDS, checked, recipe_from
from swap_fast.recipes.cifar10 import RECIPES
from swap_fast.record import SCHEMA_VERSION as RUN_VERSION
from swap_fast.record import RunRecord, plain, write_json_record

EXECUTION = {"capture": False, "all_reduce": "fp32", "loader": "tensor"}
"""What versions did that had no choice of it yet."""


RENAMED = {"images_per_s": "per_s", "decay_norms_and_biases": "without_decay"}
"""Fields by their old names."""

VALUES = {
    "flip": {True: "random", False: "none"},
    "decay_norms_and_biases": {True: "nothing", False: "norms_and_biases"},
}
"""What stands for an old value, by the field's old name."""


def run_of_today(old: dict[str, Any]) -> RunRecord:
    """Notes that begin with "degraded" or "profiled" give flags; the recipe's fields are whole.

    Raises:
        ValueError: the test accuracy was that with mirrored images, and none is without.
    """
    configuration = old["configuration"]
    settings = dict(configuration["recipe"])
    if settings.get("mirrored_evaluation"):
        raise ValueError(
            f"{old['run_id']}: expected a test accuracy without mirrored images, got one with "
            "them; run the recipe again"
        )
    for part in ("augmentation", "optimizer"):
        settings[part] = {
            RENAMED.get(name, name): VALUES.get(name, {}).get(value, value)
            for name, value in settings.get(part, {}).items()
        }
    settings.setdefault("devices", RECIPES[settings["name"].partition("-")[0]]().devices)
    recipe = recipe_from(settings, RECIPE_KINDS[old["method"]], old["run_id"])
    begins = [f for f in ("degraded", "profiled") if any(n.startswith(f) for n in old["notes"])]
    new = {
        **old,
        "schema_version": RUN_VERSION,
        "flags": old.get("flags", begins),
        "configuration": {
            "recipe": filled(settings, plain(asdict(recipe))),
            "execution": {**configuration["execution"], **EXECUTION, **configuration["execution"]},
        },
    }
    return checked(new, RunRecord, old["run_id"])


def filled(old: Any, whole: Any) -> Any:
    """The old values, and the whole's where there were none."""
    if not isinstance(whole, dict):
        return old
    return {k: filled(old[k], value) if k in old else value for k, value in whole.items()}


def micro_of_today(old: dict[str, Any]) -> MicroRecord:
    """Names that begin with "ours", and titles that the first page showed, give fields."""

    def timing(title: str, values: dict[str, Any]) -> dict[str, Any]:
        name, unit = values["name"], values.get("unit", "images")
        is_ours = name.startswith(("ours", "in turn")) or name == "the loop"
        threads = f"{old['threads']} thread{'s' if old['threads'] > 1 else ''}"
        is_shown = (
            title.startswith("whole training")
            or old["what"] == "jpeg"
            or (title.startswith("augmented") and title.endswith(threads))
        )
        others = unit == "images" and not name.startswith(("ours", "floor"))
        renamed = {RENAMED.get(k, k): v for k, v in values.items()}
        return renamed | {"is_ours": is_ours, "is_headline": is_shown and others}

    results = {t: [timing(t, each) for each in group] for t, group in old["results"].items()}
    new = {**old, "schema_version": MICRO_VERSION, "results": results}
    return checked(new, MicroRecord, old["created"])


def landscape_of_today(old: dict[str, Any]) -> PlaneRecord | CosineRecord:
    """With a whole execution."""
    kind = CosineRecord if old["figure"] == 4 else PlaneRecord
    execution = {**old["execution"], **EXECUTION, **old["execution"]}
    new = {**old, "schema_version": LANDSCAPE_VERSION, "execution": execution}
    return checked(new, kind, old["run_id"])


KINDS: dict[str, tuple[int, Callable[[dict[str, Any]], Any]]] = {
    "runs": (RUN_VERSION, run_of_today),
    "micro": (MICRO_VERSION, micro_of_today),
    "planes": (LANDSCAPE_VERSION, landscape_of_today),
    "cosines": (LANDSCAPE_VERSION, landscape_of_today),
}
"""By the name of the folder."""


def lost(old: Any, new: Any, at: str = "") -> list[str]:
    """Where a value of the old record is not in the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = {k: RENAMED.get(k, k) for k in old if k != "schema_version"}
        return [each for k, n in names.items() for each in lost(old[k], new.get(n), f"{at}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [each for pair in zip(old, new, strict=True) for each in lost(*pair, f"{at}[]")]
    named = VALUES.get(at.rpartition(".")[2], {})
    same = old == new or old != old or (isinstance(old, bool) and named.get(old) == new)
    return [] if same else [at]


def rewrite(path: Path) -> bool:
    """Rewrite one file; whether it was of an earlier version.

    Raises:
        ValueError: it is no such record, or a value would be lost.
    """
    version, today = KINDS[path.parent.name]
    old = json.loads(path.read_text(encoding="utf-8"))
    if old.get("schema_version", 1) == version:
        return False
    new = plain(asdict(today(old)))
    if missing := lost(old, new):
        raise ValueError(f"{path.name}: lost {', '.join(missing)}")
    write_json_record(new, path.parent, path.stem, replace=True)
    return True


def main(folders: list[str]) -> None:
    """Rewrite every record below the folders."""
    paths = [p for f in folders for p in sorted(Path(f).rglob("*.json")) if p.parent.name in KINDS]
    print(f"rewritten: {sum(map(rewrite, paths))} of {len(paths)} records")


if __name__ == "__main__":
    main(sys.argv[1:])
