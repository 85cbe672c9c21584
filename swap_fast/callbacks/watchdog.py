"""A rank that hangs while others wait for it inside a CUDA graph: named, and the run ended.

A collective that is called eagerly has a time limit: gloo raises, and NCCL's own watchdog ends the
process. One inside a captured graph has none: where a rank hangs, the others wait for ever.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from swap_fast.distributed import Comm, LostStoreError
from swap_fast.record import EpochRow
from swap_fast.training.callback import Callback

if TYPE_CHECKING:
    from swap_fast.training.state import Progress
    from swap_fast.training.trainer import Trainer

GRACE_S = 5.0
"""After which a rank without a sign of life in between is taken for one that hangs."""


def end_process(message: str) -> None:
    """Say why, and end at once: the main thread waits in native code and hears nothing."""
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


class Watchdog(Callback):
    """A thread that checks that this rank's updates go on, and knows the update of every rank.

    Each rank writes the number of updates that it has started to the store, every `interval_s`. If
    this rank does nothing for `timeout_s`, it reads the others' numbers and names the rank that is
    behind, or that gives no sign of life.

    Arguments:
        comm: the ranks, connected.
        timeout_s: how long an update, an evaluation or a checkpoint may last.
        on_hang: called with a line that names the rank; ends the process.
        interval_s: from one sign of life to the next.
    """

    def __init__(
        self,
        comm: Comm,
        *,
        timeout_s: float,
        on_hang: Callable[[str], None] = end_process,
        interval_s: float = 1.0,
    ) -> None:
        assert comm.store is not None, "ranks that were connected have a store"
        self._store = comm.store
        self._rank, self._world_size = comm.rank, comm.world_size
        self._timeout_s, self._on_hang, self._interval_s = timeout_s, on_hang, interval_s
        self._count = self._signs = 0
        self._watching, self._is_shared = False, True
        self._phase2_ranks = 1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread and wait for it."""
        self._stopping.set()
        self._thread.join(GRACE_S)

    def on_start(self, trainer: "Trainer") -> None:
        """See how many ranks share an update in phase 2."""
        self._phase2_ranks = trainer.group.inside.world_size

    def on_begin(self, progress: "Progress") -> None:
        """Watch a model's updates only if ranks share them."""
        self._is_shared = progress.phase == 1 or self._phase2_ranks > 1

    def on_step(self, images: int) -> None:
        """Count an update, and watch from now on."""
        if self._is_shared:
            self._count += 1
            self._signs += 1
            self._watching = True

    def on_epoch_end(self, row: EpochRow) -> None:
        """Not an update, but a sign of life after an evaluation."""
        if self._is_shared:
            self._signs += 1
            self._watching = True

    def on_end(self, progress: "Progress") -> None:
        """Until the next update this rank may take any time."""
        self._watching = False

    def on_averaging(self) -> None:
        """Until the next update this rank may take any time."""
        self._watching = False

    def _run(self) -> None:
        seen, since, signs = -1, time.monotonic(), 0
        while not self._stopping.wait(self._interval_s):
            signs += 1
            try:
                with suppress(LostStoreError):  # it hangs with the updates, or answers again
                    self._store.set(f"beat/{self._rank}", f"{signs} {self._count}")
                now = time.monotonic()
                if not self._watching or self._signs != seen:
                    seen, since = self._signs, now
                elif now - since > self._timeout_s:
                    return self._on_hang(
                        f"no update was done for {self._timeout_s:g} s: {self._who_hangs()}"
                    )
            except RuntimeError:  # the process that keeps the store has ended, and the run with it
                return

    def _who_hangs(self) -> str:
        """In words; takes some seconds, in which this rank gives signs of life too."""
        try:
            before = self._read()
            for sign in range(int(GRACE_S / self._interval_s) + 1):
                time.sleep(self._interval_s)
                self._store.set(f"beat/{self._rank}", f"waits{sign} {self._count}")
            after = self._read()
        except LostStoreError as error:
            return str(error)
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        silent = [r for r in others if before[r] == after[r]]
        furthest = max(count for _, count in after)
        behind = [r for r in range(self._world_size) if after[r][1] < furthest]
        if silent:
            return f"no sign of life from rank {_list(silent)}, which hangs or has ended"
        if behind:
            at = ", ".join(f"rank {r} at update {after[r][1]}" for r in behind)
            return f"{at}, the others at {furthest}"
        return f"all ranks are at update {furthest}; a device, or what links them, hangs"

    def _read(self) -> list[tuple[str, int]]:
        """Of each rank: its last sign of life, and how many updates it had started."""
        found = []
        for rank in range(self._world_size):
            sign, count = (self._store.get(f"beat/{rank}") or "none 0").split()
            found.append((sign, int(count)))
        return found


def _list(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
