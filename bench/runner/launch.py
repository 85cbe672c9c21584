"""Start a run's processes with torchrun's launcher, unless torchrun has started this one."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from swap_fast.files import write_file
from swap_fast.shutdown import EXIT_STATUS, InterruptedRunError

ORPHAN_S = 10.0
"""The time that a process has to end after the one that started it was killed."""
LOOK_S = 1.0
"""How often the launching process looks for ranks that ended without an error."""
PEERS_END_S = 10.0
"""The time that the other ranks have to end by themselves after one was killed."""

_NOTES: Path | None = None
"""Where this rank writes its status and its error, if `launch` started it."""
_trains = False
"""Whether this process has started to train."""


def under_torchrun() -> bool:
    """Whether this process is a rank that torchrun, or this module, has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def set_status(text: str) -> None:
    """Note what this rank does, for the message if it dies."""
    global _trains
    _trains = True
    if _NOTES is not None:
        (_NOTES / f"{os.environ['RANK']}.where").write_text(text)


def end_rank(message: str) -> None:
    """End this rank from any thread, at once; its launching process raises a RuntimeError."""
    if _NOTES is None:
        from swap_fast.callbacks.watchdog import end_process  # it imports torch

        end_process(message)
    _report(RuntimeError(message))
    os._exit(1)


def launch(function: Callable[..., Any], *arguments: Any, num_ranks: int) -> Any:
    """Call `function(*arguments)` on `num_ranks` processes of this machine; rank 0's result.

    One rank alone, or a rank of torchrun's, is called right here.

    Raises:
        ValueError, FloatingPointError: a rank raised one.
        RuntimeError: a rank failed otherwise; the message holds its number, its error, and its
            last status.
        InterruptedRunError: a signal ended the processes.
    """
    if num_ranks == 1 or under_torchrun():
        try:
            return function(*arguments)
        except (FileNotFoundError, PermissionError) as error:
            raise RuntimeError(str(error)) from error  # as of a rank's: the command was right
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id="swap_fast",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",  # not by this machine's name, which may not resolve
        start_method="spawn",
        max_restarts=0,
        monitor_interval=0.5,
    )
    # The launcher logs a failure in many lines; the exception says it in one.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with TemporaryDirectory() as errors, _watch_ranks(Path(errors)) as silent:
        try:
            return elastic_launch(config, _on_rank)(errors, function, *arguments)[0]
        except SignalException:
            # After a second signal the launcher comes here before its processes have ended.
            for process in multiprocessing.active_children():
                process.kill()
            raise InterruptedRunError("by a signal") from None
        except ChildFailedError as error:
            # The rank that failed first is the cause; a peer's broken connection came after it.
            rank, failure = error.get_first_failure()
            noted = Path(errors) / f"{rank}.where"
            where = f" in {noted.read_text()}" if noted.exists() else ""
            if silent:
                raise RuntimeError(f"rank {silent[0]} ended early, without a result") from None
            if failure.exitcode == EXIT_STATUS:
                raise InterruptedRunError(f"rank {rank} got a signal to end") from None
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                name = signal.Signals(-failure.exitcode).name
                raise RuntimeError(f"rank {rank} was ended by {name}{where}") from None
            reported = sorted(path.read_text() for path in Path(errors).glob("*.txt"))
            if not reported:
                text = f"rank {rank} ended with code {failure.exitcode}{where}"
                raise RuntimeError(text) from None
            _, number, kind, message = reported[0].split(" ", maxsplit=3)
            if kind == "ValueError":
                raise ValueError(message) from None
            if kind == "FloatingPointError":
                raise FloatingPointError(message) from None
            raise RuntimeError(f"rank {number} failed: {kind}: {message}") from None


@contextmanager
def _watch_ranks(notes: Path) -> Iterator[list[str]]:
    """Kill the other ranks when one has ended early; gives those that ended early with status 0.

    The launcher takes status 0 for a good end, and would wait for that rank's result for ever.
    After a rank was killed it sends the others a signal, but waits 30 s for one that cannot react,
    such as one that waits in native code for the dead one to connect.
    """
    silent: list[str] = []
    over = threading.Event()

    def watch() -> None:
        known: dict[int | None, BaseProcess] = {}
        killed_at: float | None = None
        while not over.wait(LOOK_S):
            known |= {process.pid: process for process in multiprocessing.active_children()}
            for began in sorted(notes.glob("*.began")):
                process = known.get(int(began.read_text() or 0))
                code = None if process is None else process.exitcode
                if code == 0 and not began.with_suffix(".done").exists():
                    silent.append(began.stem)
                if code is not None and code < 0 and killed_at is None:
                    killed_at = time.monotonic()
            if silent or (killed_at is not None and time.monotonic() > killed_at + PEERS_END_S):
                for process in multiprocessing.active_children():
                    process.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield silent
    finally:
        over.set()
        watcher.join()


def end_with_parent() -> None:
    """End this process when the one that started it is killed: by SIGINT, then after `ORPHAN_S`.

    torch asks the kernel for such a signal, but only once it is imported, and a process that waits
    in native code does not react; processes that are not torch's ask for none.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process that another one started"

    def follow() -> None:
        wait([parent.sentinel])
        if _trains:  # else there is nothing to keep
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(ORPHAN_S)
        os._exit(EXIT_STATUS)

    threading.Thread(target=follow, name="end with parent", daemon=True).start()


def _on_rank(errors: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a rank's process, and write down how it failed.

    After SIGINT the process ends at once and silently. After SIGTERM, which the others get when
    one has failed, it ends by Python's own exit, with which the processes of a loader end too.
    """
    global _NOTES
    _NOTES, rank = Path(errors), os.environ["RANK"]
    end_with_parent()
    (_NOTES / f"{rank}.began").write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = function(*arguments)
        (_NOTES / f"{rank}.done").touch()
        return result
    except KeyboardInterrupt:
        os._exit(130)
    except InterruptedRunError:
        # By Python's own exit, with which the processes of a loader end too.
        sys.exit(EXIT_STATUS)
    except Exception as error:
        _report(error)
        raise


def _report(error: Exception) -> None:
    """Write the error that ends this rank for the launching process."""
    assert _NOTES is not None, "a rank that was started here"
    rank = os.environ["RANK"]
    line = f"{time.monotonic_ns():020} {rank} {type(error).__name__} {' '.join(str(error).split())}"
    write_file(_NOTES / f"{rank}.txt", line.encode())
