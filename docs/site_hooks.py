"""What the documentation's site has beside the pages that are written by hand.

MkDocs calls the functions whose names begin with `on_`. They add pages made of what is elsewhere
in the repository (the README, the changelog, the report, each command's help, each module's
docstrings), put the navigation together from the pages that are there, and turn links into the
repository, which work in its files too, into links within the site.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import dirname, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from swap_fast import _HOME

ROOT = Path(__file__).resolve().parent.parent
WAITS = "<!-- waits -->"
"""Stands in a line whose links lead to what is being written; until then they are plain text."""

FROM_THE_REPOSITORY = {
    "index.md": "README.md",
    "results.md": "results/report.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Pages of the site that are a file elsewhere."""

SECTIONS: dict[str, dict[str, str]] = {
    "Begin": {
        "Quick start": "quick_start.md",
        "Your own training": "own_training.md",
        "Averaging finished weights": "averaging.md",
        "Data and loaders": "data.md",
    },
    "Understand": {
        "How SWAP works": "how_swap_works.md",
        "Which averaging do I need?": "which_averaging.md",
        "Choosing tau, W and the batches": "choosing.md",
        "When phase 1 ends by itself": "transition.md",
        "The clocks": "clocks.md",
    },
    "Run": {
        "One GPU, eight, a cluster": "running.md",
        "What a run survives": "reliability.md",
        "Watching a run": "live_view.md",
    },
    "Results": {
        "The report": "results.md",
        "Comparing runs": "comparing.md",
        "Exports": "exports.md",
        "Performance": "performance.md",
        "What was never run on a GPU": "never_run_on_a_gpu.md",
    },
}
"""Titles and pages in the navigation's order; a page that is not there is left out."""
LAST = {
    "Features": "features.md",
    "Changelog": "changelog.md",
    "Contributing": "contributing.md",
}
"""What ends the navigation's section of references."""

LANGUAGES = {".py": "python", ".sh": "bash", ".cfg": "ini", ".toml": "toml", ".json": "json"}
PICTURES = (".svg", ".png")
# What is code stands first, so that what looks like a link in it is none.
LINK = re.compile(r"`[^`\n]*`|\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
HELP_ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}

_file_of: dict[str, str] = {}  # page of the site -> the repository's file that it is, for its links


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made here, and put the navigation together."""
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    homes = {page: home for page, home in FROM_THE_REPOSITORY.items() if (ROOT / home).exists()}
    made = {page: (ROOT / home).read_text(encoding="utf-8") for page, home in homes.items()}
    _file_of.clear()
    _file_of.update({page: f"docs/{page}" for page in written})
    _file_of.update(homes)
    shown = _linked({**written, **made})
    commands, modules = command_pages(), module_pages()
    for page, text in {**made, **commands, **modules}.items():
        files.append(File.generated(config, page, content=text))
    for page, text in shown.items():
        place = InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, page, content=text, inclusion=place))
    for path in [ROOT / "results/report.html", *sorted((ROOT / "results/plots").iterdir())]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    config.nav = navigation({*_file_of}, [*commands], [*modules])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the repository into links within the site."""
    home = _file_of.get(page.file.src_uri)
    return markdown if home is None else turn_links(markdown, page.file.src_uri, home)


def turn_links(markdown: str, page: str, home: str) -> str:
    """The links of a page that is the repository's file `home`, as links within the site."""

    def turned(match: re.Match[str]) -> str:
        if match[1] is None or (target := _target(match[1], home)) is None:
            return match[0]
        name, anchor = target
        return f"]({relpath(_page_of(name), dirname(page) or '.')}{anchor})"

    def outside_code(text: str) -> str:
        return LINK.sub(turned, "\n".join(_without_waiting(text.split("\n"))))

    pieces, last = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [outside_code(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*pieces, outside_code(markdown[last:])])


def navigation(written: set[str], commands: list[str], modules: list[str]) -> list[object]:
    """Home, the sections, then what is referred to; a page without a place goes under `More`."""
    placed = {page for section in [*SECTIONS.values(), LAST] for page in section.values()}
    more = sorted(written - placed - {"index.md"})
    nav: list[object] = [{"Home": "index.md"}]
    for title, section in SECTIONS.items():
        nav.append({title: [{name: page} for name, page in section.items() if page in written]})
    if more:
        nav.append({"More": more})
    nav.append({"Commands": [{_title(page): page} for page in commands]})
    nav.append({"API": [{_title(page): page} for page in modules]})
    nav.append({"Reference": [{name: page} for name, page in LAST.items() if page in written]})
    return nav


