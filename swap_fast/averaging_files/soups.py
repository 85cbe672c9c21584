"""Averages of finished models: uniform and greedy soups, evaluated before and after.

A soup is a mean of models that share a basin (Wortsman et al., "Model soups", 2022). SWAP's workers
do: they began from one model, phase 1's.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from swap_fast.averaging_files.evaluate import Evaluation, user_evaluation
from swap_fast.averaging_files.inputs import (
    files_of,
    find_start,
    require_one_origin,
    require_shares,
    short_names,
    target,
)
from swap_fast.averaging_files.report import BARRIER, Ingredient, SoupReport, barrier
from swap_fast.averaging_files.weight_files import (
    STATISTICS,
    TORCH_SUFFIXES,
    WeightFile,
    between,
    differing,
    mean_of_files,
    measure,
    read_weights,
    require_alike,
    serialize,
    weights_of,
)
from swap_fast.choices import as_device
from swap_fast.config.checks import require, typed_arguments, whole
from swap_fast.files import write_file

Say = Callable[[str], object]
BASIN_IMAGES = 2048
"""Training images for the batch-norm statistics of each point of a segment."""


@dataclass(frozen=True, kw_only=True)
class Soup:
    """An average of files."""

    tensors: dict[str, Tensor]
    """The model, in the files' types, with the net's plain names."""
    report: SoupReport
    """What it is made of, and how good."""


@typed_arguments()
def average_files(
    paths: Sequence[Path | str | WeightFile],
    output: Path | str | None = None,
    *,
    soup: Literal["uniform", "greedy"] = "uniform",
    shares: Sequence[float] | None = None,
    model: Callable[[], nn.Module] | None = None,
    data: object = None,
    evaluation: Evaluation | None = None,
    select_on: Literal["held_out", "test"] = "held_out",
    start: Path | str | WeightFile | None = None,
    key: str | None = None,
    basin_points: int = 5,
    basin_images: int = BASIN_IMAGES,
    max_barrier: float = BARRIER,
    require_basin: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    say: Say = lambda line: None,
) -> Soup:
    """Average finished models from files, and write the average as safetensors or as torch does.

    With a net and data the batch-norm statistics are recomputed, and the accuracy of every model
    and of the average is measured, before and after, and along the segments between them.

    Arguments:
        paths: safetensors files, torch's files, models in memory by `weights_of`, or the folder
            of a run, which stands for its workers.
        output: where to write, .safetensors, or .pt for a state dict of torch's; None: nowhere.
        soup: the mean of all, or of those that each make it no worse, from the best on.
        shares: of each file in a uniform soup, to be divided by their sum; None: all alike.
        model: makes the net that the files are of.
        data: what to evaluate it on: see `user_evaluation`.
        evaluation: instead of both.
        select_on: the split that a greedy soup is chosen by.
        start: where all models began; None: phase 1 of their run, where they are a run's.
        key: the state dict's name within training checkpoints.
        basin_points: points of each segment, its ends among them; 0: no look at the basin.
        basin_images: training images for the statistics of each point.
        max_barrier: drop of accuracy (a fraction) that a segment may have.
        require_basin: refuse models beyond that; else a note says so.
        overwrite: replace an output that is there.
        device: where the user's net is evaluated.
        say: called with each line of progress.

    Raises:
        ValueError: files that cannot be averaged, or settings that do not go together.
        OSError: the output cannot be written.
    """
    if model is not None:
        evaluation = user_evaluation(model, data, as_device(device))
    files = []
    for path in files_of(paths):
        files.append(path if isinstance(path, WeightFile) else read_weights(path, key))
        say(f"{files[-1].path}: {sum(t.numel() for t in files[-1].tensors.values()):,} values")
    prefix = ""
    if evaluation is not None:
        fitted = [evaluation.fitted(file) for file in files]
        files, prefix = [file for file, _ in fitted], fitted[0][1]
        if isinstance(start, str | Path):
            start, _ = evaluation.fitted(read_weights(Path(start), key))
    written = None if output is None else target(Path(output), files, overwrite=overwrite)
    shares = require_shares(shares, files, soup)
    splits = () if evaluation is None else evaluation.splits
    _require_settings(soup, splits, select_on, basin_points, require_basin=require_basin)
    whole("basin_images", basin_images)
    require_basin_settings(basin_points, max_barrier)
    require_alike(files)
    origin = require_one_origin(files)
    beginning = find_start(start, files, key)
    geometry = measure(files, beginning)
    names = short_names(files)

    accuracies: list[dict[str, float]] = [{} for _ in files]
    if evaluation is not None:
        for i, file in enumerate(files):
            evaluation.load_(file.tensors, file.path)
            accuracies[i] = evaluation.accuracies()
            say(f"{names[i]}: {_words(accuracies[i])}")
    if soup == "greedy":
        assert evaluation is not None, "a greedy soup is chosen by data"
        ranking = [each[select_on] for each in accuracies]
        shares = _greedy(files, ranking, evaluation, select_on, names, say)
    kept = [i for i, share in enumerate(shares) if share > 0]
    tensors = mean_of_files([files[i] for i in kept], [shares[i] for i in kept])

    spoiled = len(kept) > 1 and any(name.endswith(STATISTICS) for name in tensors)
    batch_norm = "averaged" if spoiled else "as_saved"
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    barriers: dict[int, float] = {}
    if evaluation is not None:
        evaluation.load_(tensors, "the average")
        before = after = evaluation.accuracies()
        say(f"average: {_words(before)}")
        if not evaluation.weights.norms:
            batch_norm = "as_saved"
        elif spoiled and evaluation.batches is not None:
            batch_norm, tensors = "recomputed", _recomputed(evaluation, tensors)
            after = evaluation.accuracies()
            say(f"average, batch norm recomputed: {_words(after)}")
        if splits and basin_points and len(kept) > 1:
            for i, drop in _barriers(evaluation, tensors, files, kept, basin_points, basin_images):
                barriers[i] = drop
                say(f"to {names[i]}: a barrier of {100 * drop:.2f} points")
    apart = {names[i]: drop for i, drop in barriers.items() if drop > max_barrier}
    if apart and require_basin:
        raise ValueError(
            f"expected models of one basin, got a barrier of {100 * max(apart.values()):.2f} "
            f"points on the way to {', '.join(apart)} (at most {100 * max_barrier:g} allowed); "
            "nothing was written"
        )
    notes = _notes(files, names, batch_norm, apart, evaluated=evaluation is not None)
    if prefix:
        notes.append(
            f"the files' names begin with {prefix}, which the net's do not: it was left out, and "
            "so was what has other names"
        )
    if soup == "greedy" and select_on == "test":
        notes.append(
            "the soup was chosen by the test images, so that its accuracy on them flatters it; "
            "choose by held-out data instead"
        )
    report = SoupReport(
        soup="weighted" if soup == "uniform" and len(set(shares)) > 1 else soup,
        ingredients=tuple(
            Ingredient(
                name=names[i],
                sha256=file.sha256,
                share=shares[i] / sum(shares),
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
        notes=tuple(notes),
    )
    if written is not None:
        content = serialize(tensors, _about(report), as_torch=written.suffix in TORCH_SUFFIXES)
        write_file(written, content)
        digest = hashlib.sha256(content).hexdigest()
        report = replace(report, output=str(written), sha256=digest)
    return Soup(tensors=tensors, report=report)


@typed_arguments()
def average_models(
    models: Sequence[nn.Module | Mapping[str, Any]], shares: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The mean of models in memory: a state dict on the host, for a net of the same class.

    Sums are taken in float64 and rounded once to the models' own types. Batch-norm statistics are
    averaged like the rest, which does not fit the averaged weights: load the mean into a net, then
    call `swap_fast.recompute_batchnorm`. Counts of batches become 0, other whole numbers are the
    first model's. What torch.compile, DistributedDataParallel and AveragedModel put before names is
    left out.

    Arguments:
        models: nets or state dicts, two or more.
        shares: of each, to be divided by their sum; None: all alike.

    Raises:
        ValueError: other names, shapes or types than the first model's, weights that are not
            finite, or a state that is not of tensors alone, as with `get_extra_state`.
    """
    files = [weights_of(f"model {number}", model) for number, model in enumerate(models)]
    for file in files:
        if file.left_out:
            raise ValueError(
                f"{file.path}: expected a state of tensors alone, got others: "
                f"{', '.join(file.left_out[:8])}; leave these out of the state dict"
            )
    return average_files(files, shares=shares).tensors


