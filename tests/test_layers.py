"""The layers hold: who may import whom, what stays lazy, and that README.md's tree is whole.

Read from the sources by `ast`, so that nothing is imported; only imports that run when a module
is loaded count (not those in a function or under TYPE_CHECKING).
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("swap_fast", "bench")
# What makes tables and plots, and the record's schema, must work on a machine without torch; the
# sampler's thread must have no way to touch it.
TORCHLESS = (
    *("bench.tables", "bench.plots", "bench.report", "bench.stats", "swap_fast.record"),
    *("bench.energy", "bench.nvml", "bench.telemetry"),
    *("bench.report_figures", "bench.basin", "bench.points"),
    *("bench.export", "bench.export_csv", "bench.export_dawnbench", "bench.export_mlperf"),
    "bench.export_latex",
    *("swap_fast.__main__", "swap_fast.soup_report"),
    *("bench.watch", "swap_fast.listeners", "swap_fast.progress", "swap_fast.trackers"),
)
# Distributions whose import name is another.
IMPORT_NAMES = {
    "mlflow-skinny": "mlflow",
    "nvidia-dali-cuda120": "nvidia",
    "nvidia-ml-py": "pynvml",
    "pillow": "PIL",
}
MACHINE_PATH = re.compile(r"""(?<![\w.}])/(?:work|home|root|tmp|opt|mnt|private|Users)/""")


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources(root: Path) -> dict[str, Path]:
    return {
        _module_name(path, root): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _import_nodes(node: ast.AST, *, at_load: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif at_load and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif at_load and _is_type_checking(child):
            assert isinstance(child, ast.If)
            for statement in child.orelse:
                yield from _import_nodes(ast.Module([statement], []), at_load=True)
        else:
            yield from _import_nodes(child, at_load=at_load)


def _imported_names(module: str, path: Path, *, at_load: bool = True) -> set[str]:
    """Absolute dotted names; `from a import b` gives `a.b`, which may be a module or not."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in _import_nodes(ast.parse(path.read_text(encoding="utf-8")), at_load=at_load):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
            continue
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _project_edges(sources: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> the project's modules that loading it names (not the packages around them)."""
    edges: dict[str, set[str]] = {}
    for module, path in sources.items():
        named = _imported_names(module, path)
        modules = {n if n in sources else n.rpartition(".")[0] for n in named}
        edges[module] = (modules & sources.keys()) - {module}
    return edges


def _outside_names(module: str, path: Path, *, at_load: bool = True) -> set[str]:
    """Top-level names of what is imported from outside the project and the standard library."""
    tops = {name.partition(".")[0] for name in _imported_names(module, path, at_load=at_load)}
    return tops - sys.stdlib_module_names - set(PACKAGES)


def _loaded_with(module: str, edges: Mapping[str, set[str]]) -> set[str]:
    """Every project module that importing `module` runs, the packages around each included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name and name not in seen:
            seen.add(name)
            waiting += [*edges[name], name.rpartition(".")[0]]
    return seen


def _cycle(edges: Mapping[str, set[str]]) -> list[str]:
    """One import cycle as a path that ends where it starts, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in edges if (found := visit(name, []))), [])


def _tree_paths(markdown: str) -> set[str]:
    """The paths that a tree in a fenced block names, one a line, from indent or box lines."""
    paths: set[str] = set()
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        above: list[tuple[int, str]] = []
        for line in block.splitlines():
            match = re.match(r"[\s│├└─|`+-]*", line)
            depth = match.end() if match else 0
            if depth == len(line):
                continue
            above = [entry for entry in above if entry[0] < depth]
            name = line[depth:].split()[0]
            folders = [folder for _, folder in above]
            paths.add("".join([*folders, name]))
            if name.endswith("/"):
                above.append((depth, name))
    return paths


