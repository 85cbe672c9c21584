"""`python -m swap_fast average`: parse, average, show. Nothing heavy is imported before parsing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from swap_fast.averaging_files.report import BARRIER
from swap_fast.choices import choose, choose_device
from swap_fast.config.checks import one_line
from swap_fast.options import parse_options

if TYPE_CHECKING:
    import torch

    from swap_fast.averaging_files.evaluate import Evaluation


FilesOrRun = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="FILES|RUN-FOLDER", help_behavior_hint="(required)"),
]


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Average finished models: safetensors files, torch's files, the indexes of models in shards,
    or the workers of a run's folder.

    The files are read without running what is in them. With a net and data the batch-norm
    statistics are recomputed, and accuracies printed before and after. Of a run of ours both are
    known.
    """

    files: FilesOrRun
    """The models: files of one net, or a folder: of a run, results/checkpoints/RUN, or of a result
    that `swap` or `refine` saved."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Where the average is written: .safetensors, or .pt for a state dict of torch's."""
    soup: Literal["uniform", "greedy"] = "uniform"
    """The mean of all, or of those that, from the best on, make it no worse on held-out data."""
    shares: tuple[float, ...] | None = None
    """A weight (a number above 0) for each file; they are divided by their sum."""
    model: str | None = None
    """package.module:function, which makes the net that the files are of."""
    data: str | None = None
    """package.module:function, which gives (train, test) or (train, test, held_out) batches, or a
    dict with these names; a batch is (inputs, labels)."""
    run: Path | None = None
    """Instead of both: the folder of the run whose net and data they are; known where the folder
    stands for the files."""
    data_dir: Path | None = None
    """Where the run's data set is, if not in SWAP_DATA or the cache."""
    evaluate: bool = True
    """Evaluate the average, if the run is known."""
    select_on: Literal["held_out", "test"] = "held_out"
    """What a greedy soup is chosen by."""
    start: Path | None = None
    """The model that all began from; a run's own is known."""
    key: str | None = None
    """The name of the state dict within training checkpoints, where it is not plain."""
    basin_points: int = 5
    """Points of each segment from the average to a model, to see whether they share a basin; 0:
    none."""
    basin_images: int = 2048
    """Training images for the batch-norm statistics of each of these points."""
    max_barrier: float = BARRIER
    """Drop of accuracy (a fraction) along a segment from which on models lie apart."""
    require_basin: bool = False
    """Write nothing where a model lies apart."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where accuracies and statistics are computed."""
    force: bool = False
    """Replace an output that is there."""
    json: bool = False
    """Print one JSON object."""
    json_file: Path | None = None
    """Write the JSON object to a file."""
    quiet: bool = False
    """Print no progress."""


def average(arguments: list[str]) -> int:
    """Average files as asked."""
    options = parse_options(AverageOptions, arguments, "python -m swap_fast average")
    import torch

    from swap_fast.averaging_files.report import show
    from swap_fast.averaging_files.soups import average_files
    from swap_fast.files import write_file

    device = torch.device(choose_device(options.device))

    def say(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    made = average_files(
        options.files,
        options.output,
        soup=options.soup,
        shares=options.shares,
        evaluation=_evaluation(options, device),
        select_on=options.select_on,
        start=options.start,
        key=options.key,
        basin_points=options.basin_points,
        basin_images=options.basin_images,
        max_barrier=options.max_barrier,
        require_basin=options.require_basin,
        overwrite=options.force,
        say=say,
    )
    text = json.dumps(asdict(made.report), indent=1, allow_nan=False)
    if options.json_file is not None:
        write_file(options.json_file, (text + "\n").encode())
    if options.json:
        print(text)
    else:
        show(made.report)
    return 0


def _evaluation(options: AverageOptions, device: torch.device) -> Evaluation | None:
    """The net and data to evaluate the average with; None: the tensors alone are averaged.

    Raises:
        ValueError: half of it, or functions that are not there.
    """
    if (options.model is None) != (options.data is None):
        given, lacking = ("model", "data") if options.data is None else ("data", "model")
        raise ValueError(f"{given}: expected --{lacking} beside it, got none")
    if options.model is not None and options.data is not None:
        from swap_fast.averaging_files.evaluate import called, user_evaluation

        make_model = user_function("--model", options.model)
        make_data = user_function("--data", options.data)
        return user_evaluation(make_model, called("data", make_data), device)
    from swap_fast.checkpoint.run_folder import RUN_FILE

    folders = [path for path in options.files if (path / RUN_FILE).exists()]
    run = options.run or (folders[0] if len(folders) == 1 else None)
    if run is not None and options.evaluate:
        from swap_fast.averaging_files.evaluate import run_evaluation

        return run_evaluation(run, options.data_dir, device)
    if options.data_dir is not None:
        raise ValueError("data_dir: expected the folder of one run, got none; give --run FOLDER")
    return None


def user_function(option: str, named: str) -> Callable[[], Any]:
    """The function of that name, from the working folder or what is installed.

    Raises:
        ValueError: no such module or function, or a module that fails to be imported.
    """
    module_name, colon, name = named.partition(":")
    if not colon or not name or module_name.endswith(".py") or "/" in module_name:
        guess = f"{Path(module_name).stem or 'my_module'}:{name or 'function'}"
        raise ValueError(f"{option}: expected package.module:function, got {named}; try {guess}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise ValueError(
            f"{option}: expected a module {module_name}, importing it gave "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    functions = [each for each, value in vars(module).items() if callable(value)]
    return getattr(module, choose(f"function of {option}, {module_name}", name, functions))
