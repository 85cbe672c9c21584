"""`--profile`: traces of a few steady steps of each phase, for Perfetto and chrome://tracing.

Rank 0 alone is traced, its steps under the names of their laps. Without the option there is no
profiler, and an update has no cost for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from swap_fast.clock import LAPS
from swap_fast.config.phase import Phase, shapes
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.data.cifar.augment import IMAGE_SIZE
from swap_fast.training.callback import Callback
from swap_fast.training.state import Progress
from swap_fast.training.trainer import Trainer

WAIT, WARMUP, ACTIVE = 3, 2, 3
"""Steps of a phase that are skipped, that the profiler starts in, and that are in the trace."""

TOP = 10
"""Operators that are printed, by their own time."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How many steps are skipped, dropped, and kept: the arguments of torch's `schedule`."""

    wait: int
    warmup: int
    active: int


def steps_within(steps_per_epoch: int) -> Steps | None:
    """The steps that fit into one epoch, so that no evaluation is in the trace; None: too few."""
    if steps_per_epoch < 2:
        return None
    active = min(ACTIVE, steps_per_epoch - 1)
    warmup = min(WARMUP, steps_per_epoch - active)
    return Steps(wait=min(WAIT, steps_per_epoch - active - warmup), warmup=warmup, active=active)


class Profiler(Callback):
    """Traces one process of a run, from `begin` on, to `phase1`, `phase2-worker{w}` and `phase3`.

    In phases 1 and 2 a step is an update of the first epoch in this process; in phase 3 averaging
    is a step, and then each batch of the batch-norm pass.
    """

    def __init__(self) -> None:
        self._plans: dict[str, Steps | None] = {}
        self._folder, self._worker = Path(), 0
        self._say: Callable[[str], None] = print
        self._phase: str | None = None
        self._trace: profile | None = None
        self._range: record_function | None = None
        self._lap = ""
        self._taken = 0

    def begin(
        self, recipe: Recipe, num_images: int, folder: Path, say: Callable[[str], None]
    ) -> None:
        """Trace the phases from here on.

        Arguments:
            num_images: to train on.
            folder: where the traces go; made with the first.
            say: prints each file's path and its longest operators.
        """
        self._folder, self._say = folder, say
        self._plans = {"phase1": _plan(recipe.phase1, num_images)}
        if isinstance(recipe, AveragingRecipe):
            self._plans["phase2"] = _plan(recipe.phase2, num_images)
            # While rank 0 waits for the others, the profiler starts up.
            self._plans["phase3"] = Steps(wait=0, warmup=1, active=1 + ACTIVE)

    def trace_batch_norm(self, trainer: Trainer) -> Trainer:
        """The trainer, with each batch of phase 3's pass as a step."""

        def batches() -> Iterator[Tensor]:
            for batch in trainer.batch_norm_batches():
                yield batch
                self.step()

        return replace(trainer, batch_norm_batches=batches)

    def on_begin(self, progress: Progress) -> None:
        """Name the trace of phase 2 after the worker."""
        self._worker = progress.worker

    def on_step(self, images: int) -> None:
        """Take a step."""
        self.step()

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Around a lap of the clock, outside its time: start and end traces."""
        phase = {"waiting": "phase3"}.get(name, name)
        self._lap = name
        if not self._taken and phase in self._plans and phase != self._phase is not None:
            self._stop()  # of a phase that was done before this process, without a step
        if self._trace is None and self._plans.get(phase) is not None:
            self._start(phase)
        elif name == "averaging":
            self.step()
        yield
        if name == "averaging":
            self._lap = "batch_norm"  # what the next step is of
            self.step()
        # A phase starts with laps that have no step; a trace ends with its epoch.
        if self._taken and name == {"phase3": "batch_norm"}.get(self._phase or "", self._phase):
            self._stop()

    def step(self) -> None:
        """After each update of phases 1 and 2, and each batch of phase 3."""
        if self._trace is not None:
            self._leave_range()
            self._taken += 1
            self._trace.step()
            # The trace has no lap, which starts before it and ends after it: each step is a range.
            self._range = record_function(self._lap)
            self._range.__enter__()

    def _start(self, phase: str) -> None:
        plan = self._plans[phase]
        assert plan is not None, "a phase without steps enough has no trace"
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        else:
            # torch's build for CUDA else prints an error, that it finds no device.
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
        self._phase, self._taken = phase, 0
        self._trace = profile(
            activities=activities,
            schedule=schedule(wait=plan.wait, warmup=plan.warmup, active=plan.active, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,  # of one cycle; without it, torch warns that others would be dropped
        )
        self._trace.start()

    def _stop(self) -> None:
        """End a phase's only trace, with fewer steps if the phase had fewer."""
        assert self._trace is not None, "it was started"
        assert self._phase is not None, "it was started"
        self._leave_range()
        self._trace.stop()
        self._plans[self._phase] = None
        self._phase = self._trace = None
        self._taken = 0

    def _leave_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def _write(self, trace: profile) -> None:
        assert self._phase is not None, "a trace is of a phase"
        name = f"phase2-worker{self._worker}" if self._phase == "phase2" else self._phase
        path = self._folder / f"{name}.json.gz"
        self._folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(path))
        self._say(f"profile: {path}")
        for line in longest_operators(trace):
            self._say(f"  {line}")


def longest_operators(trace: profile) -> list[str]:
    """The operators with the most time of their own, on the device where one was traced."""
    operators = [
        each
        for each in trace.key_averages()
        if each.key not in LAPS and not each.key.startswith("ProfilerStep")
    ]
    on_device = any(each.self_device_time_total > 0 for each in operators)
    times_us = {
        each.key: float(each.self_device_time_total if on_device else each.self_cpu_time_total)
        for each in operators
    }
    counts = {each.key: each.count for each in operators}
    whole_us = sum(times_us.values())
    if whole_us <= 0:
        return []
    longest = sorted(times_us, key=lambda name: (-times_us[name], name))[:TOP]
    where = "device" if on_device else "CPU"
    head = f"{'operator':<44} {'calls':>6} {f'own {where} time':>16} {'share':>6}"
    return [
        head,
        *(
            f"{name[:44]:<44} {counts[name]:>6} {times_us[name] / 1000:>13.2f} ms "
            f"{times_us[name] / whole_us:>6.1%}"
            for name in longest
        ),
    ]


def was_profiled(results: Path, *run_ids: str | None) -> bool:
    """Whether any of these runs has a trace, of this process or an earlier one."""
    return any((results / "profiles" / run_id).is_dir() for run_id in run_ids if run_id)


def _plan(phase: Phase, num_images: int) -> Steps | None:
    return steps_within(num_images // shapes(phase, IMAGE_SIZE)[0].global_batch_size)
