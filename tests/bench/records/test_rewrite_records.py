"""Old records, one of each kind and version, are rewritten with every value in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from repository import TESTS
from rewrite_records import KINDS, lost, main, run_of_today

from bench.landscape.records import read_cosines, read_plane
from bench.micro.records import MicroRecord, read_micro_records
from swap_fast.record import read_record

OLD = TESTS / "old_records"


def test_every_value_arrives(tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(OLD, tmp_path / "results")
    main([str(tmp_path)])
    main([str(tmp_path)])  # files of today stay as they are
    told = capsys.readouterr().out.splitlines()
    assert told == ["rewritten: 9 of 9 records", "rewritten: 0 of 9 records"]
    for path in OLD.rglob("*.json"):
        before = json.loads(path.read_text())
        after = json.loads((tmp_path / "results" / path.relative_to(OLD)).read_text())
        assert after["schema_version"] == KINDS[path.parent.name][0]
        assert lost(before, after) == []
        assert lost({**before, "created": "changed"}, after) == [".created"]


def test_what_was_read_from_names_is_in_fields(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "results")
    main([str(tmp_path)])
    results = tmp_path / "results"
    for path in (results / "runs").iterdir():
        assert read_record(path).flags == []
    for read, kind in ((read_plane, "planes"), (read_cosines, "cosines")):
        for path in (results / kind).iterdir():
            assert read(path).execution["capture"] is False
    records, skipped = read_micro_records(results / "micro")
    assert skipped == []
    data, jpeg = (_first(records, what) for what in ("data", "jpeg"))
    assert [(way.is_ours, way.is_headline) for way in data] == [
        (True, False),
        *[(False, False)] * 3,
    ]
    assert [(way.is_ours, way.is_headline) for way in jpeg] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip


def test_notes_of_old_runs_give_flags() -> None:
    path = next((OLD / "runs").glob("cifar100_swap_cpu-trial1*"))
    old = json.loads(path.read_text())
    notes = ["degraded: averaged 3 of 4 workers", "a quicker note"]
    assert run_of_today({**old, "notes": notes}).flags == ["degraded"]


def _first(records: list[MicroRecord], what: str) -> list[Any]:
    (record,) = (each for each in records if each.what == what)
    return next(iter(record.results.values()))


def test_flips_are_named_and_mirrored_accuracies_are_refused() -> None:
    path = next((OLD / "runs").glob("cifar10_sgd_small_cpu*"))
    old = json.loads(path.read_text())
    assert (old["schema_version"], run_of_today(old).settings.augmentation.flip) == (5, "random")
    recipe = old["configuration"]["recipe"]
    recipe["augmentation"]["flip"] = False
    assert run_of_today(old).settings.augmentation.flip == "none"
    recipe["mirrored_evaluation"] = True
    with pytest.raises(
        ValueError, match=r": expected a test accuracy without mirrored images, got"
    ):
        run_of_today(old)
