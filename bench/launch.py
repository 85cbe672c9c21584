"""Start a run's processes: torchrun's launcher as a library, unless torchrun started us already."""

import os
from collections.abc import Callable
from typing import Any


def under_torchrun() -> bool:
    """Whether this process is a rank that torchrun, or this module, has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(function: Callable[..., Any], *arguments: Any, num_ranks: int) -> Any:
    """Call `function(*arguments)` on `num_ranks` processes of this machine; rank 0's result.

    One rank alone, or a rank of torchrun's, is called right here.

    Raises:
        RuntimeError: a rank failed; the message holds its number and its error's last line.
    """
    if num_ranks == 1 or under_torchrun():
        return function(*arguments)
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
    try:
        return elastic_launch(config, function)(*arguments)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message
        raise RuntimeError(f"rank {rank} failed: {message}") from None
