"""The package as others get it: its metadata, its wheel, and the two scripts.

The scripts run in a copy, with a stand-in for Python that notes its calls: nothing is installed.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from repository import ROOT

import swap_fast

PACKAGES = ("swap_fast", "bench")
INSTALL_FILES = ("setup.cfg", "pyproject.toml", "constraints.txt", "install.sh")
SPREAD = "--durations=10 --numprocesses auto --maxprocesses 8 --dist worksteal"
SCRIPTS = ("install.sh", "run_dawnbench.sh", "run_tests.sh", ".ci/run")
BASH = shutil.which("bash") or "bash"


def _bash(
    folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def _config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def _requirements(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _plain_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


# Metadata and pins.


def test_metadata_is_whole() -> None:
    metadata = _config()["metadata"]
    version = "attr: swap_fast.__version__"
    found = [metadata[name] for name in ("name", "version", "license")]
    assert found == ["swap_fast", version, "MIT"]
    for named in (metadata["license_files"], metadata["long_description"].removeprefix("file: ")):
        assert (ROOT / named).read_text(encoding="utf-8").strip(), named


def test_constraints_pin_all_that_the_scripts_install() -> None:
    config = _config()
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in _requirements((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    )
    extras = config["options.extras_require"]
    wanted = _requirements(config["options"]["install_requires"])
    ours = ("search", "tensorboard", "export", "mlperf", "docs", "trainers", "test")
    for extra in ("telemetry", "plots", "dali", *ours):
        wanted += _requirements(extras[extra])
    assert {_plain_name(each) for each in wanted} <= pins.keys()
    assert (pins["torch"], pins["torchvision"]) == ("2.10.0", "0.25.0")
    for each in _requirements(extras["test"] + extras["trainers"]):
        name, _, version = each.partition("==")
        assert pins[name] == version, f"{name} is pinned twice, and not alike"


# The wheel.


@pytest.mark.slow
def test_wheel_works_in_another_folder(tmp_path: Path) -> None:
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "target"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = wheels.glob(f"swap_fast-{swap_fast.__version__}-*.whl")

    in_source = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert in_source == {name for name in in_wheel if ".dist-info/" not in name}
    (licence,) = (name for name in in_wheel if name.endswith("LICENSE"))
    assert licence.startswith(f"swap_fast-{swap_fast.__version__}.dist-info/")

    install = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    # The target goes first on the path, so that an editable install of the sources is not seen.
    script = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import importlib.metadata, swap_fast, bench\n"
        "print(swap_fast.__file__, bench.__file__, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [Path(line).parent.parent for line in done.stdout.split()] == [target, target]


# The scripts.


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script: str) -> None:
    done = _bash(ROOT, "-n", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_scripts_run_from_a_checkout_with_other_ends_of_lines(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / ".ci").mkdir(parents=True)
    for name in (*SCRIPTS, ".gitattributes"):
        shutil.copy(ROOT / name, source / name)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        [*who, "commit", "-qm", "scripts"],
        ["-c", "core.autocrlf=true", "clone", "-q", str(source), str(target)],
    ):
        subprocess.run(["git", *command], cwd=source, check=True, capture_output=True)
    assert [name for name in SCRIPTS if b"\r" in (target / name).read_bytes()] == []


def test_a_link_to_a_script_calls_it(checkout: Checkout) -> None:
    links = checkout.folder / "links"
    links.mkdir()
    (links / "by way.sh").symlink_to("../run_dawnbench.sh")
    (links / "run.sh").symlink_to(links / "by way.sh")
    done = checkout.run("links/run.sh", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ./run_dawnbench.sh")


@pytest.mark.parametrize("script", ["run_dawnbench.sh", "run_tests.sh", ".ci/run"])
def test_scripts_can_be_executed(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111 == 0o111


@dataclass(kw_only=True)
class Checkout:
    """A copy of the scripts, with a stand-in as .venv's Python if `make_venv` was called."""

    folder: Path

    @property
    def calls(self) -> list[str]:
        """What the stand-in was asked to do, `pip` and `bench` calls only."""
        path = self.folder / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def make_venv(self) -> None:
        """A .venv whose Python notes `-m` calls and runs all else.

        The call whose words hold $FAIL_ON ends with exit code 7.
        """
        (self.folder / ".venv/bin").mkdir(parents=True)
        python = self.folder / ".venv/bin/python"
        python.write_text(
            f"#!{BASH}\n"
            f'if [[ $1 != -m ]]; then exec {sys.executable} "$@"; fi\n'
            'if [[ $* != "-m pip --version" ]]; then echo "$*" >>calls; fi\n'
            'if [[ -n ${FAIL_ON-} && $* == *"$FAIL_ON"* ]]; then exit 7; fi\n',
            encoding="utf-8",
        )
        layers = python.with_name("lint-imports")
        layers.write_text(f"#!{BASH}\nexec {python} -m lint-imports\n", encoding="utf-8")
        for path in (python, layers):
            path.chmod(0o755)

    def run(
        self, script: str, *arguments: str, fail_on: str = "", path: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        search = path if path is not None else "/usr/bin:/bin"
        env = {"PATH": search, "FAIL_ON": fail_on}
        return _bash(self.folder, str(self.folder / script), *arguments, env=env)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name in (*INSTALL_FILES, "run_dawnbench.sh", "run_tests.sh"):
        shutil.copy(ROOT / name, tmp_path)
    return Checkout(folder=tmp_path)


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    checkout.make_venv()
    assert checkout.run("run_dawnbench.sh").returncode == 0
    (checkout.folder / "calls").unlink()
    return checkout


def _folder_with(folder: Path, *programs: str, broken: tuple[str, ...] = ()) -> str:
    """A PATH of one folder with these programs of the machine, and these that always fail."""
    folder.mkdir()
    for name in programs:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    for name in broken:
        (folder / name).write_text(f"#!{BASH}\necho no such version >&2\nexit 127\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("broken", [(), ("python3.11", "python3.12", "python3", "python")])
@pytest.mark.parametrize("script", ["run_dawnbench.sh", "run_tests.sh"])
def test_without_python_one_line_and_exit_2(
    checkout: Checkout, script: str, broken: tuple[str, ...]
) -> None:
    done = checkout.run(script, path=_folder_with(checkout.folder / "path", "uname", broken=broken))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{script}: no Python 3.11 or 3.12 with its venv module on PATH;"
        " install one and run this again."
    ]


def test_first_call_installs_then_runs_and_reports(checkout: Checkout) -> None:
    checkout.make_venv()
    done = checkout.run("run_dawnbench.sh")
    assert done.returncode == 0
    assert "into .venv: once, some minutes, 5 GB to download ..." in done.stdout
    pip, run, report = checkout.calls
    assert pip.startswith("-m pip install ")
    assert " -c constraints.txt -e .[telemetry,plots" in pip
    assert (run, report) == ("-m bench run auto", "-m bench report --results results")


def test_second_call_installs_nothing(installed: Checkout) -> None:
    assert installed.run("run_dawnbench.sh").returncode == 0
    assert installed.calls == ["-m bench run auto", "-m bench report --results results"]


def test_tests_add_their_extra_and_keep_the_others(installed: Checkout) -> None:
    done = installed.run("run_tests.sh", "-k", "some thing")
    assert done.returncode == 0
    assert ",test] into .venv: what is missing or has changed ..." in done.stdout
    pip, *steps = installed.calls
    assert pip.endswith(",docs,trainers,test]")
    assert ".[telemetry,plots," in pip
    assert steps == [
        "-m ruff format --check .",
        "-m ruff check .",
        "-m mypy",
        "-m lint-imports",
        f"-m pytest -m not slow and not soak and not trackers {SPREAD} -k some thing",
    ]
    (installed.folder / "calls").unlink()
    assert installed.run("run_dawnbench.sh").returncode == 0
    assert not any("pip" in call for call in installed.calls)


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_anew(installed: Checkout, name: str) -> None:
    with (installed.folder / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    installed.run("run_dawnbench.sh")
    assert installed.calls[0].startswith("-m pip install ")


def test_a_moved_checkout_installs_anew(installed: Checkout, tmp_path: Path) -> None:
    moved = Checkout(folder=installed.folder.rename(tmp_path.with_name(f"{tmp_path.name}-moved")))
    moved.run("run_dawnbench.sh")
    assert moved.calls[0].startswith("-m pip install ")


def test_a_failed_install_says_so_and_is_repeated(checkout: Checkout) -> None:
    checkout.make_venv()
    for _ in range(2):
        done = checkout.run("run_dawnbench.sh", fail_on="pip install")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("run_dawnbench.sh: the install stopped")
    assert [call.split()[1] for call in checkout.calls] == ["pip", "pip"]


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        ([], "auto"),
        (["cifar10_cpu", "--runs", "3"], "cifar10_cpu --runs 3"),
    ],
)
def test_arguments_go_through(installed: Checkout, arguments: list[str], run: str) -> None:
    assert installed.run("run_dawnbench.sh", *arguments).returncode == 0
    assert installed.calls == [f"-m bench run {run}", "-m bench report --results results"]


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["--quick", "--data", "a b"], "auto --out results/quick --quick --data a b"),
        (["cifar10_quick", "--seed", "1"], "cifar10_quick --out results/quick --seed 1"),
    ],
)
def test_a_first_look_has_a_folder_of_its_own(
    installed: Checkout, arguments: list[str], run: str
) -> None:
    assert installed.run("run_dawnbench.sh", *arguments).returncode == 0
    assert installed.calls == [f"-m bench run {run}", "-m bench report --results results/quick"]


