"""The sampler: energy by lap, what becomes null, and that its thread ends. No driver is needed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from small_trainer import make_dataset

import bench.runner.rank
from bench.cli import main
from bench.hardware.machine import device_uuid
from bench.hardware.telemetry import EVERY_VALUE, Reading, Sampler, missing_line, summarize_lap
from swap_fast.clock import Clock
from swap_fast.record_files import read_record

UUID = "1"
RUN = (
    *("run", "cifar10_sgd_small", "--dataset", "synthetic", "--train-images", "64", "--width", "4"),
    *("--device", "cpu", "--threads", "1", "--ranks", "1", "--phase1.global-batch-size", "32"),
    *("--phase1.max-epochs", "1", "--phase1.gpus-per-model", "1", "--phase1.warmup-epochs", "0.5"),
)


class FakePynvml(ModuleType):
    """pynvml for one device: a test sets its figures, and the function that fails."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """As pynvml's, with the driver's words."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.energy_mj, self.power_mw = 1000, 200_000
        self.lost = False
        self.samples = 0
        self.sessions = 0

    def __getattr__(self, name: str) -> Callable[..., object]:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        answers: dict[str, object] = {
            "nvmlSystemGetDriverVersion": "555.42",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetName": "Fake",
            "nvmlDeviceGetClockInfo": 1000,
            "nvmlDeviceGetPowerUsage": self.power_mw,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=50),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30),
            "nvmlDeviceGetTemperature": 40,
            "nvmlDeviceGetTotalEnergyConsumption": self.energy_mj,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4,
        }
        answer = answers[name]

        def ask(*_: object) -> object:
            if self.lost:
                raise self.NVMLError("GPU is lost")
            self.samples += name == "nvmlDeviceGetPowerUsage"
            return answer

        return ask

    def nvmlInit(self) -> None:  # noqa: N802
        self.sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.sessions -= 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakePynvml:
    """A driver that answers."""
    fake = FakePynvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's data of a few images, in place of the whole synthetic set."""
    monkeypatch.setattr(bench.runner.rank, "load_dataset", lambda name, path: make_dataset(64, 30))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "telemetry"]


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.001)


def test_energy_by_lap(driver: FakePynvml) -> None:
    sampler = Sampler(interval_s=3600)
    with sampler.watching(UUID):
        for name, spent_mj in (("phase1", 1500), ("evaluation", 40), ("phase1", 2501)):
            with sampler.lap(name):
                driver.energy_mj += spent_mj
            driver.energy_mj += 77_777  # between laps, and in none
        telemetry = sampler.finish()
    assert telemetry is not None
    assert {name: lap.energy_j for name, lap in telemetry.laps.items()} == {
        "phase1": 4.001,
        "evaluation": 0.04,
    }
    assert telemetry.missing == {}
    assert driver.sessions == 0


def test_the_counter_is_read_outside_the_lap_s_time(driver: FakePynvml) -> None:
    seconds = 100.0
    events: list[str] = []

    def now() -> float:
        events.append("now")
        return seconds

    sampler = Sampler(interval_s=3600)
    clock = Clock(lambda: events.append("synchronize"), now, around=sampler.lap)
    with sampler.watching(UUID):
        device = sampler._device
        assert device is not None
        read = device.energy_mj

        def slow_reading() -> int | None:
            nonlocal seconds
            seconds += 50
            events.append("energy")
            return read()

        device.energy_mj = slow_reading  # type: ignore[method-assign]
        events.clear()
        with clock.lap("phase1"):
            seconds += 3
            driver.energy_mj += 9000
        telemetry = sampler.finish()
    # What was given to the device before the lap has ended when its energy is first read.
    assert events == ["synchronize", "energy", "now", "synchronize", "now", "energy"]
    assert clock.laps == {"phase1": 3.0}
    assert telemetry is not None
    assert telemetry.laps["phase1"].energy_j == 9.0


def test_the_thread_samples_while_a_lap_runs_and_ends_with_the_block(driver: FakePynvml) -> None:
    sampler = Sampler(interval_s=0.001)
    with sampler.watching(UUID):
        assert threads() == ["telemetry"]
        with sampler.lap("phase1"):
            before = driver.samples
            wait_for(lambda: driver.samples >= before + 5)
        telemetry = sampler.finish()
        assert threads() == []
    assert telemetry is not None
    lap = telemetry.laps["phase1"]
    assert lap.samples >= 5
    assert (lap.mean_power_w, lap.mean_sm_clock_mhz, lap.mean_utilization) == (200, 1000, 0.5)
    assert (lap.peak_memory_used_gib, lap.peak_temperature_c) == (1, 40)
    assert lap.throttle_reasons == {"software power cap": 1.0}


