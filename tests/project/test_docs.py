"""The documentation: its site as built, its table of features, and what says how to cite it.

The built site is read again by a parser of its own, which knows nothing of MkDocs.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml
from repository import ROOT

import swap_fast
from bench.cli import COMMANDS
from swap_fast.recipes.cifar10 import RECIPES

WAITS = "<!-- waits -->"


class Links(HTMLParser):
    """What a page leads to, what it loads by itself, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.followed: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.navigation: set[str] = set()
        self._navigation_depth = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self._navigation_depth += tag == "nav"
        if tag == "a" and "href" in found:
            self.followed.append(found["href"])
            if self._navigation_depth:
                self.navigation.add(urldefrag(found["href"]).url)
        if tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(found["href"])
        if tag in ("script", "img", "iframe", "source", "video") and "src" in found:
            self.loaded.append(found["src"])

    def handle_endtag(self, tag: str) -> None:
        self._navigation_depth -= tag == "nav"

    def handle_data(self, data: str) -> None:
        self.text += data


@cache
def links_of(page: Path) -> Links:
    parser = Links()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def is_outside(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def inside(page: Path, links: list[str]) -> Iterator[tuple[Path, str]]:
    """The files and anchors that a page's links within the site mean."""
    for link in links:
        if not is_outside(link):
            path, anchor = urldefrag(link)
            yield (page.parent / unquote(path)).resolve() if path else page, unquote(anchor)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: MkDocs itself ends with 1 at a link that leads nowhere."""
    folder = tmp_path_factory.mktemp("docs").resolve() / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    # 404.html is served under any address, so that its links begin with a slash.
    own = [site / "404.html", site / "results/report.html"]
    return [page for page in sorted(site.rglob("*.html")) if page not in own]


@pytest.mark.slow
def test_every_link_and_anchor_resolves(pages: list[Path]) -> None:
    broken = [
        f"{page.name}: {target.name}#{anchor}"
        for page in pages
        for target, anchor in inside(page, links_of(page).followed + links_of(page).loaded)
        if not target.is_file()
        or (anchor and target.suffix == ".html" and anchor not in links_of(target).anchors)
    ]
    assert not broken


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: list[Path]) -> None:
    loaded = {link for page in pages for link in links_of(page).loaded if is_outside(link)}
    assert {link for link in loaded if not link.startswith("data:")} == set()
    for style in site.rglob("*.css"):
        found = re.findall(r"""(?:@import|url\()\s*["']?([^"')\s]+)""", style.read_text("utf-8"))
        assert [link for link in found if link.startswith(("http", "//"))] == []


@pytest.mark.slow
def test_every_page_is_reached_from_home(site: Path, pages: list[Path]) -> None:
    waiting, reached = [site / "index.html"], set()
    while waiting:
        page = waiting.pop()
        if page not in reached and page in pages:
            reached.add(page)
            waiting += [target for target, _ in inside(page, links_of(page).followed)]
    assert set(pages) - reached == set()


@pytest.mark.slow
def test_every_written_page_command_and_module_is_in_the_navigation(site: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "swap_fast").rglob("*.py")
        if path.name != "__main__.py"
    ]
    expected = {
        *(f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")),
        *("results.html", "changelog.html", "contributing.html", "never_run_on_a_gpu.html"),
        *(f"commands/bench_{name}.html" for name in COMMANDS),
        *(f"reference/{module}.html" for module in modules),
    }
    assert expected - links_of(site / "index.html").navigation == set()


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(path.parent.name for path in ROOT.glob("*/__main__.py")))
def test_every_command_has_the_page_of_its_help(site: Path, program: str) -> None:
    asked = [sys.executable, "-m", program, "--help"]
    usage = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert usage.startswith(f"usage: python -m {program} COMMAND")
    commands = [line.split()[0] for line in usage.splitlines()[2:]]
    assert commands
    for command in commands:
        text = links_of(site / f"commands/{program}_{command}.html").text
        assert f"usage: python -m {program} {command}" in text
        if f"`{command} RECIPE --help`" in text:
            assert "--phase1.stopping-accuracy" in text
    assert " ".join(usage.split()) in " ".join(links_of(site / "commands/index.html").text.split())


@pytest.mark.slow
def test_the_pages_made_of_the_readme_and_of_docstrings_have_their_content(site: Path) -> None:
    from bench.verify.command import CHECKS

    never_run = links_of(site / "never_run_on_a_gpu.html").text
    for check in CHECKS:
        assert f"{check.name}: {check.claim}".replace("`", "") in never_run
    algorithm = links_of(site / "reference/swap_fast.algorithm.html").text
    assert "Phase 1, lines 7-17" in algorithm
    assert "stopped_by" in algorithm
    assert set(swap_fast.__all__) <= set(links_of(site / "reference/swap_fast.html").text.split())


# How links into the repository become links within the site.


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("home", "page", "link", "expected"),
    [
        ("README.md", "index.md", "docs/clocks.md", "clocks.md"),
        ("README.md", "index.md", "results/report.md#results", "results.md#results"),
        ("docs/clocks.md", "clocks.md", "../README.md#the-tree", "index.md#the-tree"),
        ("docs/clocks.md", "clocks.md", "#anchor", "#anchor"),
        ("docs/clocks.md", "clocks.md", "https://a.b/c", "https://a.b/c"),
        (
            *("docs/clocks.md", "clocks.md", "../swap_fast/data/cifar/files.py"),
            "reference/swap_fast.data.cifar.files.md",
        ),
        ("docs/clocks.md", "clocks.md", "../run_tests.sh", "source/run_tests.sh.md"),
        (
            "docs/clocks.md",
            "clocks.md",
            "../results/plots/figure5.svg",
            "results/plots/figure5.svg",
        ),
        ("docs/clocks.md", "clocks.md", "not_there.md", "not_there.md"),
    ],
)
def test_a_link_is_turned(
    hooks: ModuleType, home: str, page: str, link: str, expected: str
) -> None:
    assert hooks.turn_links(f"a [b]({link}) c", page, home) == f"a [b]({expected}) c"


def test_code_is_left_alone_and_what_waits_is_no_link(hooks: ModuleType) -> None:
    text = "`x](docs/clocks.md)`\n```\n[a](docs/clocks.md)\n```\n[b](docs/no.md) <!-- waits -->\n"
    turned = "`x](docs/clocks.md)`\n```\n[a](docs/clocks.md)\n```\nb (being written) \n"
    assert hooks.turn_links(text, "index.md", "README.md") == turned


# What pages tell a reader to type.


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_commands_recipes_and_scripts_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if WAITS not in line)
    for command, argument in re.findall(r"-m bench ([a-z][\w-]*)(?: +(\w+))?", text):
        assert command in COMMANDS
        if command in ("run", "submit", "search") and argument not in ("", "RECIPE"):
            assert argument in RECIPES
    for script in re.findall(r"\./(\w+\.sh)", text):
        assert (ROOT / script).is_file()


