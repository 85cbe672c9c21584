"""Files that are written whole or not at all."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4


def write_file(path: Path, content: bytes, *, new: bool = False, sync: bool = True) -> None:
    """Write a file aside, sync it, rename it, and sync its folder.

    Needs no hard links, which some network file systems do not have.

    Arguments:
        new: the name may not be taken; an empty file, as a killed process leaves it, is free.
        sync: wait for the disk, so that the file outlasts a loss of power.

    Raises:
        FileExistsError: the name is taken.
        OSError: the disk is full or the folder cannot be written to; a former file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(part, "xb") as file:  # a new file: never through a link that is there
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        with taken(path) if new else nullcontext():
            part.replace(path)
        if sync:
            _sync(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        # Its number and its words, with what a reader needs to make room.
        text = f"{error.strerror}: {len(content):,} bytes of {path.name} could not be written"
        raise type(error)(error.errno, text, str(path.parent)) from None
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path, name: str = "*") -> None:
    """Delete what killed processes left of files that they were writing; others may write none."""
    for part in folder.glob(f".{name}.*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def taken(path: Path) -> Iterator[None]:
    """A name that is free, until it is written: of two that take it at once, one is refused.

    Raises:
        FileExistsError: another process writes it, or has written it.
    """
    refused = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refused from None
        except OSError:  # a file system without locks
            pass
        if os.fstat(file.fileno()).st_nlink == 0 or path.stat().st_size:
            raise refused
        try:
            yield
        except BaseException:  # what could not be written is free again
            if path.stat().st_size == 0:
                path.unlink()
            raise


def _sync(folder: Path) -> None:
    """Put the renamed entry on the disk, where the file system can."""
    with suppress(OSError):
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)
