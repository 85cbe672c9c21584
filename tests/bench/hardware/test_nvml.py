"""What the driver says, through pynvml's real bindings to a compiled stand-in for its library."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from repository import TESTS

from bench.hardware.telemetry import (
    EVERY_VALUE,
    OF_THE_BOARD,
    THROTTLE_REASONS,
    Device,
    Nvml,
    Reading,
    Sampler,
    throttle_words,
)
from bench.hardware.telemetry import driver_version as ask_driver_version

SOURCE = TESTS / "nvml_stand_in.c"
A = "aaaaaaaa-0000-1111-2222-333333333333"
B = "bbbbbbbb-0000-1111-2222-333333333333"
SLICE = "cccccccc-0000-1111-2222-333333333333"
SLICED = "dddddddd-0000-1111-2222-333333333333"
NOT_SUPPORTED, NO_PERMISSION, UNKNOWN = 3, 4, 999
NOTHING = Reading(**dict.fromkeys(Reading.__dataclass_fields__))  # type: ignore[arg-type]


def c_compiler() -> list[str] | None:
    """The command of a C compiler."""
    for command in (os.environ.get("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return None


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in, under the name that pynvml asks for."""
    compiler = c_compiler()
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the stand-in for NVML")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    options = ["-std=c99", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, *options, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture
def library(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The stand-in in the place of the driver's library, as new."""
    library = ctypes.CDLL(str(library_path))
    library.stand_in_reset()
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    yield library
    assert library.stand_in_sessions() == 0, "a session was left open"


@pytest.mark.usefixtures("library")
def test_known_figures_in_the_units_that_they_are_named_for() -> None:
    with Nvml() as nvml:
        device = Device(nvml, A)
        assert (device.name, device.driver, device.found) == ("Stand-in A", "555.42.06", True)
        assert device.read() == Reading(
            sm_clock_mhz=1410,
            memory_clock_mhz=1215,
            power_w=250.5,
            utilization=0.97,
            memory_used_gib=3,
            temperature_c=61,
            throttle_reasons=frozenset({"software power cap", "software thermal slowdown"}),
        )
        # More than 32 bits hold: the counter is of all time since the driver was loaded.
        assert [device.energy_mj() for _ in range(3)] == [5000000000, 5000000250, 5000000500]
        assert nvml.missing == {}


def test_what_a_device_does_not_support_is_none_and_asked_once(library: ctypes.CDLL) -> None:
    with Nvml() as nvml:
        device = Device(nvml, B)  # by its UUID: torch may well know it as its device 0
        assert device.name == "Stand-in B"
        before = library.stand_in_questions()
        readings = [device.read() for _ in range(3)]
        energies = [device.energy_mj() for _ in range(3)]
        asked = library.stand_in_questions() - before
    assert {each.sm_clock_mhz for each in readings} == {1005}
    assert {each.memory_used_gib for each in readings} == {0.5}
    assert {each.throttle_reasons for each in readings} == {None}
    assert energies == [None] * 3
    assert nvml.missing == {"energy": "Not Supported", "throttle_reasons": "Not Supported"}
    assert asked == 3 * 6 + 2  # six figures that it tells, each time, and two that it does not


@pytest.mark.parametrize(
    ("uuid", "reason"),
    [
        ("none", "no device GPU-none (Not Found) or MIG-none (Not Found)"),
        ("", "torch tells no UUID of the device"),
        ("00000000-0000-0000-0000-000000000000", "torch tells no UUID of the device"),
    ],
)
def test_an_unknown_uuid_gives_nothing(library: ctypes.CDLL, uuid: str, reason: str) -> None:
    with Nvml() as nvml:
        device = Device(nvml, uuid)
        assert not device.found
        assert (device.name, device.energy_mj()) == (None, None)
        assert device.read() == NOTHING
    assert nvml.missing == {EVERY_VALUE: reason}
    assert library.stand_in_questions() == 0


@pytest.mark.usefixtures("library")
def test_a_slice_has_its_own_figures_and_never_the_board_s_energy() -> None:
    with Nvml() as nvml:
        device = Device(nvml, SLICE)
        reading = device.read()
        assert device.energy_mj() is None  # though this driver would tell the board's
    assert device.name == "Stand-in D MIG 1g.5gb"
    assert (reading.memory_used_gib, reading.sm_clock_mhz) == (1, 1200)
    assert (reading.power_w, reading.utilization) == (None, None)
    assert nvml.missing == {
        "energy": OF_THE_BOARD,
        "power_w": OF_THE_BOARD,
        "utilization": "Not Supported",
    }


def test_a_board_in_slices_is_not_taken_for_the_slice(library: ctypes.CDLL) -> None:
    with Nvml() as nvml:
        device = Device(nvml, SLICED)
        assert (device.found, device.energy_mj(), device.read()) == (False, None, NOTHING)
    assert nvml.missing == {
        EVERY_VALUE: f"GPU-{SLICED} is the whole device, and MIG is on: this run has a slice"
    }
    library.stand_in_refuse(b"nvmlDeviceGetMigMode", NO_PERMISSION)
    with Nvml() as nvml:  # it may be one in slices
        assert not Device(nvml, A).found
    assert nvml.missing == {EVERY_VALUE: "Insufficient Permissions"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NOT_SUPPORTED, "Not Supported"), (NO_PERMISSION, "Insufficient Permissions")],
)
def test_a_virtual_device_tells_some_values(library: ctypes.CDLL, error: int, reason: str) -> None:
    kept = {
        "nvmlDeviceGetPowerUsage": "power_w",
        "nvmlDeviceGetTotalEnergyConsumption": "energy",
        "nvmlDeviceGetTemperature": "temperature_c",
        "nvmlDeviceGetCurrentClocksThrottleReasons": "throttle_reasons",
    }
    library.stand_in_refuse(b"nvmlDeviceGetMigMode", NOT_SUPPORTED)
    for function in kept:
        library.stand_in_refuse(function.encode(), error)
    sampler = Sampler(interval_s=3600)
    with sampler.watching(A):
        with sampler.lap("phase1"):
            sampler.sample()
        telemetry = sampler.finish()
    assert telemetry is not None
    lap = telemetry.laps["phase1"]
    assert (lap.mean_utilization, lap.peak_memory_used_gib, lap.samples) == (0.97, 3, 1)
    assert (lap.energy_j, lap.mean_power_w, lap.peak_temperature_c) == (None, None, None)
    assert lap.throttle_reasons is None
    assert telemetry.missing == dict.fromkeys(kept.values(), reason)


