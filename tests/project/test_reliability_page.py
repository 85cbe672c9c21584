"""docs/reliability.md names, for each case, tests that are there."""

from __future__ import annotations

import json
import re

import pytest
from repository import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]


def test_every_case_has_its_row() -> None:
    numbers = [int(n) for row in ROWS for n in re.findall(r"\d+", row.split("|")[1])]
    assert numbers == list(range(1, 51))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_tests_of_a_row_are_there(row: str) -> None:
    held_by = row.split("|")[-2]
    file = None
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(\w+))?`", held_by):
        file = next((ROOT / "tests").rglob(name), None) if name else file
        assert file is not None, name
        if test:
            assert f"def {test}(" in file.read_text(encoding="utf-8"), test
    assert file is not None, "a case without a test"


def test_the_soak_s_table_is_the_record_s() -> None:
    kinds = json.loads((ROOT / "results" / "soak.json").read_text())["kinds"]
    for name, seen in kinds.items():
        at = seen["kills_at"]
        with_records = sum(count for where, count in at.items() if where.startswith("with "))
        before = [at.get(f"in {where}", 0) for where in ("the set-up", "phase 1", "phase 2 or 3")]
        cells = [f"`{name}`", *before, with_records, seen["ends"], f"{seen['wall_s'] / 60:.0f} min"]
        assert f"| {' | '.join(map(str, cells))} |" in PAGE
        assert sum(before) + with_records == seen["kills"] == 40
        assert seen["bit_equal"]