def _require_settings(
    soup: str, splits: Sequence[str], select_on: str, basin_points: int, *, require_basin: bool
) -> None:
    """Refuse settings that want data which is not there, or that mean nothing."""
    if soup == "greedy" and select_on not in splits:
        remedy = "give a net and data"
        if "test" in splits:
            remedy = (
                "what is chosen by the test images fits them: give held_out data, or accept that "
                "by select_on test (--select-on test)"
            )
        got = " and ".join(splits) or "none"
        raise ValueError(f"greedy: expected {select_on} data to choose by, got {got}; {remedy}")
    if require_basin and not (splits and basin_points):
        raise ValueError("require_basin: expected a net, data to test it on, and basin points")


def require_basin_settings(basin_points: int, max_barrier: float) -> None:
    """Refuse numbers with which nothing can be found about a basin."""
    is_number = basin_points in (0, *range(3, 1001))
    require(is_number, "basin_points", "3 to 1,000, or 0 for none", basin_points)
    require(0 <= max_barrier < 1, "max_barrier", "a fraction from 0 to below 1", max_barrier)


def _recomputed(evaluation: Evaluation, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loaded average with statistics of the data, in the files' types: as the net then is."""
    statistics = {n: t.to(tensors[n].dtype) for n, t in evaluation.recompute_().items()}
    if not all(torch.isfinite(t).all() for t in statistics.values()):
        raise ValueError("batch-norm statistics: expected finite ones, got NaN or infinity")
    tensors = {**tensors, **statistics}
    evaluation.load_(tensors, "the average")
    return tensors


def _greedy(
    files: Sequence[WeightFile],
    ranking: Sequence[float],
    evaluation: Evaluation,
    split: str,
    names: Sequence[str],
    say: Say,
) -> list[float]:
    """Shares 1 or 0: from the best on, what makes the average of those kept no worse is kept."""
    order = sorted(range(len(files)), key=lambda i: -ranking[i])
    kept, best = order[:1], ranking[order[0]]
    for i in order[1:]:
        tensors = mean_of_files([files[j] for j in sorted((*kept, i))])
        evaluation.load_(tensors, "the average")
        _recomputed(evaluation, tensors)
        reached = evaluation.accuracy(split)
        say(f"with {names[i]}: {_words({split: reached})}, {'kept' if reached >= best else 'not'}")
        if reached >= best:
            kept, best = [*kept, i], reached
    return [float(i in kept) for i in range(len(files))]


def _barriers(
    evaluation: Evaluation,
    center: dict[str, Tensor],
    files: Sequence[WeightFile],
    kept: Sequence[int],
    points: int,
    images: int,
) -> Iterator[tuple[int, float]]:
    """The barrier between one model, such as the average, and each of those kept.

    Each point has statistics of its own, of that many images.
    """

    def accuracy(file: WeightFile, share: float) -> float:
        evaluation.load_(between(center, file, share), file.path)
        evaluation.recompute_(images)
        return evaluation.accuracy(evaluation.splits[0])

    here = accuracy(files[kept[0]], 0.0)
    for i in kept:
        way = [accuracy(files[i], point / (points - 1)) for point in range(1, points)]
        yield i, barrier([here, *way])


def farthest_barrier(
    evaluation: Evaluation,
    files: Sequence[WeightFile],
    distances: Sequence[Sequence[float]],
    points: int,
) -> tuple[int, int, float]:
    """The two models that lie farthest apart, and the barrier between them."""
    pairs = combinations(range(len(files)), 2)
    first, second = max(pairs, key=lambda pair: distances[pair[0]][pair[1]])
    ((_, drop),) = _barriers(
        evaluation, files[first].tensors, [files[second]], [0], points, BASIN_IMAGES
    )
    return first, second, drop


def _words(accuracies: Mapping[str, float]) -> str:
    words = (f"{name.replace('_', '-')} {100 * each:.2f}%" for name, each in accuracies.items())
    return ", ".join(words) or "not tested"


def _notes(
    files: Sequence[WeightFile],
    names: Sequence[str],
    batch_norm: str,
    apart: Mapping[str, float],
    *,
    evaluated: bool,
) -> list[str]:
    """One line for each thing that might be overlooked.

    Arguments:
        apart: the barrier of each model that lies in another basin.
    """
    notes = []
    if batch_norm == "averaged":
        notes.append(
            "the batch-norm statistics are mere averages, which do not fit the averaged weights: "
            "give model and data (--model, --data) with training batches, and they are recomputed"
        )
    if not evaluated:
        notes.append(
            "whether the models share a basin was not tested: give model and data with test batches"
        )
    notes += [
        f"{name} lies in another basin: on the way from the average the accuracy falls "
        f"{100 * drop:.2f} points below the straight line; leave it out"
        for name, drop in apart.items()
    ]
    first: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        if file.sha256 in first:
            twin = first[file.sha256]
            notes.append(f"{name} has the bytes of {twin}: the model counts twice")
        first.setdefault(file.sha256, name)
    if whole := differing(files):
        notes.append(
            f"{whole[0]} holds whole numbers that differ, of which none is the mean"
            + (f", and so do {len(whole) - 1} more" if whole[1:] else "")
            + f": those of {names[0]} are kept"
        )
    if left := files[0].left_out:
        notes.append(f"left out, for they are no tensors: {', '.join(left[:8])}")
    return notes


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
