"""A run as jobs of a cluster, by submitit: phase 1, an array of workers, and their average.

Each job is a part of one run, in the run's folder. A job that is pre-empted, or whose time is over,
is queued again and resumes from its checkpoints; a worker that dies costs its own job only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.options import JobOptions, RunOptions
from bench.runner.run_folders import Part, find_unfinished
from swap_fast.callbacks.events import make_event
from swap_fast.callbacks.progress import JsonLines, print_line
from swap_fast.callbacks.trackers import require_trackers
from swap_fast.config.recipe import Recipe, SWAPRecipe
from swap_fast.record import run_id
from swap_fast.shutdown import EXIT_STATUS, InterruptedRunError

if TYPE_CHECKING:
    from submitit import Executor, Job
    from submitit.helpers import DelayedSubmission


MOST_TIMEOUTS = 100
"""Times that a job whose time is over is queued again; submitit's own 3 are few for long runs."""


@dataclass(frozen=True, kw_only=True)
class JobPart:
    """What one job does; called on a node, once in each task of the job."""

    options: RunOptions
    """How the recipe is run."""
    recipe: Recipe
    """What to run."""
    original: Recipe
    """The recipe without what the command line changed."""
    part: Part
    """Of the run."""
    folder: Path
    """Of the run, on a disk that all nodes see."""

    def __call__(self, worker: int | None = None) -> Path | None:
        """Run this part; the tasks of the job are its ranks."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        from bench.runner.launch import launch
        from bench.runner.rank import run_rank
        from bench.runner.session import prepare

        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        prepared = prepare(self.options, self.recipe, self.original)
        spec = replace(
            prepared.spec,
            part=self.part,
            track=self.options.track if self.part != "workers" else (),
            workers=None if worker is None else (worker,),
            folder=self.folder,
        )
        try:
            num_ranks = prepared.num_ranks if worker is None else 1
            return launch(run_rank, spec, num_ranks=num_ranks)
        except InterruptedRunError:
            os._exit(EXIT_STATUS)  # without a result: the job is not done

    def checkpoint(self, worker: int | None = None) -> DelayedSubmission:
        """What submitit queues when the job is pre-empted: the same part, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, worker)


def submit(options: RunOptions, jobs: JobOptions, recipe: Recipe, original: Recipe) -> int:
    """Submit a run's jobs; the exit status.

    Raises:
        ValueError: submitit is not installed, this machine has no such cluster, the recipe
            has no use for so many processes, or an option of `run` does not work in jobs.
        RuntimeError: a local job failed.
    """
    from bench.runner.session import check_ranks

    if options.share_phase1 or options.phase2 != "together":
        raise ValueError(
            "submit: expected a run of its own, got --share-phase1 or --phase2 separate; its "
            "workers are jobs of their own already"
        )
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import UncompletedJobError
    except ImportError:
        raise ValueError(
            "submit: expected submitit, got none; pip install 'swap_fast[slurm]'"
        ) from None
    require_trackers(options.track)
    if jobs.gpus_per_node is None:
        jobs = replace(jobs, gpus_per_node=default_gpus(jobs, recipe))
    check_ranks(recipe, jobs.nodes * (jobs.gpus_per_node or options.ranks or 1))

    def log(line: str, kind: str, **values: Any) -> None:
        if options.json:
            JsonLines()(make_event(kind, **values))
        else:
            print_line(line)

    for number in range(options.runs):
        own = replace(options, runs=1, seed=options.seed + number, out=options.out.resolve())
        name = run_id(recipe.name, own.seed, datetime.now(UTC).isoformat())
        if options.resume and (unfinished := find_unfinished(own.out, recipe.name, own.seed)):
            name = unfinished.name
        folder = own.out / "checkpoints" / name
        try:
            executor = AutoExecutor(
                folder=own.out / "jobs" / name,
                cluster=jobs.cluster,
                slurm_max_num_timeout=MOST_TIMEOUTS,
            )
        except RuntimeError as error:
            raise ValueError(f"submit: {error}; --cluster local runs the jobs here") from None
        try:
            submitted = _submit_run(executor, own, jobs, recipe, original, folder)
            for what, job in submitted:
                line = f"{name}: {what}: job {job.job_id}"
                log(line, "submitted", run=name, what=what, job=job.job_id)
            if jobs.cluster == "local":
                record = str(submitted[-1][1].result())
                log(f"record: {record}", "recorded", run=name, record=record)
        except UncompletedJobError as error:  # a local job
            raise RuntimeError(
                f"{name}: a job did not end well ({_reason(str(error))}); the same command with "
                "--resume continues it"
            ) from None
    return 0


def default_gpus(jobs: JobOptions, recipe: Recipe) -> int:
    """Of 8 GPUs on each node, as many as phase 1 and the workers can use."""
    workers = recipe.num_workers if isinstance(recipe, SWAPRecipe) else 1
    for gpus in range(min(8, recipe.num_replicas // jobs.nodes), 1, -1):
        ranks = jobs.nodes * gpus
        if ranks <= workers or ranks % workers == 0:
            return gpus
    return 1


def _reason(text: str) -> str:
    """The error at the end of a job's traceback; without one, the first line of submitit's text."""
    raised = re.findall(r"^[\w.]*(?:Error|Exception): (.+)$", text, re.MULTILINE)
    return raised[-1] if raised else text.strip().splitlines()[0]


def _submit_run(
    executor: Executor,
    options: RunOptions,
    jobs: JobOptions,
    recipe: Recipe,
    original: Recipe,
    folder: Path,
) -> list[tuple[str, Job[Any]]]:
    """Submit the jobs of one run; each starts when those before it have ended well."""

    def part(name: Part) -> JobPart:
        return JobPart(options=options, recipe=recipe, original=original, part=name, folder=folder)

    def after(*before: Job[Any], tasks: int, nodes: int = 1) -> None:
        slurm: dict[str, Any] = {"requeue": True}
        if before and jobs.cluster == "local":
            for job in before:  # a local executor starts all at once
                job.result()
        elif before:
            ids = sorted({job.job_id.split("_")[0] for job in before})
            slurm["dependency"] = f"afterok:{':'.join(ids)}"
        executor.update_parameters(
            name=f"swap_fast-{recipe.name}",
            timeout_min=jobs.time_min,
            nodes=nodes,
            tasks_per_node=tasks,
            gpus_per_node=tasks if jobs.gpus_per_node else 0,
            **(
                {}
                if jobs.cluster == "local"
                else {
                    "cpus_per_task": jobs.cpus_per_task,
                    "slurm_partition": jobs.partition,
                    "slurm_account": jobs.account,
                    "slurm_array_parallelism": jobs.at_once,
                    "slurm_additional_parameters": slurm,
                }
            ),
        )

    ranks = jobs.gpus_per_node or options.ranks or 1
    if not isinstance(recipe, SWAPRecipe) or recipe.gpus_per_worker > 1:
        # One model, or workers of several devices: the whole run is one job.
        after(tasks=ranks, nodes=jobs.nodes)
        return [("the run", executor.submit(part("all")))]
    after(tasks=ranks, nodes=jobs.nodes)
    first = executor.submit(part("phase1"))
    after(first, tasks=1)
    workers = executor.map_array(part("workers"), range(recipe.num_workers))
    after(*workers, tasks=ranks, nodes=jobs.nodes)
    last = executor.submit(part("all"))
    named = [(f"phase 2, worker {number}", job) for number, job in enumerate(workers)]
    return [("phase 1", first), *named, ("phase 3", last)]
