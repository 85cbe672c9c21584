"""Files of records: written whole or not at all, checked when they are read. No torch."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import msgspec

from swap_fast.config.recipe import checked
from swap_fast.files import write_file
from swap_fast.record import SCHEMA_VERSION, RunRecord

T = TypeVar("T")


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `folder/RUN_ID.json`, as `write_json_record` does."""
    return write_json_record(asdict(record), folder, record.run_id)


def write_json_record(
    content: dict[str, Any], folder: Path, name: str, *, replace: bool = False
) -> Path:
    """Write `folder/NAME.json` whole or not at all.

    Raises:
        FileExistsError: a record of that name is there, and is not to be replaced.
        OSError: the folder cannot be written to.
        ValueError: a number that is not finite, which JSON does not have.
    """
    path, text = folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False)
    write_file(path, f"{text}\n".encode(), new=not replace)
    return path


def read_record(path: Path) -> RunRecord:
    """Read one run's record, as `read_json_record` does."""
    record = read_json_record(path, RunRecord, SCHEMA_VERSION)
    try:
        record.check()
    except ValueError as error:
        raise ValueError(" ".join(f"{path.name}: {error}".split())) from None
    return record


def read_json_record(path: Path, kind: type[T], expected: int) -> T:
    """Read one record, every field checked.

    Raises:
        ValueError: no file, not JSON, of another schema version, or a field that is missing,
            unknown, of another type or a number that cannot be; in one line.
    """
    try:
        if not path.is_file():  # to open a pipe would wait for its other end
            raise ValueError("no file, but a folder or a link that leads nowhere")
        content = msgspec.json.decode(path.read_bytes())  # it refuses NaN, Infinity and 1e400
    except (OSError, ValueError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path.name}: expected a JSON record, got {words}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != expected:
        raise ValueError(
            f"{path.name}: expected schema version {expected}, got {version!r}; "
            "use the swap_fast that wrote it"
        )
    return checked(content, kind, path.name)


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """All records of a folder in the order of their names, and why others were left out."""
    known: dict[str, Any] = {}

    def read(path: Path) -> RunRecord:
        record = read_record(path)
        _share_parts(record, known)
        return record

    return read_folder(folder, read)


def _share_parts(record: RunRecord, known: dict[str, Any]) -> None:
    """Let the record hold the objects of records before it where they are equal.

    Runs of one recipe on one machine differ in their results alone; of 10,000 records what they
    have in common takes more memory than all results.

    Arguments:
        known: the objects so far, by their JSON text, which tells 1, 1.0 and true apart.
    """

    def share(part: object, name: str, text: str) -> None:
        object.__setattr__(part, name, known.setdefault(text, getattr(part, name)))

    for name in ("configuration", "overrides", "code", "data", "machine"):
        share(record, name, json.dumps(getattr(record, name)))
    share(record, "settings", record.method + json.dumps(record.configuration["recipe"]))
    share(record.times, "reading_laps", json.dumps(record.times.reading_laps))


def read_folder(folder: Path, read: Callable[[Path], T]) -> tuple[list[T], list[str]]:
    """What can be read of a folder, in the order of the names, and why the rest cannot.

    A reason is one line of at most 500 characters that can be written as UTF-8, whatever the file
    or its name holds.
    """
    records, skipped = [], []
    for path in sorted(folder.glob("[!.]*.json")):  # a hidden one is another process's probe
        try:
            records.append(read(path))
        except ValueError as error:
            text = str(error).encode(errors="replace").decode()
            skipped.append(shorten(text, 500, placeholder=" ..."))
    return records, skipped
