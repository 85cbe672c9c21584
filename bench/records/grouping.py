"""Statistics over runs, and which runs may be put together. No torch.

Times are pooled over one kind of machine and the same number of its devices only; accuracies only
over the same recipe on the same data, in the same precision, on the same type of device.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar

from bench.document import counted
from bench.statistics import Summary, summarize
from swap_fast.config.recipe import AveragingRecipe, Recipe
from swap_fast.record import DeviceType, Machine, RunRecord, count_devices, flatten

Key = TypeVar("Key", bound=Hashable)

CORES, GPUS = "cores (processes x threads)", "GPUs"
"""What a column counts that says how many devices a row used."""

NETS = {"resnet9": "ResNet-9", "resnet50": "ResNet-50", "speed_net": "SpeedNet"}
"""As printed."""

Measure = Callable[[RunRecord], float | None]
"""A value of a run, such as an accuracy or a time; None where the run has none."""


def count_reaching(accuracies: Iterable[float], target: float) -> int:
    """How many accuracies are at the target or over it; all are fractions."""
    return sum(accuracy >= target for accuracy in accuracies)


@dataclass(frozen=True, kw_only=True, order=True)
class Host:
    """A kind of machine, however many of its devices a run uses: what one table is of."""

    device_type: DeviceType
    device: str
    """The model."""
    device_count: int
    """GPUs, or CPU cores, that the machine has."""
    units: tuple[str, ...] = ()
    """Of a CPU, as `CPU_UNITS`; empty where the record does not tell."""
    torch_minor: str
    """Such as "2.10"."""

    @property
    def devices_name(self) -> str:
        """What `MachineKey.devices_cell` counts."""
        return CORES if self.device_type == "cpu" else GPUS

    @property
    def devices_head(self) -> str:
        """The head of a column of it."""
        return self.devices_name[0].upper() + self.devices_name[1:]

    @property
    def label(self) -> str:
        """All of it, for a caption."""
        return self.labelled(_devices(self, str(self.device_count), self.device_count))

    def labelled(self, devices: str) -> str:
        """The label with other words for the devices."""
        matrix_units = ", AMX" if "amx_bf16" in self.units else ""
        model = f" ({self.device}{matrix_units})" if self.device_type == "cpu" else ""
        return f"{devices}{model}, torch {self.torch_minor}"


@dataclass(frozen=True, kw_only=True, order=True)
class MachineKey:
    """What must be equal for times to be pooled: the kind of machine, and what a run used of it."""

    host: Host
    devices: int
    """GPUs that the run used, or CPU cores."""
    processes: int

    @property
    def devices_cell(self) -> str:
        """For a table of one host: "8" GPUs, or cores as "2 (2 x 1)"."""
        if self.host.device_type == "cuda":
            return str(self.devices)
        return f"{self.devices} ({self.processes} x {self.devices // self.processes})"

    @property
    def used(self) -> str:
        """The devices in words, such as "2 of 8 Tesla V100" or "2 CPU cores"."""
        # Ranks on several machines use more than one of them has.
        is_part = self.devices < self.host.device_count
        count = f"{self.devices} of {self.host.device_count}" if is_part else str(self.devices)
        return _devices(self.host, count, max(self.devices, self.host.device_count))

    @property
    def label(self) -> str:
        """All of it, for a caption."""
        if self.host.device_type == "cuda":
            return self.host.labelled(self.used)
        processes = counted(self.processes, "process", "es")
        threads = counted(self.devices // self.processes, "thread")
        return f"{self.host.labelled(self.used)}, {processes} of {threads}"


@dataclass(frozen=True, kw_only=True)
class AccuracyKey:
    """What must be equal for accuracies to be pooled."""

    device_type: DeviceType
    precision: str
    """Of the matrix work."""
    data_hash: str
    """Of the data set's content."""
    recipe: Recipe
    overrides: tuple[str, ...]
    """What the command line changed in the recipe."""

    @cached_property
    def _hash(self) -> int:
        return hash((self.device_type, self.precision, self.data_hash, self.recipe, self.overrides))

    def __hash__(self) -> int:
        """Of a whole recipe, and so computed once."""
        return self._hash


_alike: dict[AccuracyKey, AccuracyKey] = {}
"""One object for all that are equal: a report of many records compares them again and again."""


def _once(make: Callable[[RunRecord], Key]) -> Callable[[RunRecord], Key]:
    """A function of a record that is computed once, and kept in it."""

    @wraps(make)
    def kept(record: RunRecord) -> Key:
        own, name = vars(record), f"_{make.__name__}"
        if name not in own:
            own[name] = make(record)
        found: Key = own[name]
        return found

    return kept


@_once
def machine_key(record: RunRecord) -> MachineKey:
    """What a run was measured on: the kind of machine, and the devices that it used."""
    return kind_of_machine(record.machine, record.world_size, record.threads)


