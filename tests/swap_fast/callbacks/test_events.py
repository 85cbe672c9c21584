"""Events on disk: whole lines, each once, whoever is killed and whenever they are put together."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from event_factory import at, began, epoch

from swap_fast.callbacks.events import (
    MERGED,
    EventFile,
    Tail,
    make_event,
    merge_events,
    read_events,
)


def write(folder: Path, *events: dict, part: str = "run", rank: int = 0) -> Path:
    file = EventFile(folder, part=part, rank=rank)
    for event in events:
        file(event)
    file.close()
    return folder / f"events-{part}-rank{rank}.jsonl"


def test_an_event_has_schema_time_part_and_rank() -> None:
    event = make_event("epoch", part="worker1", rank=2, epoch=3)
    assert list(event) == ["schema", "time", "part", "rank", "event", "epoch"]
    assert [event[name] for name in ("schema", "part", "rank", "event")] == [
        *(2, "worker1", 2, "epoch")
    ]
    offset = datetime.fromisoformat(event["time"]).utcoffset()
    assert offset is not None
    assert offset.total_seconds() == 0


def test_a_line_is_there_as_soon_as_it_is_told(tmp_path: Path) -> None:
    file = EventFile(tmp_path, part="run", rank=0)
    file(at(0, "note", text="one\ntwo"))
    lines = (tmp_path / "events-run-rank0.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["one\ntwo"]
    file.close()


def test_a_half_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = write(tmp_path, at(0, "note", text="a"), at(1, "note", text="b"))
    path.write_bytes(path.read_bytes()[:-9])  # killed within the second line
    assert [event["text"] for event in read_events(tmp_path)] == ["a"]
    write(tmp_path, at(2, "note", text="c"))  # resumed
    assert [event["text"] for event in read_events(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize(
    "line",
    [
        *("", "[]", "3", '"text"', "{}", "\x00\x00", "[" * 10_000),
        '{"schema":2,"time":"2026-11-22T12:00:00","event":"note"}',
        '{"schema":2,"time":"2026-11-22T12:00:00","event":"note","crc32":1}',
    ],
)
def test_what_is_no_event_is_left_out_and_counted(line: str, tmp_path: Path) -> None:
    path = write(tmp_path, at(0, "note", text="a"))
    path.write_text(f"{line}\n{path.read_text()}")
    tail = Tail(tmp_path)
    assert [event["text"] for event in tail.poll() or []] == ["a"]
    assert tail.damaged == 1


def test_a_flipped_bit_of_any_byte_costs_a_line_and_changes_none(tmp_path: Path) -> None:
    events = [began(), epoch(3, 1, 0, 1)]
    path = write(tmp_path, *events)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        found = read_events(tmp_path)
        assert all(event in events for event in found)
        assert len(found) < 2


def test_a_tail_gives_each_event_once_and_a_line_when_it_is_whole(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "run")
    assert tail.poll() == []
    path = write(tmp_path / "run", at(0, "note", text="a"), at(1, "note", text="b"))
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    assert [event["text"] for event in tail.poll() or []] == ["a"]
    path.write_bytes(content)
    write(tmp_path / "run", at(0.5, "note", text="other"), rank=1)
    assert [event["text"] for event in tail.poll() or []] == ["other", "b"]
    assert tail.poll() == []


def test_a_tail_leaves_out_its_own_file_and_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, at(0, "note", text="own"))
    write(tmp_path, at(0, "note", text="before"), rank=1)
    tail = Tail(tmp_path, without="events-run-rank0.jsonl", from_end=True)
    write(tmp_path, at(1, "note", text="own"))
    write(tmp_path, at(1, "note", text="new"), rank=1)
    assert [event["text"] for event in tail.poll() or []] == ["new"]


def test_merged_they_are_one_file_in_the_order_of_time(tmp_path: Path) -> None:
    write(tmp_path, began(), epoch(3, 1, 0, 1))
    write(tmp_path, epoch(2, 2, 1, 1), epoch(4, 2, 1, 2), rank=1)
    before = read_events(tmp_path)
    tail = Tail(tmp_path)
    tail.poll()
    merge_events(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MERGED]
    assert read_events(tmp_path) == before
    assert [event["time"][17:19] for event in before] == ["00", "02", "03", "04"]
    # Whoever follows them is told that they come anew.
    assert tail.poll() is None
    assert tail.poll() == before


def test_killed_while_merging_no_line_is_lost_or_doubled(tmp_path: Path) -> None:
    paths = [write(tmp_path, began()), write(tmp_path, epoch(2, 2, 1, 1), rank=1)]
    contents = [path.read_bytes() for path in paths]
    before = read_events(tmp_path)
    merge_events(tmp_path)
    paths[1].write_bytes(contents[1])  # as if it had been killed before it was removed
    assert read_events(tmp_path) == before
    merge_events(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MERGED]
    assert read_events(tmp_path) == before