# The table of features.


def feature_rows() -> list[str]:
    lines = (ROOT / "docs/features.md").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.match(r"\| \d", line)]


def test_the_39_features_are_numbered_and_each_yes_leads_somewhere() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in feature_rows()]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 40)]
    for row in rows:
        number, _, ours, where, *others = row
        assert len(others) == 8, number
        assert {*others} <= {"yes", "partly", "no"}, number
        assert ours in ("yes", "partly", "written", "no"), number
        assert ours == "no" or "](" in where, f"{number}: {ours}, and no link"


@pytest.mark.parametrize("row", [row for row in feature_rows() if WAITS not in row])
def test_a_feature_leads_to_what_is_there(row: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", row):
        path, anchor = urldefrag(link)
        target = (ROOT / "docs" / path).resolve()
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


# How to cite it, and its versions.


def test_the_citation_is_whole() -> None:
    """The required keys of the Citation File Format 1.2.0, and their agreement with the rest."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()
    assert (cff["cff-version"], cff["type"], cff["license"]) == ("1.2.0", "software", "MIT")
    (author,) = cff["authors"]
    assert f"Copyright (c) 2026 {author['name']}" in (ROOT / "LICENSE").read_text()
    paper = cff["preferred-citation"]
    assert paper["type"] == "conference-paper"
    assert [author["family-names"] for author in paper["authors"]] == [
        "Gupta",
        "Aklé Serrano",
        "DeCoste",
    ]
    assert paper["year"] == 2020
    assert paper["title"].startswith("Stochastic Weight Averaging in Parallel")
    assert paper["conference"]["name"]


def test_one_version_everywhere() -> None:
    version = swap_fast.__version__  # setup.cfg reads it there
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[Unreleased\]: (\S+)$|^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    assert newest
    assert {version, cff["version"], newest[1] or newest[2]} == {version}