def host_of(record: RunRecord) -> Host:
    """The kind of machine that a run was measured on."""
    return machine_key(record).host


def kind_of_machine(machine: Machine, world_size: int, threads: int) -> MachineKey:
    """The kind of a machine, and the processes and threads that a run uses of it."""
    torch_version = machine["libraries"].get("torch") or "unknown"
    host = Host(
        device_type=machine["device_type"],
        device=machine["device"],
        device_count=machine["device_count"],
        units=tuple(machine.get("cpu_units", ())) if machine["device_type"] == "cpu" else (),
        torch_minor=".".join(torch_version.split("+")[0].split(".")[:2]),
    )
    devices = count_devices(host.device_type, world_size, threads)
    return MachineKey(host=host, devices=devices, processes=world_size)


@_once
def accuracy_key(record: RunRecord) -> AccuracyKey:
    """What an accuracy depends on, apart from the seed."""
    key = AccuracyKey(
        device_type=record.machine["device_type"],
        precision=record.configuration["execution"]["precision"],
        data_hash=record.data["sha256"],
        recipe=record.settings,
        overrides=tuple(record.overrides),
    )
    return _alike.setdefault(key, key)


def recipe_of(record: RunRecord) -> dict[str, Any]:
    """The recipe's fields as the record keeps them."""
    recipe: dict[str, Any] = record.configuration["recipe"]
    return recipe


def why_not_comparable(record: RunRecord, kinds: Sequence[str] = ("published",)) -> str | None:
    """Why a run cannot be compared with published figures in any table; None where it can.

    A form of a recipe for a CPU can, in a table of its own: this does not ask for its size.

    Arguments:
        kinds: of data that the table takes.
    """
    if "degraded" in record.flags:
        recipe = record.settings
        assert isinstance(recipe, AveragingRecipe)
        return f"degraded: averaged {len(record.worker_accuracies)} of {recipe.num_workers} workers"
    if "profiled" in record.flags:
        return "profiled: the profiler ran in some steps, and their time counts"
    if record.data["kind"] not in kinds:
        return f"{record.data['kind']} data"
    if record.overrides:
        return f"overrides: {', '.join(record.overrides)}"
    return None


def data_of(records: Iterable[RunRecord]) -> str:
    """The data sets of the runs, each with its kind, such as "cifar10 (published)"."""
    return ", ".join(sorted({f"{r.data['name']} ({r.data['kind']})" for r in records}))


def scale_note(records: Iterable[RunRecord]) -> str:
    """A sentence for every list that holds runs of less than the paper's net; else nothing."""
    small = sorted({r.recipe for r in records if not r.settings.paper_scale})
    return f" Not the paper's hardware or net: {', '.join(small)}." if small else ""


def group_by(
    records: Iterable[RunRecord], key: Callable[[RunRecord], Key]
) -> dict[Key, list[RunRecord]]:
    """Records of each key, keys in the order in which they first come."""
    groups: dict[Key, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def timed_alone(records: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """The runs that had their machine to themselves; all, where none had."""
    return [record for record in records if not record.had_other_work] or records


def pool_times(records: Sequence[RunRecord], time: Measure) -> Summary | None:
    """The times of the runs that were timed alone, together; None where one has none.

    Raises:
        ValueError: runs on more than one kind of machine or number of devices, or no runs.
    """
    one = "kind of machine and number of devices"
    return _pool(timed_alone(records), time, machine_key, f"times are pooled over one {one}")


def pool_accuracies(records: Sequence[RunRecord], accuracy: Measure) -> Summary | None:
    """The runs' accuracies (fractions) together; None where a run has none.

    Raises:
        ValueError: runs of more than one recipe, data set, precision or device type, or no runs.
    """
    one = "recipe, data set, precision and device type"
    return _pool(records, accuracy, accuracy_key, f"accuracies are pooled over one {one}")


def _pool(
    records: Sequence[RunRecord], of: Measure, key: Callable[[RunRecord], Hashable], rule: str
) -> Summary | None:
    kinds = len({key(record) for record in records})
    if kinds != 1:
        raise ValueError(f"{rule}, got {kinds}; group the runs first")
    present = [value for value in map(of, records) if value is not None]
    return summarize(present) if len(present) == len(records) else None


def _devices(host: Host, count: str, of: int) -> str:
    """A count of a host's devices, in words; `of` decides the plural."""
    if host.device_type == "cuda":
        return f"{count} {host.device}"
    return f"{count} CPU core{'' if of == 1 else 's'}"


def values_by_field(
    records: Iterable[RunRecord], fields_of: Callable[[RunRecord], Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Each field's values over the records, as text, each once; a value of None is left out."""
    found: dict[str, dict[str, None]] = {}  # in the order in which they come
    for record in records:
        for name, value in flatten(fields_of(record)).items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return {name: list(values) for name, values in found.items()}