def command_pages() -> dict[str, str]:
    """A page a command, of what `--help` prints, and of what a recipe or a format adds to it."""
    programs = ["bench", *(["swap_fast"] if (ROOT / "swap_fast/__main__.py").exists() else [])]
    pages, listed = {}, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for program, usage in zip(programs, pool.map(_help, programs), strict=True):
            listed += [f"## python -m {program}\n", _block(usage)]
            names = re.findall(r"^  ([a-z][\w-]*)  ", usage, re.MULTILINE)
            texts = pool.map(_help, [f"{program} {name}" for name in names])
            for name, text in zip(names, texts, strict=True):
                parts = [f"# python -m {program} {name}\n", _block(text)]
                for word, example in _examples(name, text):
                    parts += [f"## {word}\n", _block(_help(f"{program} {name} {example}"))]
                pages[f"commands/{program}_{name}.md"] = "\n".join(parts)
                listed.append(f"- [`{program} {name}`]({program}_{name}.md)")
            listed.append("")
    intro = "# Commands\n\nWhat `--help` prints, taken from the commands when this was built.\n"
    return {"commands/index.md": "\n".join([intro, *listed]), **pages}


def module_pages() -> dict[str, str]:
    """A page a module of the library, from its docstrings."""
    pages = {}
    for path in sorted((ROOT / "swap_fast").rglob("*.py")):
        if path.name == "__main__.py":
            continue
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        name = name.removesuffix(".__init__")
        pages[f"reference/{name}.md"] = f"# {name}\n\n::: {name}\n"
    pages["reference/swap_fast.md"] += public_names()
    return pages


def public_names() -> str:
    """The package's public names, which it imports on first use: whose module has each."""
    lines = ["## Public names\n", "| `swap_fast.` | module |", "|---|---|"]
    for name, module in _HOME.items():
        page = f"swap_fast.{module}"
        lines.append(f"| [`{name}`]({page}.md) | `{page}` |")
    return "\n".join(["", *lines, ""])


def _examples(command: str, usage: str) -> list[tuple[str, str]]:
    """Where what follows a command has a help of its own: of which words to show it."""
    asked = re.search(rf"`{command} ([A-Z]+) --help`", usage)
    if asked is None:
        return []
    if asked[1] == "RECIPE":
        return [("With a recipe", "cifar10_cpu")]
    names = re.findall(r"^  ([a-z]\w*)  ", usage, re.MULTILINE)
    return [(f"{command} {name}", name) for name in names]


def _help(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--help"],
        cwd=ROOT,
        env={**os.environ, **HELP_ENVIRONMENT},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode != 0:
        raise RuntimeError(f"python -m {command} --help: {done.stderr.strip()}")
    return done.stdout


def _block(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))
    return f"~~~~ text\n{lines}\n~~~~\n"


def _title(page: str) -> str:
    """A command's or a module's page as the navigation names it."""
    stem = page.rpartition("/")[2].removesuffix(".md")
    if page.startswith("reference/"):
        return stem.removeprefix("swap_fast.")
    return "Overview" if stem == "index" else stem.replace("_", " ", 1)


def _without_waiting(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if WAITS in line:
            line = re.sub(r"\[([^]]*)\]\([^()\s]+\)", r"\1 (being written)", line)
        yield line.replace(WAITS, "")


def _linked(pages: dict[str, str]) -> dict[str, str]:
    """The repository's files and folders that pages link to, each as a page that shows it."""
    shown = {}
    for page, text in pages.items():
        for match in LINK.finditer("\n".join(_without_waiting(FENCE.sub("", text).split("\n")))):
            target = None if match[1] is None else _target(match[1], _file_of[page])
            if target is not None and _page_of(target[0]).startswith("source/"):
                shown[_page_of(target[0])] = _shown(ROOT / target[0])
    return shown


def _target(link: str, home: str) -> tuple[str, str] | None:
    """What of the repository a link in the file `home` means, and its anchor; None: nothing."""
    path, mark, anchor = link.partition("#")
    if not path or ":" in path:
        return None
    name = normpath(f"{dirname(home)}/{path}").lstrip("/")
    if name.startswith("..") or not (ROOT / name).exists():
        return None
    return name, mark + anchor


def _page_of(name: str) -> str:
    """Where the site has a file or folder of the repository."""
    for page, home in FROM_THE_REPOSITORY.items():
        if name == home:
            return page
    path = ROOT / name
    if name.startswith("docs/") and name.endswith(".md"):
        return name.removeprefix("docs/")
    if path.suffix in PICTURES or name == "results/report.html":
        return name
    if name.startswith("swap_fast/") and name.endswith(".py") and path.name != "__main__.py":
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return f"reference/{module}.md"
    return f"source/{name}.md"


def _shown(path: Path) -> str:
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return title + "".join(f"- `{each.name}`\n" for each in sorted(path.iterdir()))
    text = path.read_text(encoding="utf-8")
    return f"{title}~~~~~~ {LANGUAGES.get(path.suffix, 'text')}\n{text}\n~~~~~~\n"
