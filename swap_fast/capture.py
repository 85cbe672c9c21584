"""An update as one CUDA graph: a launch for the whole step instead of one for each kernel."""

from collections.abc import Callable
from typing import Any

import torch

WARM_UPS = 11
"""Updates before a capture: libraries choose their kernels, NCCL makes its communicator."""


Pool = Any  # torch keeps its type to itself
"""torch's handle of the memory that a graph's intermediate tensors live in."""


def capture(update: Callable[[], None], pool: Pool | None = None) -> Callable[[], None]:
    """Run an update until it is warm, capture it, and return its replay.

    Whatever the update reads and writes must keep its address, it may not wait for the device, and
    nothing that it keeps on the host changes from call to call: a replay repeats the kernels of
    the captured call, and no Python. The warm-up runs the update for real.

    Arguments:
        pool: memory that graphs may share which never run at the same time and leave nothing in it
            for one another: the stages of ImageNet would not fit side by side. None: its own.

    Raises:
        RuntimeError: the update cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            update()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads, such as a loader's or a telemetry sampler's, may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            update()
    except RuntimeError as error:
        raise RuntimeError(
            f"the step could not be captured as a CUDA graph: {error}; use --capture off"
        ) from error
    return graph.replay
