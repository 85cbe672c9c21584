"""What a reader must know before a table's figures: hardware, net, epochs, data. No torch."""

from collections.abc import Iterable, Sequence

from bench.records.grouping import group_by, machine_key, recipe_of
from bench.records.paper import Paper, PaperValue
from bench.records.paper_tables import RowRuns, RunTable
from swap_fast.record import RunRecord

NETS = {"resnet9": "ResNet-9", "resnet50": "ResNet-50"}
"""As printed."""
WHOLE_RESNET50 = (3, 4, 6, 3)
"""Its blocks."""


def cpu_warning(records: Sequence[RunRecord]) -> str:
    """What the CPU forms are, in place of the paper's hardware and net; from the records."""
    machines = sorted({machine_key(record).used for record in records})
    return (
        f"Not the paper's hardware or net: {_and(_nets(records))} on {_or(machines)}, with fewer "
        "epochs. The paper's columns are printed for orientation only."
    )


def cpu_caption(dealt: Sequence[RowRuns], dataset: str) -> str:
    """The warning with the epochs of every recipe, and the data."""
    records = [record for each in dealt for record in each.records]
    epochs = sorted({f"{_epochs(record)} ({record.recipe})" for record in records})
    return f"{cpu_warning(records)} Epochs: {'; '.join(epochs)}. {_data_note(dealt, dataset)}"


def paper_caption(paper: Paper, table: RunTable) -> str:
    """Which table of the paper stands beside ours, and what it was measured on."""
    values = [value for value in paper.values if value.table == table.name]
    by_hardware: dict[str, list[PaperValue]] = {}
    for value in values:
        by_hardware.setdefault(value.hardware, []).append(value)
    on = "; ".join(
        hardware
        if len(by_hardware) == 1
        else f"{hardware} for {', '.join(dict.fromkeys(value.row for value in those))}"
        for hardware, those in by_hardware.items()
    )
    return f"Paper: {table.name}, {values[0].n} runs, {on}."


def phase1_note(paper: Paper, dataset: str) -> str:
    """How many epochs the paper's phase 1 took."""
    mean = paper.phase1_mean(dataset)
    return (
        "Phase 1 (mean epochs): SGD has no other phase. The paper's phase 1 of SWAP took "
        f"{mean.epochs:g} ({mean.source})."
    )


def start_notes(dealt: Iterable[RowRuns]) -> list[str]:
    """For each row with runs that began from another run's phase 1: how many, and whose."""
    notes = []
    for each in dealt:
        starts = [str(record.start["run_id"]) for record in each.records if record.start]
        if starts:
            of = f"{len(starts)} of {len(each.records)} runs"
            notes.append(f"{each.label}: {of} began from the phase 1 of {', '.join(starts)}.")
    return notes


def _nets(records: Iterable[RunRecord]) -> list[str]:
    """Such as "ResNet-9 of width 8 or 16", a net each."""
    named = group_by(records, _net)
    return [
        f"{net} of width {_or(str(w) for w in sorted({recipe_of(r)['width'] for r in named[key]}))}"
        + (f" with {', '.join(map(str, blocks))} blocks" if blocks else "")
        for key in sorted(named)
        for _, net, blocks in [key]
    ]


def _net(record: RunRecord) -> tuple[int, str, tuple[int, ...]]:
    """Where it stands among the nets, its name, and its blocks where they are not the paper's."""
    recipe = recipe_of(record)
    name = str(recipe.get("net", "resnet9"))
    blocks = tuple(recipe.get("blocks", WHOLE_RESNET50))
    is_whole = name != "resnet50" or blocks == WHOLE_RESNET50
    place = list(NETS).index(name) if name in NETS else len(NETS)
    return place, NETS.get(name, name), () if is_whole else blocks


def _epochs(record: RunRecord) -> str:
    recipe = recipe_of(record)
    text = str(recipe["phase1"]["max_epochs"])
    if recipe.get("phase2"):
        phase2 = str(recipe["phase2"]["max_epochs"])
        if workers := recipe.get("num_workers"):  # SWA has none
            phase2 = f"{phase2} of each of {workers} workers"
        text = f"{text} + {phase2}"
    may_stop = recipe["phase1"].get("stopping_accuracy") is not None
    return f"at most {text}" if may_stop else text


def _data_note(dealt: Sequence[RowRuns], dataset: str) -> str:
    """The data of the rows; by rows where they are not all alike."""
    labels: dict[str, list[str]] = {}
    for each in dealt:
        for record in each.records[:1]:  # all of a row have the same
            labels.setdefault(_data(record, dataset), []).append(each.label)
    if len(labels) == 1:
        return f"Data: {next(iter(labels))}."
    rows = "; ".join(f"{data} for {', '.join(those)}" for data, those in labels.items())
    return f"Data differ, and rows with other data are no comparison: {rows}."


def _data(record: RunRecord, dataset: str) -> str:
    data = record.data
    train, test = int(data["train_images"]), int(data["test_images"])
    counts = f"{train:,} training and {test:,} test images"
    content = str(data.get("sha256", ""))[:8]
    if data["kind"] == "own":
        classes = f" in {data['classes']} classes" if "classes" in data else ""
        return f"a tree of images that is not {dataset}, {counts}{classes} (content {content})"
    if data["kind"] == "subset":
        return f"a part of {dataset}, not the whole, {counts} (content {content})"
    first = "the first " if recipe_of(record).get("train_images") else ""
    return f"{first}{counts} of {dataset}"


def _and(texts: Iterable[str]) -> str:
    return " and ".join(texts)


def _or(texts: Iterable[str]) -> str:
    return " or ".join(texts)
