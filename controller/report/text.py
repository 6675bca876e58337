"""The report as Markdown, for a README or an appendix, and its tables as LaTeX, for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from controller import table_text
from controller.report import story
from controller.report.columns import TECHNICAL, ShownTable, shown_tables
from controller.table_text import markdown_of
from controller.wording import plain

if TYPE_CHECKING:
    from controller.report.gather import Gathered

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # at a row's beginning it would be an argument of the \\ before it, and so would *
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "…": r"\ldots{}",
}


def to_markdown(gathered: Gathered) -> str:
    """What won and why, the path, what is missing, the tables, and how to get them again."""
    tables = shown_tables(gathered.table)
    lines = [f"# {markdown_of(gathered.grid.name)}", ""]
    if gathered.grid.description:
        lines += [markdown_of(gathered.grid.description), ""]
    if (told := story.apart(gathered)) is not None:
        lines += [f"> **{markdown_of(told)}**", ""]
    if (found := story.winner(gathered, tables)) is not None:
        numbers = "".join(f", {name} {text}" for name, text in found.numbers)
        lines.append(
            f"{'Best' if found.is_final else 'Best so far'}: **{markdown_of(found.experiment)}** "
            f"(stage {markdown_of(found.stage)}{numbers}). {_sentence(found.because)}"
            + (f" {_sentence(found.doubt)}" if found.doubt else "")
        )
    else:
        lines.append("No stage has kept a row yet.")
    lines += ["", "| | |", "| :-- | --: |"]
    lines += [f"| {name} | {markdown_of(text)} |" for name, text in story.facts(gathered)]
    if lacking := story.missing(gathered):
        lines += ["", "## What is missing", "", *(f"- {markdown_of(text)}" for text in lacking)]
    lines += ["", "## The path", ""]
    for number, step in enumerate(story.steps(gathered), start=1):
        lines.append(f"{number}. **{markdown_of(step.name)}** {markdown_of(step.start)}. {_step_text(step)}".rstrip())
    lines += ["", "## Tables", "", *_table_lines(gathered)]
    lines += ["", "## How to reproduce it", "", "```sh"]
    lines += [line for told, command in story.reproduction(gathered) for line in (f"# {plain(told)}", command)]
    lines.append("```")
    return "\n".join(lines) + "\n"


def _table_lines(gathered: Gathered) -> Iterator[str]:
    """The tables as `grid table` writes them, without their title, each heading one level deeper."""
    _title, _space, *lines = table_text.to_markdown(gathered.table).splitlines()
    yield from (f"#{line}" if line.startswith("## ") else line for line in lines)


def _step_text(step: story.Step) -> str:
    texts = []
    if step.tried:
        texts.append(
            f"{'Tested' if step.is_test else 'Tried'} {', '.join(markdown_of(one.name) for one in step.tried)}."
        )
    if step.kept and not step.is_test:
        texts.append(f"Kept **{', '.join(map(markdown_of, step.kept))}**.")
    if step.kept:
        texts.append(_sentence(f"{step.chosen}: {step.because}" if step.because else step.chosen))
    if step.here:
        texts.append(_sentence(step.here))
    if step.waiting:
        texts.append(_sentence(f"waiting {step.waiting}"))
    return " ".join(texts)


def _sentence(text: str) -> str:
    shown = markdown_of(text)
    return f"{shown[:1].upper()}{shown[1:]}" + ("" if shown.endswith((".", "!", "?")) or not shown else ".")


def to_latex(gathered: Gathered) -> str:
    """A table for each stage that has rows, for a document that loads booktabs; the best row's name is bold."""
    lines = [f"% Tables of the grid {_ascii_comment(gathered.grid.name)}. Needs \\usepackage{{booktabs}}."]
    for table in shown_tables(gathered.table):
        if table.rows:
            lines += ["", *_latex_table(gathered.grid.name, table)]
    return "\n".join(lines) + "\n"


def _ascii_comment(text: str) -> str:
    return plain(text).encode("ascii", "replace").decode()


def _latex_table(grid: str, table: ShownTable) -> Iterator[str]:
    shown = [place for place, column in enumerate(table.columns) if column.number not in TECHNICAL]
    yield "\\begin{table}"
    yield "  \\centering"
    told = f" {_latex(_capital(table.legend))}." if table.legend else ""
    yield f"  \\caption{{{_latex(grid)}, stage {_latex(table.stage.name)}.{told}}}"
    yield f"  \\label{{tab:{_label(grid)}-{_label(table.stage.name)}}}"
    yield f"  \\begin{{tabular}}{{l{'r' * len(shown)}}}"
    yield "    \\toprule"
    yield f"    {' & '.join(['experiment', *(_latex(table.columns[column].long) for column in shown)])} \\\\"
    yield "    \\midrule"
    for row in table.rows:
        cells = [_latex(row.name), *(_latex(row.cells[column].text) for column in shown)]
        if row.is_best:
            bold = (0, *(place for place, column in enumerate(shown, start=1) if column == table.metric_column))
            cells = [f"\\textbf{{{cell}}}" if place in bold else cell for place, cell in enumerate(cells)]
        if row.reason:
            cells[0] += f" ({_latex(row.mark)})"
        yield f"    {' & '.join(cells)} \\\\"
    yield "    \\bottomrule"
    yield "  \\end{tabular}"
    yield "\\end{table}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _latex(text: str) -> str:
    """`text` as LaTeX that prints it as it is."""
    return "".join(_LATEX.get(char, char) for char in plain(text))


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", text)
