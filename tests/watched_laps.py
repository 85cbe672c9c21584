"""A run that notes what its counted laps hold and the clock's rule does not count.

Run by tests in a process of its own: on a stand-in for CUDA, and on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.runner.launch import launch
from bench.runner.run_folders import RunSpec
from swap_fast.clock import LAPS, UNCOUNTED, Clock

COUNTED = set(LAPS) - set(UNCOUNTED) - {"checkpoint", "waiting"}
"""Of these laps nothing may be an import, or the first use of a shape by a convolution."""

_lap = Clock.lap
_running: list[str] = []
_shapes: set[tuple[Any, ...]] = set()
_found: list[str] = []


@contextmanager
def watched_lap(self: Clock, name: str) -> Iterator[None]:
    """A lap, and the modules that it imported."""
    with _lap(self, name):
        before = set(sys.modules)
        _running.append(name)
        try:
            yield
        finally:
            _running.pop()
            if name in COUNTED:
                _found.extend(f"{name}: imports {new}" for new in sorted(set(sys.modules) - before))


def watch_convolutions(op: Any, args: Any) -> None:
    """Note each convolution whose shapes come for the first time: cuDNN searches then."""
    name = getattr(op, "__name__", str(op))
    if "convolution" in name:
        shapes = (name, *(tuple(a.shape) for a in args if hasattr(a, "shape")))
        if shapes not in _shapes and _running and _running[-1] in COUNTED:
            _found.append(f"{_running[-1]}: first use of {shapes}")
        _shapes.add(shapes)


def forget_short_batches() -> None:
    """Leave the batch-norm pass's last batch cold, so that something is found."""
    from swap_fast.training.batchnorm import BatchNormRecompute

    warm_up = BatchNormRecompute.warm_up

    def without(self: BatchNormRecompute, buffer: Any, *, short: Any, **options: Any) -> None:
        warm_up(self, buffer, **options)

    BatchNormRecompute.warm_up = without  # type: ignore[method-assign,assignment]


def watched_rank(spec: RunSpec, folder: str, cold: bool) -> None:
    """One rank of the run; leaves a file of what was found."""
    from bench.runner.rank import run_rank
    from swap_fast.distributed import Comm

    Clock.lap = watched_lap  # type: ignore[method-assign]
    if spec.execution.device_type == "cuda":
        sys.modules["values"].watchers.append(watch_convolutions)
    if cold:
        forget_short_batches()
    ranks: list[int] = []
    close = Comm.close

    def noted_close(self: Comm) -> None:
        ranks.append(self.rank)
        close(self)

    Comm.close = noted_close  # type: ignore[method-assign]
    run_rank(spec)
    (Path(folder) / f"found{ranks[0]}.json").write_text(json.dumps(_found))


def main() -> None:
    """Run a small SWAP as the command line says."""
    from bench.options import RunOptions
    from bench.runner.session import prepare
    from swap_fast.recipes.cifar10 import RECIPES

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--loader", default="tensor")
    parser.add_argument("--cold", action="store_true", help="forget a warm-up")
    options = parser.parse_args()
    recipe = RECIPES["cifar10_quick"]()
    small = replace(
        recipe,
        dataset="synthetic",
        train_images=150,
        width=2,
        num_workers=2,
        batch_norm_batch_size=64,
        phase1=replace(
            recipe.phase1,
            global_batch_size=32,
            gpus_per_model=2,
            max_epochs=2,
            warmup_epochs=0.5,
            horizon_epochs=2,
        ),
        phase2=replace(recipe.phase2, global_batch_size=16),
    )
    run = RunOptions(
        device=options.device,
        ranks=options.ranks,
        out=options.folder / "out",
        loader=options.loader,
        step="eager",
        quiet=True,
    )
    prepared = prepare(run, small, recipe)
    arguments = prepared.spec, str(options.folder), options.cold
    launch(watched_rank, *arguments, num_ranks=prepared.num_ranks)


if __name__ == "__main__":
    main()