def _declared() -> dict[str, set[str]]:
    """setup.cfg's requirements as import names: {"core": ..., extra: ...}."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = {
        "core": config["options"]["install_requires"],
        **config["options.extras_require"],
    }
    names = {}
    for group, text in lists.items():
        found = re.findall(r"^[A-Za-z][\w.-]*", text, re.MULTILINE)
        names[group] = {IMPORT_NAMES.get(name, name).replace("-", "_") for name in found}
    return names


SOURCES = _sources(ROOT)
EDGES = _project_edges(SOURCES)


def test_both_packages_are_there() -> None:
    assert set(PACKAGES) <= SOURCES.keys()


def test_library_never_imports_harness() -> None:
    # Not even in a function: the library is usable without the harness.
    wrong = {
        module
        for module, path in SOURCES.items()
        if module.startswith("swap_fast")
        and any(
            name.split(".")[0] == "bench" for name in _imported_names(module, path, at_load=False)
        )
    }
    assert not wrong


def test_no_import_cycles() -> None:
    assert _cycle(EDGES) == []


@pytest.mark.parametrize("module", TORCHLESS)
def test_records_and_reports_name_no_torch(module: str) -> None:
    assert module in SOURCES, f"{module} is held to import no torch, but is not there"
    with_torch = {
        name
        for name in _loaded_with(module, EDGES)
        if _outside_names(name, SOURCES[name]) & {"torch", "torchvision", "nvidia"}
    }
    assert not with_torch


def test_records_and_reports_load_no_torch() -> None:
    # The same asked of the interpreter, which also sees what other packages import.
    script = f"import {', '.join(TORCHLESS)}, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_library_loads_with_core_requirements_alone() -> None:
    core = _declared()["core"]
    extra = {
        module: names - core
        for module, path in SOURCES.items()
        if module.startswith("swap_fast") and (names := _outside_names(module, path)) - core
        if not module.startswith("swap_fast.data.dali_")  # imported where DALI was asked for
    }
    assert not extra, "import these inside the function that needs them"


def test_every_import_is_declared_in_setup_cfg() -> None:
    declared = set().union(*_declared().values())
    undeclared = {
        module: names - declared
        for module, path in SOURCES.items()
        if (names := _outside_names(module, path, at_load=False)) - declared
    }
    assert not undeclared


def test_readme_tree_names_every_file() -> None:
    tree = _tree_paths((ROOT / "README.md").read_text(encoding="utf-8"))
    files = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES.values()
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert not files - tree, (
        "README.md's tree, from the repository's root, has a line for each file"
    )
    named = {path for path in tree if path.endswith(".py") and path.split("/")[0] in PACKAGES}
    assert not {path for path in named if not (ROOT / path).is_file()}, "gone, but in the tree"


def test_no_path_of_a_machine_in_the_sources() -> None:
    scripts = [ROOT / "install.sh", ROOT / "run_dawnbench.sh", ROOT / "run_tests.sh"]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*SOURCES.values(), *sorted((ROOT / "tests").rglob("*.py")), *scripts]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


# The walker itself, on a small tree with each case in it.


@pytest.fixture
def small_sources(tmp_path: Path) -> dict[str, Path]:
    texts = {
        "swap_fast/__init__.py": "def __getattr__(name):\n    from swap_fast import swap\n",
        "swap_fast/swap.py": "import torch\nfrom .data import files\n",
        "swap_fast/record.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import torch\nelse:\n    import json\n"
            "def save():\n    import torch\n    import optuna\n"
        ),
        "swap_fast/data/__init__.py": "",
        "swap_fast/data/files.py": "from .. import record\nfrom . import plan\n",
        "swap_fast/data/plan.py": "try:\n    import swap_fast.swap\nfinally:\n    pass\n",
        "bench/__init__.py": "",
        "bench/run.py": "from swap_fast.data.plan import Plan\nimport numpy.linalg\n",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return _sources(tmp_path)


def test_walker_resolves_each_form_of_import(small_sources: dict[str, Path]) -> None:
    edges = _project_edges(small_sources)
    assert edges["swap_fast"] == set()
    assert edges["swap_fast.swap"] == {"swap_fast.data.files"}
    assert edges["swap_fast.record"] == set()
    assert edges["swap_fast.data.files"] == {"swap_fast.record", "swap_fast.data.plan"}
    assert edges["bench.run"] == {"swap_fast.data.plan"}


def test_walker_finds_cycles_and_what_loads(small_sources: dict[str, Path]) -> None:
    edges = _project_edges(small_sources)
    cycle = _cycle(edges)
    assert cycle[0] == cycle[-1]
    assert set(cycle) == {"swap_fast.swap", "swap_fast.data.files", "swap_fast.data.plan"}
    assert _loaded_with("bench.run", edges) == set(small_sources)
    assert _cycle({**edges, "swap_fast.data.plan": set()}) == []


def test_walker_counts_lazy_imports_only_when_asked(small_sources: dict[str, Path]) -> None:
    record = small_sources["swap_fast.record"]
    assert _outside_names("swap_fast.record", record) == set()
    assert _outside_names("swap_fast.record", record, at_load=False) == {"torch", "optuna"}
    assert _outside_names("bench.run", small_sources["bench.run"]) == {"numpy"}


@pytest.mark.parametrize(
    "tree",
    [
        "a.py   one\npkg/   two\n  b.py  three\n  sub/\n    c.py\n  d.py\nother/\n  b.py\n",
        "├── a.py one\n├── pkg/\n│   ├── b.py\n│   ├── sub/\n│   │   └── c.py\n│   └── d.py\n"
        "└── other/\n    └── b.py\n",
    ],
)
def test_tree_is_read_from_indent_and_box_lines(tree: str) -> None:
    expected = {"a.py", "pkg/", "pkg/b.py", "pkg/sub/", "pkg/sub/c.py", "pkg/d.py"}
    assert _tree_paths(f"text\n```\n{tree}```\n") == expected | {"other/", "other/b.py"}
