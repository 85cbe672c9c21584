"""The LaTeX export, typeset by a small strict reader: only commands that it knows may occur."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_factory import make_record
from repository import ROOT

from bench.cli import main
from bench.document import Table
from bench.export.command import escape_latex, latex, to_latex
from bench.records.paper import load_paper
from bench.report.paper_tables import all_run_tables, recipe_tables

RESULTS = ROOT / "results"

TEXT_COMMANDS = {
    r"\textbackslash": "\\",
    r"\textasciitilde": "~",
    r"\textasciicircum": "^",
    r"\textless": "<",
    r"\textgreater": ">",
    r"\textbar": "|",
    r"\S": "§",
    r"\P": "¶",
    r"\&": "&",
    r"\%": "%",
    r"\$": "$",
    r"\#": "#",
    r"\_": "_",
    r"\{": "{",
    r"\}": "}",
}
MATH = {r"$\pm$": "±", r"$\geq$": "≥", r"$\dagger$": "†", r"$\ddagger$": "‡"}
TOKEN = re.compile(r"\$\\[a-z]+\$|\\[A-Za-z]+|\\.|---|--|''|.", re.DOTALL)


def typeset(source: str) -> str:
    """The text that LaTeX prints of escaped text.

    Raises:
        ValueError: what is special to LaTeX, or a command that is none of the text's.
    """
    text, tokens = "", TOKEN.findall(source)
    for i, token in enumerate(tokens):
        if token in ("{", "}"):
            # Only the empty group, which ends a command's name or keeps two hyphens apart.
            if "".join(tokens[i : i + 2]) != "{}" and "".join(tokens[i - 1 : i + 1]) != "{}":
                raise ValueError(f"a group: {source!r}")
        elif token in TEXT_COMMANDS:
            if token[1:].isalpha() and tokens[i + 1 : i + 2] != ["{"]:
                raise ValueError(f"{token} takes the space after it")
            text += TEXT_COMMANDS[token]
        elif token in MATH:
            text += MATH[token]
        elif token == "---":
            text += "—"
        elif token == "''":
            text += '"'
        elif token == "--" or token[0] in '\\$&%#_~^<>|"':
            raise ValueError(f"{token} in {source!r}")
        elif not token.isprintable() or ord(token) >= 0x180:
            raise ValueError(f"{token!r}, which no usual font has")
        else:
            text += token
    return text


def read_table(source: str) -> tuple[str, list[list[str]], list[str]]:
    """Caption, rows and notes of one `table` environment, which must be of exactly this form."""
    match = re.fullmatch(
        r"\\begin\{table\}\[p\]\n\\centering\n\\caption\{(?P<caption>.*)\}\n"
        r"\\label\{tab:[a-z0-9-]+\}\n\\resizebox\{\\textwidth\}\{!\}\{%\n"
        r"\\begin\{tabular\}\{(?P<columns>[lr]+)\}\n\\toprule\n(?P<head>.*)\n\\midrule\n"
        r"(?P<body>(?:.*\n)*?)\\bottomrule\n\\end\{tabular\}\}\n\\par\\smallskip\n"
        r"\\begin\{minipage\}\{\\textwidth\}\\footnotesize\n(?P<notes>(?:.*\\par\n)*)"
        r"\\end\{minipage\}\n\\end\{table\}\n",
        source,
    )
    assert match, source
    lines = [match["head"], *match["body"].splitlines()]
    # The end of a row, or a rule, would take these for an option of its own.
    assert not any(line.lstrip().startswith(("[", "*")) for line in lines)
    assert all(line.endswith(r" \\") for line in lines)
    rows = [[typeset(cell) for cell in line.removesuffix(r" \\").split(" & ")] for line in lines]
    assert {len(row) for row in rows} == {len(match["columns"])}
    notes = [typeset(note.removesuffix(r"\par")) for note in match["notes"].splitlines()]
    return typeset(match["caption"]), rows, notes


@pytest.mark.parametrize("size", ["measured", "made"])
def test_the_tables_are_the_reports_to_the_letter(size: str) -> None:
    from bench.report.content import collect

    records = collect(RESULTS).records
    if size == "made":
        records = [make_record("cifar10_swap"), make_record("cifar10_sgd_small", seed=1)]
    paper = load_paper(RESULTS)
    expected = [*all_run_tables(records, paper), *recipe_tables(paper)]
    for other in ("narrow", "modern", "cpu") if size == "measured" else ():
        expected += recipe_tables(paper, other)
    assert {"Table 1", "Table 5"} <= {
        table.title.split(" at ")[0].split(",")[0] for table in expected
    }
    source = latex(records, RESULTS, fragment=True)
    parts = re.split(r"\n(?=\\begin\{table\})", source)
    assert len(parts) == len(expected)
    for part, table in zip(parts, expected, strict=True):
        caption, rows, notes = read_table(part.rstrip("\n") + "\n")
        assert caption == table.title
        assert rows == [list(table.columns), *(list(row) for row in table.rows)]
        assert notes == [table.caption, *table.footnotes]


@given(text=st.text())
def test_any_text_is_typeset_as_it_stands(text: str) -> None:
    # Line ends and control characters become spaces; letters of no usual font, their numbers.
    shown = "".join(c if c.isprintable() else " " for c in text)
    known = set(MATH.values()) | {"§", "—", '"'}
    expected = "".join(c if ord(c) < 0x180 or c in known else f"(U+{ord(c):04X})" for c in shown)
    # Two straight single quotes look like a double one, and are one to the reader above.
    assert typeset(escape_latex(text)) == expected.replace("''", '"')


def test_a_hostile_table_stays_a_table() -> None:
    evil = r"\input{/etc/passwd} & 50% $x_1^2$ #1 ~ {}--- \\ </table> 100±1 日本"
    table = Table(
        name="table9_cpu",
        title=evil,
        caption=evil,
        columns=(evil, "b"),
        rows=((evil, "1.00"), ("x\ny", evil), ("[2cm]", " *"), ("*", "[")),
        footnotes=(evil,),
    )
    caption, rows, notes = read_table(to_latex(table))
    expected = evil.replace("日本", "(U+65E5)(U+672C)")
    assert caption == expected
    assert rows == [
        *([expected, "b"], [expected, "1.00"], ["x y", expected]),
        *(["[2cm]", " *"], ["*", "["]),
    ]
    assert notes == [expected, expected]


@pytest.mark.parametrize("bad", ["50%", "a_b", "a & b", r"\input{x}", "$x$", "a--b", r"\S x"])
def test_the_reader_refuses_what_is_not_escaped(bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        typeset(bad)


def test_the_document_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "tables.tex"
    assert main(["export", "latex", "--results", str(RESULTS), "-o", str(out)]) == 0
    source = out.read_text(encoding="utf-8")
    head, _, rest = source.partition("\\begin{document}\n")
    assert re.findall(r"\\usepackage(?:\[.*?\])?\{(\w+)\}", head) == [
        *("inputenc", "fontenc", "geometry", "booktabs", "graphicx")
    ]
    body, _, after = rest.partition("\\end{document}\n")
    assert after == ""
    assert body == latex_of_results()
    if pdflatex := shutil.which("pdflatex"):  # the reader above is for machines without
        command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", out.name]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
        assert out.with_suffix(".pdf").stat().st_size > 0


def latex_of_results() -> str:
    from bench.report.content import collect

    return latex(collect(RESULTS).records, RESULTS, fragment=True)


def test_runs_of_another_kind_of_machine_stand_apart() -> None:
    record = make_record("cifar10_swap")
    other = make_record("cifar10_swap", seed=1, machine={**record.machine, "device_count": 4})
    source = latex([record, replace(other, threads=1)], RESULTS, fragment=True)
    assert source.count(r"\caption{Table 1, machine") == 2
