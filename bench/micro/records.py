"""Records of `python -m bench micro`: written, and read again, whatever version they are. No torch.

Version 1, which has no number, kept images/s of each way; version 2 keeps its unit, its processes,
its counted cost and what else was seen of it, and can hold collectives.
"""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.micro.interleave import Cost, Timing, Unit
from swap_fast.record import write_json_record

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class MicroRecord:
    """One measurement: what, where, when, and what each way achieved."""

    what: str
    """"step", "data", "collective" or "workers"."""
    created: str
    """ISO 8601 with its time zone."""
    width: int
    """Channels of ResNet-9's first block."""
    batch_size: int
    """Images a step."""
    threads: int
    """CPU threads in all."""
    rounds: int
    """In which every way was timed once."""
    machine: dict[str, Any]
    """What it ran on."""
    code: dict[str, Any]
    """What ran."""
    results: dict[str, list[Timing]] = field(default_factory=dict)
    """Ways that took turns, by the title of their group."""
    collective: dict[str, Any] | None = None
    """All-reduces by message size."""
    notes: tuple[str, ...] = ()
    """What a reader must know, such as the data."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> tuple[str, str, int]:
        """Of the records with one key, a report shows the newest."""
        return self.what, self.machine["device_type"], 0 if self.what == "data" else self.width

    @property
    def name(self) -> str:
        """For the files of its tables and figures."""
        what, device, width = self.key
        return f"micro_{what}_{device}" + (f"_width{width}" if width else "")

    @property
    def file(self) -> str:
        """The name of the record's own file: it ends in the record's time."""
        return f"micro-{self.what}-{self.machine['device_type']}-{time_stamp(self.created)}.json"


def write_micro_record(record: MicroRecord, folder: Path) -> Path:
    """Write a record to a file of its own, whose name ends in its time."""
    return write_json_record(asdict(record), folder, record.file.removesuffix(".json"))


def time_stamp(created: str) -> str:
    """A record's time as its file's name has it."""
    return created[:19].replace(":", "").replace("-", "")


def read_micro_records(folder: Path) -> tuple[list[MicroRecord], list[str]]:
    """The newest record of each key, in the order of the keys, and why other files were left out.

    Older records of a key are passed over in silence: they are no fault.
    """
    newest: dict[tuple[str, str, int], MicroRecord] = {}
    skipped = []
    for path in sorted(folder.glob("*.json")):  # a name ends in its time
        try:
            record = _read(json.loads(path.read_text(encoding="utf-8")))
            newest[record.key] = record
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            skipped.append(f"{path.name}: expected a record of a measurement, got {error!r}")
    return [record for _, record in sorted(newest.items())], skipped


def _read(content: dict[str, Any]) -> MicroRecord:
    version = content.get("schema_version", 1)
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(f"schema version {version}, this reads 1 and {SCHEMA_VERSION}")
    results = {
        title: [_timing(each, version) for each in timings]
        for title, timings in content["results"].items()
    }
    record = MicroRecord(
        **{
            **{"code": {}},
            **content,
            "results": results,
            "notes": tuple(content.get("notes", ())),
            "schema_version": version,
        }
    )
    if not isinstance(record.created, str) or not record.machine["device_type"]:
        raise ValueError("a record without its time or its device")
    str(record.machine["libraries"]["torch"])
    return record


def _timing(content: dict[str, Any], version: int) -> Timing:
    if version == 1:
        speeds, ratios = content["images_per_s"], content["ratios"]
        timing = Timing(name=content["name"], per_s=speeds, ratios=ratios)
    else:
        cost = content["cost"]
        timing = Timing(**{**content, "cost": None if cost is None else Cost(**cost)})
    if not timing.per_s or not all(speed > 0 for speed in timing.per_s):
        raise ValueError(f"{timing.name}: expected speeds above 0, got {timing.per_s}")
    return timing


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """A way's median speed as arithmetic, and as shares of what the device can do."""

    flop_per_s: float
    """Counted operations a second."""
    matrix_share: float | None
    """Of the matrix product's operations a second, with the same processes and threads."""
    bandwidth_share: float | None
    """Of the copy's bytes a second; may be over 1 where caches serve what is counted."""


def efficiency(timing: Timing, group: list[Timing]) -> Efficiency | None:
    """A way against the roof measured in its own group; None without a counted cost."""
    if timing.cost is None:
        return None
    flop_per_s = timing.median * timing.cost.flop
    matrix, copy = (roof(group, unit, timing) for unit in ("FLOP", "bytes"))
    return Efficiency(
        flop_per_s=flop_per_s,
        matrix_share=None if matrix is None else flop_per_s / matrix,
        bandwidth_share=None if copy is None else timing.median * timing.cost.bytes / copy,
    )


def roof(group: list[Timing], unit: Unit, like: Timing) -> float | None:
    """Units a second that the device reached with as many processes and threads as a way."""
    found = [
        each.median
        for each in group
        if (each.unit, each.processes, each.threads) == (unit, like.processes, like.threads)
    ]
    return statistics.median(found) if found else None