def test_the_thread_ends_where_the_run_raises(driver: FakePynvml) -> None:
    def diverge() -> None:
        sampler = Sampler(interval_s=0.001)
        with sampler.watching(UUID), sampler.lap("phase1"):
            assert threads() == ["telemetry"]
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        diverge()
    assert threads() == []
    assert driver.sessions == 0


def test_between_laps_the_device_is_left_alone(driver: FakePynvml) -> None:
    sampler = Sampler(interval_s=3600)
    with sampler.watching(UUID):
        before = driver.samples
        sampler.sample()
        assert driver.samples == before
        with sampler.lap("phase1"):
            sampler.sample()
        assert driver.samples == before + 1


def test_a_device_lost_half_way_is_null_from_there_on(driver: FakePynvml) -> None:
    sampler = Sampler(interval_s=0.001)
    with sampler.watching(UUID):
        with sampler.lap("phase1"):
            driver.energy_mj += 5000
            before = driver.samples
            wait_for(lambda: driver.samples >= before + 3)
        with sampler.lap("evaluation"):
            driver.lost = True
            wait_for(lambda: len(sampler.missing) >= 7)
        with sampler.lap("phase1"):
            assert threads() == ["telemetry"]
        with sampler.lap("phase2"):
            sampler.sample()
        telemetry = sampler.finish()
    assert telemetry is not None
    assert telemetry.laps["phase1"].energy_j is None  # a part of it is not known
    assert telemetry.laps["phase1"].mean_power_w == 200  # of the samples that were read
    assert telemetry.laps["evaluation"].energy_j is None
    lost = telemetry.laps["phase2"]
    assert (lost.energy_j, lost.mean_power_w, lost.throttle_reasons) == (None, None, None)
    assert set(telemetry.missing.values()) == {"GPU is lost"}


def test_a_cpu_has_no_telemetry(driver: FakePynvml) -> None:
    sampler = Sampler(interval_s=0.001)
    with sampler.watching(None), sampler.lap("phase1"):
        assert threads() == []
    assert sampler.finish() is None
    assert sampler.missing == {}
    assert driver.samples == 0


def test_without_a_driver_the_laps_are_there_with_nulls(driver: FakePynvml) -> None:
    def refuse() -> None:
        raise driver.NVMLError("Driver Not Loaded")

    driver.nvmlInit = refuse  # type: ignore[method-assign]
    sampler = Sampler(interval_s=0.001)
    with sampler.watching(UUID):
        assert threads() == []
        with sampler.lap("phase1"):
            pass
        telemetry = sampler.finish()
    assert telemetry is not None
    assert (telemetry.device, telemetry.driver) == (None, None)
    assert telemetry.laps == {"phase1": summarize_lap([], [None])}
    assert telemetry.missing == {EVERY_VALUE: "Driver Not Loaded"}


def reading(**values: object) -> Reading:
    return Reading(**{**dict.fromkeys(Reading.__dataclass_fields__), **values})  # type: ignore[arg-type]


def test_a_lap_s_figures_are_over_the_samples_that_have_them() -> None:
    lap = summarize_lap(
        [
            reading(power_w=100.0, sm_clock_mhz=900.0, throttle_reasons=frozenset({"idle"})),
            reading(power_w=300.0, sm_clock_mhz=1500.0, throttle_reasons=frozenset()),
            reading(sm_clock_mhz=1200.0, temperature_c=70.0),
            reading(temperature_c=60.0, throttle_reasons=frozenset({"idle", "board limit"})),
        ],
        [1000, 500],
    )
    assert (lap.samples, lap.energy_j, lap.mean_power_w) == (4, 1.5, 200.0)
    assert (lap.mean_sm_clock_mhz, lap.lowest_sm_clock_mhz) == (1200.0, 900.0)
    assert lap.peak_temperature_c == 70.0
    assert (lap.mean_memory_clock_mhz, lap.mean_utilization) == (None, None)
    assert lap.throttle_reasons == pytest.approx({"board limit": 1 / 3, "idle": 2 / 3})
    assert summarize_lap([], [1000, None]).energy_j is None
    assert summarize_lap([reading(throttle_reasons=frozenset())], []).throttle_reasons == {}


def test_one_line_says_each_reason_once() -> None:
    assert missing_line([{}, {}]) is None
    same = {"energy": "Not Supported"}
    assert missing_line([same, {}, same]) == "telemetry is unavailable for energy (Not Supported)"
    assert missing_line([{EVERY_VALUE: "gone"}, same]) == (
        "telemetry is unavailable for every value of the device (gone), energy (Not Supported)"
    )