@pytest.mark.parametrize(
    ("function", "error", "reason"),
    [
        ("nvmlInitWithFlags", 9, "Driver Not Loaded"),
        ("nvmlInitWithFlags", 18, "RM has detected an NVML/RM version mismatch."),
        ("nvmlInitWithFlags", NO_PERMISSION, "Insufficient Permissions"),
        ("nvmlInitWithFlags", UNKNOWN, "Unknown Error"),
        (
            "nvmlDeviceGetHandleByUUID",
            NO_PERMISSION,
            f"no device GPU-{A} (Insufficient Permissions) or MIG-{A} (Insufficient Permissions)",
        ),
    ],
)
def test_a_container_without_the_driver_s_leave(
    library: ctypes.CDLL, function: str, error: int, reason: str
) -> None:
    library.stand_in_refuse(function.encode(), error)
    sampler = Sampler(interval_s=3600)
    with sampler.watching(A):
        with sampler.lap("phase1"):
            sampler.sample()
        telemetry = sampler.finish()
    assert telemetry is not None
    assert telemetry.laps["phase1"].energy_j is None
    assert telemetry.missing == {EVERY_VALUE: reason}


def test_what_drivers_tell_of_unknown_values_is_no_value(library: ctypes.CDLL) -> None:
    library.stand_in_forget()
    with Nvml() as nvml:
        device = Device(nvml, A)
        assert (device.read(), device.energy_mj()) == (NOTHING, None)
    assert set(nvml.missing) == {*Reading.__dataclass_fields__, "energy"}
    assert nvml.missing["sm_clock_mhz"] == "the driver's answer is no value: 0xffffffff"
    assert nvml.missing["energy"] == "the driver's answer is no value: 0xffffffffffffffff"


def test_an_energy_counter_that_goes_back_is_unavailable_from_there_on(
    library: ctypes.CDLL,
) -> None:
    sampler = Sampler(interval_s=3600)
    with sampler.watching(A):
        with sampler.lap("phase1"):
            pass
        with sampler.lap("phase2"):
            library.stand_in_turn_back()
        with sampler.lap("averaging"):
            pass
        telemetry = sampler.finish()
    assert telemetry is not None
    energies = {name: lap.energy_j for name, lap in telemetry.laps.items()}
    assert energies == {"phase1": 0.25, "phase2": None, "averaging": None}
    assert telemetry.missing == {"energy": "the counter went from 5000000750 back to 0 mJ"}


def test_a_name_that_is_no_text_is_unavailable(library: ctypes.CDLL) -> None:
    library.stand_in_misname()
    with Nvml() as nvml:
        device = Device(nvml, A)
        assert (device.name, device.driver, device.found) == (None, "555.42.06", True)
    assert nvml.missing["name"].startswith("UnicodeDecodeError: 'utf-8' codec can't decode")


