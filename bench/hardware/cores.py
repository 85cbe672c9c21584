"""CPU cores as devices: a process of one thread on a core of its own. No torch."""

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager


def core_numbers() -> set[int]:
    """The CPU cores that this process may use, by the operating system's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


@contextmanager
def on_own_core(cores: Collection[int]) -> Iterator[bool]:
    """Run this thread on the first of `cores` that no other run has; gives whether there is one.

    Else it runs on any of them. Threads and processes that are started within, such as a loader's,
    stay on the same core: it is all that one device has. Afterwards this thread may run where it
    might before. Where `cores` is empty nothing happens.
    """
    with ExitStack() as stack:
        own = next((core for core in sorted(cores) if _take(core, stack)), None)
        if cores:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores if own is None else {own})
        yield own is not None


def _take(core: int, stack: ExitStack) -> bool:
    """Mark the core as taken until the stack's end or the process's; False where it is.

    The mark is a name in Linux's abstract namespace of sockets: one process of the machine at a
    time can bind it, and it needs no file.
    """
    mark = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
    try:
        mark.bind(f"\0swap_fast core {core}")
    except OSError:
        return False
    return True
