"""Averages of finished checkpoints: uniform and greedy soups, tried before and after.

A soup is a mean of models that share a basin (Wortsman et al., "Model soups", 2022). SWAP's workers
do: they began from one model, phase 1's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from swap_fast.basin import BARRIER, barrier
from swap_fast.file_means import STATISTICS, between, mean_of_files, measure, require_alike
from swap_fast.origins import require_one_origin
from swap_fast.soup_inputs import (
    files_of,
    find_start,
    require_settings,
    require_shares,
    short_names,
    target,
)
from swap_fast.soup_notes import TEST_CHOSEN, soup_notes
from swap_fast.soup_report import Ingredient, SoupReport
from swap_fast.trial import Trial, users_trial
from swap_fast.weight_files import WeightFile, read_weights, write_weights

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Soup:
    """An average of files."""

    tensors: dict[str, Tensor]
    """The model, in the files' types, with the net's plain names."""
    report: SoupReport
    """What it is made of, and how good."""


def average_files(
    paths: Sequence[Path | str],
    output: Path | str | None = None,
    *,
    soup: Literal["uniform", "greedy"] = "uniform",
    shares: Sequence[float] | None = None,
    model: Callable[[], nn.Module] | None = None,
    data: object = None,
    trial: Trial | None = None,
    select_on: Literal["held_out", "test"] = "held_out",
    start: Path | str | None = None,
    key: str | None = None,
    basin_points: int = 5,
    basin_images: int = 2048,
    max_barrier: float = BARRIER,
    require_basin: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    say: Say = lambda line: None,
) -> Soup:
    """Average finished models from files, and write the average as safetensors.

    With a net and data the batch-norm statistics are computed anew, and the accuracy of every model
    and of the average is measured, before and after, and along the segments between them.

    Arguments:
        paths: safetensors files, torch's files, or the folder of a run, which stands for its
            workers.
        output: where to write; None: nowhere.
        soup: the mean of all, or of those that each make it no worse, from the best on.
        shares: of each file in a uniform soup, to be divided by their sum; None: all alike.
        model: makes the net that the files are of.
        data: what to try it on: see `users_trial`.
        trial: instead of both.
        select_on: the split that a greedy soup is chosen by.
        start: where all models began; None: phase 1 of their run, where they are a run's.
        key: the state dict's name within training checkpoints.
        basin_points: points of each segment, its ends among them; 0: no look at the basin.
        basin_images: training images for the statistics of each point.
        max_barrier: drop of accuracy (a fraction) that a segment may have.
        require_basin: refuse models beyond that; else a note says so.
        overwrite: replace an output that is there.
        device: where the user's net is tried.
        say: told of progress.

    Raises:
        ValueError: files that cannot be averaged, or settings that do not go together.
        OSError: the output cannot be written.
    """
    if model is not None:
        trial = users_trial(model, data, torch.device(device))
    files = []
    for path in files_of(paths):
        files.append(read_weights(path, key))
        say(f"{path}: {sum(t.numel() for t in files[-1].tensors.values()):,} values")
    written = None if output is None else target(Path(output), files, overwrite=overwrite)
    shares = require_shares(shares, files, soup)
    require_settings(soup, trial, select_on, basin_points, require_basin=require_basin)
    require_alike(files)
    origin = require_one_origin(files)
    beginning = find_start(start, files, key)
    geometry = measure(files, beginning)
    names = short_names(files)

    accuracies: list[dict[str, float]] = [{} for _ in files]
    if trial is not None:
        for i, file in enumerate(files):
            trial.load_(file.tensors, file.path)
            accuracies[i] = _measure(trial)
            say(f"{names[i]}: {_words(accuracies[i])}")
    if soup == "greedy":
        assert trial is not None, "a greedy soup is chosen by data"
        ranking = [each[select_on] for each in accuracies]
        shares = _greedy(files, ranking, trial, select_on, names, say)
    kept = [i for i, share in enumerate(shares) if share > 0]
    chosen = [files[i] for i in kept]
    tensors = mean_of_files(chosen, [shares[i] for i in kept])

    before: dict[str, float] = {}
    after: dict[str, float] = {}
    spoils = any(name.endswith(STATISTICS) for name in tensors) and len(chosen) > 1
    batch_norm = "averaged" if spoils else "as_saved"
    barriers: dict[int, float] = {}
    if trial is not None:
        batch_norm = "averaged" if spoils and trial.has_statistics else "as_saved"
        trial.load_(tensors, "the average")
        before = after = _measure(trial)
        say(f"average: {_words(before)}")
        if batch_norm == "averaged" and trial.data.trains:
            tensors, batch_norm = _recomputed(trial, tensors), "recomputed"
            after = _measure(trial)
            say(f"average, batch norm anew: {_words(after)}")
        if basin_points and len(chosen) > 1 and trial.data.splits:
            for i in kept:
                barriers[i] = _barrier(trial, tensors, files[i], basin_points, basin_images)
                say(f"to {names[i]}: a barrier of {100 * barriers[i]:.2f} points")
    total = sum(shares)
    report = SoupReport(
        soup="weighted" if soup == "uniform" and len(set(shares)) > 1 else soup,
        ingredients=tuple(
            Ingredient(
                name=names[i],
                sha256=file.sha256,
                share=shares[i] / total,
                accuracies=accuracies[i],
                from_start=geometry.lengths[i] if geometry.lengths else None,
                barrier=barriers.get(i),
            )
            for i, file in enumerate(files)
        ),
        origin=origin,
        start=None if beginning is None else str(beginning.path),
        distances=geometry.distances,
        cosines=geometry.cosines,
        batch_norm=batch_norm,
        before=before,
        after=after,
        notes=tuple(
            soup_notes(files, names, batch_norm, barriers, max_barrier, tried=trial is not None)
            + ([TEST_CHOSEN] if soup == "greedy" and select_on == "test" else [])
        ),
    )
    apart = [names[i] for i, drop in barriers.items() if drop > max_barrier]
    if apart and require_basin:
        raise ValueError(
            f"expected models of one basin, got a barrier of {100 * max(barriers.values()):.2f} "
            f"points on the way to {', '.join(apart)} (at most {100 * max_barrier:g} allowed); "
            "nothing was written"
        )
    if written is not None:
        digest = write_weights(written, tensors, _about(report))
        report = replace(report, output=str(written), sha256=digest)
    return Soup(tensors=tensors, report=report)


def _measure(trial: Trial) -> dict[str, float]:
    return {split: trial.accuracy(split) for split in trial.data.splits}


def _words(accuracies: Mapping[str, float]) -> str:
    words = (f"{name.replace('_', '-')} {100 * each:.2f}%" for name, each in accuracies.items())
    return ", ".join(words) or "not tested"


def _recomputed(trial: Trial, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average with statistics anew, in the files' types; the net then holds just that."""
    trial.recompute_()
    anew = {name: t.to(tensors[name].dtype) for name, t in trial.statistics().items()}
    if not all(torch.isfinite(t).all() for t in anew.values()):
        raise ValueError("batch-norm statistics: expected finite ones, got NaN or infinity")
    tensors = {**tensors, **anew}
    trial.load_(tensors, "the average")
    return tensors


