"""Start a run's processes: torchrun's launcher as a library, unless torchrun started us already."""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from swap_fast.interruption import EXIT_STATUS, InterruptedRunError


def under_torchrun() -> bool:
    """Whether this process is a rank that torchrun, or this module, has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(function: Callable[..., Any], *arguments: Any, num_ranks: int) -> Any:
    """Call `function(*arguments)` on `num_ranks` processes of this machine; rank 0's result.

    One rank alone, or a rank of torchrun's, is called right here.

    Raises:
        ValueError, FloatingPointError: a rank raised one.
        RuntimeError: a rank failed otherwise; the message holds its number and its error.
        InterruptedRunError: the processes were interrupted, or told to end, and have ended.
    """
    if num_ranks == 1 or under_torchrun():
        return function(*arguments)
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
        start_method="spawn",
        max_restarts=0,
        monitor_interval=0.5,
    )
    # What the launcher logs of a failure, our one line says.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with TemporaryDirectory() as errors:
        try:
            return elastic_launch(config, _on_rank)(errors, function, *arguments)[0]
        except SignalException:
            # Told a second time, the launcher comes here before its processes have ended.
            for process in multiprocessing.active_children():
                process.kill()
            raise InterruptedRunError("told to end") from None
        except ChildFailedError as error:
            # The rank that failed first is the cause; a peer's broken connection came after it.
            rank, failure = error.get_first_failure()
            if failure.exitcode == EXIT_STATUS:
                raise InterruptedRunError(f"rank {rank} was told to end") from None
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                name = signal.Signals(-failure.exitcode).name
                raise RuntimeError(f"rank {rank} was ended by {name}") from None
            reported = sorted(path.read_text() for path in Path(errors).glob("*.txt"))
            if not reported:
                raise RuntimeError(f"rank {rank} ended with code {failure.exitcode}") from None
            _, number, kind, message = reported[0].split(" ", maxsplit=3)
            if kind == "ValueError":
                raise ValueError(message) from None
            if kind == "FloatingPointError":
                raise FloatingPointError(message) from None
            raise RuntimeError(f"rank {number} failed: {kind}: {message}") from None


def _on_rank(errors: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a process of its own, which says when and how it failed.

    Interrupted, the process ends at once and silently; told to end, as the others are when one
    has failed, by Python's own exit, with which the processes of a loader end too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        os._exit(130)
    except InterruptedRunError:
        # By Python's own exit, with which the processes of a loader end too.
        sys.exit(EXIT_STATUS)
    except Exception as error:
        rank = os.environ["RANK"]
        line = f"{time.time_ns()} {rank} {type(error).__name__} {' '.join(str(error).split())}"
        part = Path(errors) / f"{rank}.part"
        part.write_text(line)
        part.rename(Path(errors) / f"{rank}.txt")
        raise