def test_a_lost_device_tells_nothing_from_there_on(library: ctypes.CDLL) -> None:
    with Nvml() as nvml:
        device = Device(nvml, A)
        assert device.read().power_w == 250.5
        assert device.energy_mj() == 5000000000
        library.stand_in_lose_devices()
        before = library.stand_in_questions()
        assert [device.read() for _ in range(3)] == [NOTHING] * 3
        assert [device.energy_mj() for _ in range(3)] == [None] * 3
        assert library.stand_in_questions() - before == len(Reading.__dataclass_fields__) + 1
    assert set(nvml.missing.values()) == {"GPU is lost"}
    assert set(nvml.missing) == {*Reading.__dataclass_fields__, "energy"}


def take_away(library: ctypes.CDLL, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in that of an older driver, which lacks a function."""

    class Older:
        def __getattr__(self, name: str) -> object:
            if name == function:
                raise AttributeError(name)
            return getattr(library, name)

    monkeypatch.setattr(pynvml, "nvmlLib", Older())


def test_a_function_that_the_driver_lacks_is_missing(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(library, "nvmlDeviceGetTotalEnergyConsumption", monkeypatch)
    with Nvml() as nvml:
        device = Device(nvml, A)
        assert device.energy_mj() is None
        assert device.read().temperature_c == 61
    assert nvml.missing == {"energy": "Function Not Found"}


@pytest.mark.usefixtures("library")
def test_a_function_that_pynvml_lacks_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons")
    with Nvml() as nvml:
        reading = Device(nvml, A).read()
    assert (reading.throttle_reasons, reading.temperature_c) == (None, 61)
    assert nvml.missing["throttle_reasons"].startswith("AttributeError: ")


def test_a_library_without_slices_is_of_whole_devices(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(library, "nvmlDeviceGetMigMode", monkeypatch)
    with Nvml() as nvml:
        assert Device(nvml, A).energy_mj() == 5000000000
    assert nvml.missing == {}


@pytest.mark.usefixtures("library")
def test_the_energy_of_laps_by_the_driver_s_counter() -> None:
    sampler = Sampler(interval_s=3600)
    with sampler.watching(A):
        for name in ("phase1", "evaluation", "phase1"):
            with sampler.lap(name):
                sampler.sample()
        telemetry = sampler.finish()
    assert telemetry is not None
    assert (telemetry.device, telemetry.driver) == ("Stand-in A", "555.42.06")
    # Each reading of the counter is 250 mJ after the one before.
    assert {name: lap.energy_j for name, lap in telemetry.laps.items()} == {
        "phase1": 0.5,
        "evaluation": 0.25,
    }
    assert telemetry.laps["phase1"].samples == 2
    assert telemetry.laps["phase1"].mean_power_w == 250.5


def test_pynvml_finds_the_library_by_itself(library_path: Path) -> None:
    # In a process of its own, by the loader's search path: as it finds a driver's library.
    script = (
        "from bench.hardware.machine import describe_machine\n"
        "print(describe_machine('cpu')['driver'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=SOURCE.parent.parent,
        env={**os.environ, "LD_LIBRARY_PATH": str(library_path.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "555.42.06"), done.stderr


def test_without_a_driver_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    assert ask_driver_version() is None
    with Nvml() as nvml:
        assert Device(nvml, A).read() == NOTHING
    assert nvml.missing == {EVERY_VALUE: "NVML Shared Library Not Found"}


def test_without_pynvml_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Nvml() as nvml:
        assert nvml.ask("driver", lambda module: module.nvmlSystemGetDriverVersion()) is None
    assert nvml.missing == {EVERY_VALUE: "pynvml is not installed: pip install nvidia-ml-py"}


def test_every_reason_that_pynvml_knows_has_its_word() -> None:
    prefix = "nvmlClocksThrottleReason"
    known = {
        getattr(pynvml, name): name.removeprefix(prefix)
        for name in dir(pynvml)
        if name.startswith(prefix) and not name.endswith(("All", "None", "UserDefinedClocks"))
    }
    assert set(known) == set(THROTTLE_REASONS)
    initials = {bit: name[:1].lower() for bit, name in known.items()}
    # "Sw" and "Hw" are software and hardware; "GpuIdle" is idle.
    assert initials == {bit: word[:1] for bit, word in THROTTLE_REASONS.items()} | {1: "g"}


def test_reasons_in_words() -> None:
    assert throttle_words(0) == frozenset()
    assert throttle_words(0x48) == {"hardware slowdown", "hardware thermal slowdown"}
    assert throttle_words(0x1 | 0x8000) == {"idle", "reason 0x8000"}