def _greedy(
    files: Sequence[WeightFile],
    ranking: Sequence[float],
    trial: Trial,
    split: str,
    names: Sequence[str],
    say: Say,
) -> list[float]:
    """Shares 1 or 0: from the best on, what makes the average of those kept no worse is kept."""
    order = sorted(range(len(files)), key=lambda i: -ranking[i])
    kept, best = order[:1], ranking[order[0]]
    for i in order[1:]:
        tensors = mean_of_files([files[j] for j in (*kept, i)])
        trial.load_(tensors, "the average")
        if trial.has_statistics and trial.data.trains:
            _recomputed(trial, tensors)
        reached = trial.accuracy(split)
        say(f"with {names[i]}: {_words({split: reached})}, {'kept' if reached >= best else 'not'}")
        if reached >= best:
            kept, best = [*kept, i], reached
    return [float(i in kept) for i in range(len(files))]


def _barrier(
    trial: Trial, average: dict[str, Tensor], file: WeightFile, points: int, images: int
) -> float:
    """The barrier between the average and a model, with statistics of its own for each point."""
    accuracies = []
    for i in range(points):
        trial.load_(between(average, file, i / (points - 1)), file.path)
        if trial.has_statistics and trial.data.trains:
            trial.recompute_(images)
        accuracies.append(trial.accuracy(trial.data.splits[0]))
    return barrier(accuracies)


def _about(report: SoupReport) -> dict[str, str]:
    """What the file says of itself; no place on a machine."""
    kept = [each for each in report.ingredients if each.share]
    return {
        "made_by": "swap_fast average",
        "method": report.soup,
        "inputs": "; ".join(f"{Path(e.name).name} sha256 {e.sha256}" for e in kept),
        "shares": "; ".join(f"{e.share:.17g}" for e in kept),
        "batch_norm": report.batch_norm,
    }