@pytest.mark.parametrize(
    "arguments", [["--out", "there"], ["cifar10_cpu", "--out=there"], ["--quick", "--out", "there"]]
)
def test_the_report_is_drawn_where_the_run_wrote(installed: Checkout, arguments: list[str]) -> None:
    assert installed.run("run_dawnbench.sh", *arguments).returncode == 0
    assert installed.calls[1] == "-m bench report --results there"


def test_a_failed_run_keeps_its_exit_code(installed: Checkout) -> None:
    done = installed.run("run_dawnbench.sh", fail_on="bench run")
    assert done.returncode == 7
    assert installed.calls == ["-m bench run auto"]


def test_help_installs_nothing(checkout: Checkout) -> None:
    done = checkout.run("run_dawnbench.sh", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./run_dawnbench.sh")
    assert not (checkout.folder / ".venv").exists()


def test_help_ends_with_that_of_bench(installed: Checkout) -> None:
    done = installed.run("run_dawnbench.sh", "--help")
    assert done.stdout.startswith("usage: ./run_dawnbench.sh")
    assert installed.calls == ["-m bench run --help"]


@pytest.mark.parametrize(
    ("fail_on", "name"),
    [
        ("format", "format"),
        ("ruff check", "lint"),
        ("mypy", "types"),
        ("lint-imports", "layers"),
    ],
)
def test_a_failed_step_is_named_and_ends_the_run(
    installed: Checkout, fail_on: str, name: str
) -> None:
    done = installed.run("run_tests.sh", fail_on=fail_on)
    assert done.returncode == 1
    assert done.stderr.startswith(f"run_tests.sh: {name} failed")
    assert fail_on in installed.calls[-1]


@pytest.mark.parametrize(
    ("arguments", "ci", "expected"),
    [
        (["--slow"], "", f"-m not soak and not trackers {SPREAD}"),
        ([], "true", f"-p skip_guard -m not soak and not trackers {SPREAD}"),
    ],
)
def test_slow_tests_run_when_asked_and_in_ci(
    installed: Checkout, arguments: list[str], ci: str, expected: str
) -> None:
    env = {"PATH": "/usr/bin:/bin", "CI": ci}
    done = _bash(installed.folder, "run_tests.sh", *arguments, env=env)
    assert done.returncode == 0
    assert installed.calls[-1] == f"-m pytest {expected}"


# What CI calls.


@pytest.fixture
def ci(tmp_path: Path) -> Checkout:
    """A copy of .ci/run, before a run_tests.sh that notes that it was called in CI."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    script = tmp_path / "run_tests.sh"
    script.write_text(f'#!{BASH}\necho "run_tests.sh, CI=$CI" >>calls\n', encoding="utf-8")
    script.chmod(0o755)
    return Checkout(folder=tmp_path)


def _run_ci(ci: Checkout, *programs: str, apt_get: str = "") -> subprocess.CompletedProcess[str]:
    """Call .ci/run where there are only these compilers, and an apt-get that ends in this way."""
    path = _folder_with(ci.folder / "path", "dirname")
    for name in (*programs, "apt-get"):
        (ci.folder / "path" / name).write_text(f'#!{BASH}\necho "{name} $*" >>calls\n{apt_get}\n')
        (ci.folder / "path" / name).chmod(0o755)
    return _bash(ci.folder, ".ci/run", env={"PATH": path})


# Program of a test, its package, and what is said where it cannot be had.
NO = "no {}, and apt-get could not install {} (see above): "
SKIP = NO + "the tests that need it will be skipped, which fails this run."
NEEDED = {
    "gcc": ("gcc libc6-dev", SKIP.format("C compiler", "one")),
    "chromium": ("chromium", SKIP.format("Chromium", "it")),
    "ip": ("iproute2", NO.format("ip", "it") + "the test will fail."),
}


@pytest.mark.parametrize("compiler", ["cc", "gcc", "clang"])
def test_ci_installs_nothing_where_all_is_there(ci: Checkout, compiler: str) -> None:
    done = _run_ci(ci, compiler, "chromium", "ip")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert ci.calls == ["run_tests.sh, CI=true"]


@pytest.mark.parametrize("name", NEEDED)
def test_ci_installs_a_program_that_is_missing(ci: Checkout, name: str) -> None:
    done = _run_ci(ci, *(NEEDED.keys() - {name}))
    assert (done.returncode, done.stderr) == (0, "")
    assert ci.calls == [
        "apt-get update",
        f"apt-get install -y --no-install-recommends {NEEDED[name][0]}",
        "run_tests.sh, CI=true",
    ]


@pytest.mark.parametrize("name", NEEDED)
def test_ci_says_so_where_a_program_cannot_be_had(ci: Checkout, name: str) -> None:
    others = NEEDED.keys() - {name}
    done = _run_ci(ci, *others, apt_get="echo are you root? >&2; exit 100")
    assert done.returncode == 0  # the tests run all the same, and their guard ends in an error
    assert done.stderr.splitlines() == ["are you root?", f".ci/run: {NEEDED[name][1]}"]
    assert ci.calls == ["apt-get update", "run_tests.sh, CI=true"]
