"""One bad record of any kind is left out with its name and a reason: the report is still written.

Each case is a file named bad.json beside whole records of all kinds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from landscape_factory import bowl, cosine_path
from micro_factory import MICRO, write
from record_factory import make_record

from bench.landscape.records import write_landscape
from bench.report.content import Content, collect
from bench.report.write import write_report
from swap_fast.record_files import write_record

NUMBERS: dict[str, tuple[str | int, ...]] = {
    "runs": ("times", "wall_s"),
    "micro": ("results", "the step, batch 256", 0, "ratios", 0),
    "planes": ("train_error", 0, 0),
    "cosines": ("rows", 0, "gradient_norm"),
}
"""Where each kind of record has a number that is not negative."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run, its plane and its cosines, and a measurement."""
    write_record(make_record(), tmp_path / "runs")
    write_landscape(bowl(2, LB=(-1.5, 0.2), SGD=(1.5, 0.0), SWAP=(0.1, 0.0)), tmp_path)
    write_landscape(cosine_path(0.5, 0.4, 0.3, 0.2, 0.1, 0.0), tmp_path)
    write(tmp_path / "micro", "whole.json", MICRO)
    return tmp_path


def changed(value: Any) -> Callable[[Path, dict[str, Any]], None]:
    """Writes the record with another value in place of a number."""

    def put(path: Path, content: dict[str, Any]) -> None:
        at: Any = content
        *parents, name = NUMBERS[path.parent.name]
        for parent in parents:
            at = at[parent]
        at[name] = value
        path.write_text(json.dumps(content))

    return put


def with_text_for_an_object(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content | {"machine": "a computer"}))


def too_large_to_be_read(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content | {"created": "NUMBER"}).replace('"NUMBER"', "1e400"))


def brackets(path: Path, content: dict[str, Any]) -> None:
    path.write_text("[" * 200_000)


def nested(path: Path, content: dict[str, Any]) -> None:
    """JSON that can be read, too deep for what follows."""
    path.write_text(
        json.dumps(content | {"settings": "DEEP"}).replace(
            '"DEEP"', '{"a":' * 900 + "1" + "}" * 900
        )
    )


BAD: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str]] = {
    "a folder": (lambda path, _: path.mkdir(), "got no file, but a folder"),
    "a link that leads nowhere": (lambda path, _: path.symlink_to("none"), "got no file, but"),
    "a pipe": (lambda path, _: os.mkfifo(path), "got no file, but"),
    "nothing": (lambda path, _: path.touch(), "expected a JSON record"),
    "200,000 brackets": (brackets, "expected a JSON record, got maximum recursion depth"),
    "900 levels": (nested, "bad.json: "),
    "text for an object": (with_text_for_an_object, "Expected `object`, got `str`"),
    "text for a number": (changed("low"), "Expected `float`, got `str`"),
    "true for a number": (changed(True), "Expected `float`, got `bool`"),
    "infinity": (changed(float("inf")), "expected a JSON record"),
    "no number": (changed(float("nan")), "expected a JSON record"),
    "1e400": (too_large_to_be_read, "expected a JSON record"),
    "a negative number": (changed(-0.5), "Expected `float` >"),
    "an impossible number": (changed(1e300), "Expected `float` <="),
}


def put(results: Path, kind: str, case: str, name: str = "bad.json") -> None:
    (whole,) = (path for path in (results / kind).glob("*.json") if "bad" not in path.name)
    BAD[case][0](results / kind / name, json.loads(whole.read_text()))


def counts(content: Content) -> list[int]:
    return [len(content.records), len(content.micro), len(content.planes), len(content.cosines)]


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_bad_record_is_left_out_by_name_and_reason(kind: str, case: str, results: Path) -> None:
    put(results, kind, case)
    content = collect(results)
    assert counts(content) == [1, 1, 1, 1]
    (reason,) = content.skipped
    assert reason.startswith("bad.json: ")
    assert BAD[case][1] in reason
    assert "\n" not in reason
    assert len(reason) <= 500


def test_the_report_is_written_whatever_lies_beside_the_records(results: Path) -> None:
    for kind in NUMBERS:
        for number, case in enumerate(BAD):
            put(results, kind, case, f"bad{number}.json")
    (results / "runs" / os.fsdecode(b"\xff\n.json")).write_text('"' + "x" * 10_000 + '"')
    text = write_report(collect(results)).read_text(encoding="utf-8")
    assert "From 1 records by" in text
    assert f"## Records left out: {len(NUMBERS) * len(BAD) + 1}\n" in text


def test_a_reason_of_a_long_text_is_short(tmp_path: Path) -> None:
    content = asdict(make_record()) | {f"field{i}": i for i in range(1000)}
    write(tmp_path / "runs", "bad.json", content)
    (reason,) = collect(tmp_path).skipped
    assert reason.startswith("bad.json: expected the fields of a RunRecord, got unknown fields $.f")
    assert reason.endswith(" ...")
