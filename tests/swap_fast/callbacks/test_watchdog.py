"""Ranks that wait for one that hangs inside a graph: who is named, and when nothing is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch.distributed as dist

from swap_fast.callbacks import watchdog as module
from swap_fast.callbacks.watchdog import Watchdog
from swap_fast.distributed import Comm, Store

INTERVAL_S = 0.01


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.3)


def pair(timeout_s: float) -> tuple[list[Watchdog], list[str], threading.Event]:
    """Two ranks' watchdogs over one store, what they say, and whether they have."""
    said: list[str] = []
    heard = threading.Event()

    def note(message: str) -> None:
        said.append(message)
        heard.set()

    store = Store(dist.HashStore())
    dogs = [
        Watchdog(
            Comm(rank=rank, world_size=2, store=store),
            timeout_s=timeout_s,
            on_hang=note,
            interval_s=INTERVAL_S,
        )
        for rank in range(2)
    ]
    return dogs, said, heard


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(INTERVAL_S)


def test_a_rank_that_is_behind_is_named_with_its_update() -> None:
    (first, second), said, heard = pair(0.2)
    with first, second:
        for _ in range(5):
            first.on_step(1)
        for _ in range(3):
            second.on_step(1)
        assert heard.wait(20)
    assert said[0] == "no update was done for 0.2 s: rank 1 at update 3, the others at 5"


def test_a_rank_without_a_sign_of_life_is_named() -> None:
    (first, second), said, heard = pair(0.2)
    with first:
        with second:
            first.on_step(1)
            second.on_step(1)
            until(lambda: second._store.get("beat/1") is not None)
        assert heard.wait(20)  # the second's thread has ended, as that of a stopped process
    assert said[0].endswith("no sign of life from rank 1, which hangs or has ended")


def test_where_no_rank_is_behind_the_devices_are_named() -> None:
    (first, second), said, heard = pair(0.2)
    with first, second:
        first.on_step(1)
        second.on_step(1)
        assert heard.wait(20)
    assert said[0].endswith("all ranks are at update 1; a device, or what links them, hangs")


def test_nothing_is_said_while_updates_go_on_or_none_is_due() -> None:
    (first, second), said, _ = pair(0.2)
    with first, second:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            first.on_step(1)
            time.sleep(INTERVAL_S)
        first.on_averaging()  # as through an evaluation: it may last
        time.sleep(0.4)
    assert said == []