@pytest.mark.usefixtures("small_data")
def test_runs_keep_their_telemetry_and_say_once_what_is_missing(
    driver: FakePynvml,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def not_supported(device: object) -> int:
        raise driver.NVMLError("Not Supported")

    driver.nvmlDeviceGetCurrentClocksThrottleReasons = not_supported
    monkeypatch.setattr(bench.runner.rank, "device_uuid", lambda device: UUID)
    assert main([*RUN, "--runs", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("telemetry")] == [
        "telemetry is unavailable for throttle_reasons (Not Supported)"
    ]
    first, second = (read_record(path) for path in sorted((tmp_path / "runs").glob("*.json")))
    for record in (first, second):
        assert record.telemetry is not None
        (rank,) = record.telemetry
        (laps,) = record.times.laps_by_rank
        # All but the imports, which came before: the clock's laps and no others.
        assert set(rank.laps) == set(laps) - {"imports"}
        assert {lap.energy_j for lap in rank.laps.values()} == {0.0}
        assert rank.missing == {"throttle_reasons": "Not Supported"}
    assert threads() == []
    assert driver.sessions == 0


@pytest.mark.usefixtures("small_data")
def test_a_run_that_fails_leaves_no_thread(
    driver: FakePynvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        assert threads() == ["telemetry"]
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(bench.runner.rank, "device_uuid", lambda device: UUID)
    monkeypatch.setattr(bench.runner.rank, "sgd", fail)
    assert main([*RUN, "--quiet", "--out", str(tmp_path)]) != 0
    assert threads() == []
    assert driver.sessions == 0


@pytest.mark.usefixtures("small_data")
def test_a_run_on_a_cpu_says_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--out", str(tmp_path)]) == 0
    assert "telemetry is" not in capsys.readouterr().out
    (path,) = (tmp_path / "runs").glob("*.json")
    assert read_record(path).telemetry is None


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("peaks", [(None, None), (3.5, 2.75)])
def test_a_run_tells_the_host_s_memory_and_the_device_s_apart(
    peaks: tuple[float | None, float | None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench.runner.rank, "peak_memory_gib", lambda: 1.25)
    monkeypatch.setattr(bench.runner.rank, "peak_device_memory_gib", lambda device_type: peaks)
    assert main([*RUN, "--out", str(tmp_path)]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = read_record(path)
    assert record.peak_memory_gib == 1.25
    assert (record.peak_device_reserved_gib, record.peak_device_allocated_gib) == peaks
    printed = " ".join(capsys.readouterr().out.split())
    assert "peak memory of the host 1.25 GiB a process" in printed
    assert ("of a device 3.50 GiB" in printed) == (peaks[0] is not None)


def test_the_device_is_named_by_torch_s_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="aaaaaaaa-0000-1111-2222-333333333333")
    asked = []

    def get_device_properties(device: torch.device) -> SimpleNamespace:
        asked.append(device)
        return properties

    monkeypatch.setattr(torch.cuda, "get_device_properties", get_device_properties)
    uuid = device_uuid("cuda")
    assert uuid == properties.uuid
    assert asked == [torch.device("cuda")]  # torch's present device, whatever its index
    assert device_uuid("cpu") is None
    del properties.uuid  # of a torch that tells none
    assert device_uuid("cuda") == ""


@pytest.mark.gpu
def test_a_real_device_is_watched_at_its_work() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    sampler = Sampler(interval_s=0.05)
    clock = Clock(torch.cuda.synchronize, around=sampler.lap)

    def work() -> bool:
        for _ in range(20):
            matrix @ matrix
        torch.cuda.synchronize()
        return clock.wall() > 3

    with sampler.watching(device_uuid(device.type)):
        with clock.lap("phase1"):
            wait_for(work)
        telemetry = sampler.finish()
    assert telemetry is not None
    assert EVERY_VALUE not in telemetry.missing
    assert telemetry.device == torch.cuda.get_device_name()
    lap = telemetry.laps["phase1"]
    assert lap.samples >= 5
    for name in ("mean_power_w", "mean_sm_clock_mhz", "peak_temperature_c", "energy_j"):
        value = getattr(lap, name)
        assert value is None or value > 0, name
    assert lap.peak_memory_used_gib is None or lap.peak_memory_used_gib * 2**30 >= matrix.nbytes
    # The counter and the samples tell of the same work.
    if lap.energy_j is not None and lap.mean_power_w is not None:
        assert lap.energy_j / clock.laps["phase1"] == pytest.approx(lap.mean_power_w, rel=0.5)
