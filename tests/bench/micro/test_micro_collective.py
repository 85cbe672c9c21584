"""All-reduces on two real gloo processes leave a whole record; its bandwidth by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main
from bench.micro.collective import message_sizes
from bench.micro.records import bus_bandwidth, read_micro_records
from bench.micro.tables import collective_table
from swap_fast.models import ResNet9


@pytest.mark.parametrize(
    ("ranks", "expected"), [(2, 1e9), (4, 1.5e9), (8, 1.75e9)], ids="{}".format
)
def test_bus_bandwidth_by_hand(ranks: int, expected: float) -> None:
    # 2 (n - 1) / n of 1 GB in a second.
    assert bus_bandwidth(10**9, 1.0, ranks) == expected


def test_messages_hold_the_gradient_of_the_papers_net() -> None:
    sizes = message_sizes(4 * 6_573_120)
    assert sizes[0] == 1024
    assert sizes[-1] == 64 * 2**20
    assert 26_292_480 in sizes
    assert sizes == sorted(set(sizes))
    assert message_sizes(4096).count(4096) == 1


def test_two_processes_leave_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--ranks", "2", "--rounds", "2", "--width", "1"]
    arguments += ["--largest", "16384", "--out", str(tmp_path)]
    assert main(["micro", "collective", *arguments]) == 0
    assert "all-reduce over gloo, 2 processes" in capsys.readouterr().out
    (record,), skipped = read_micro_records(tmp_path)
    assert skipped == []
    assert record.collective is not None
    assert (record.collective.backend, record.collective.ranks) == ("gloo", 2)
    seen = {(row.bytes, row.precision) for row in record.collective.rows}
    parameters = sum(p.numel() for p in ResNet9(width=1).parameters())
    gradients = {row.bytes for row in record.collective.rows if row.gradient}
    assert gradients == {4 * parameters, 2 * parameters}
    for precision in ("fp32", "fp16"):
        assert {(1024, precision), (4096, precision), (16384, precision)} <= seen
    for row in record.collective.rows:
        assert len(row.all_reduce_s) == len(row.copy_s) == 2
        assert min(row.all_reduce_s) > 0
    table = collective_table(record)
    assert len(table.rows) == len(record.collective.rows)
    assert "gloo, 2 processes" in table.title
