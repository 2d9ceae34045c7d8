"""A table as CSV and LaTeX, beside ``table.md``, and its notes: written from what ``table.json`` holds, after each job."""

import csv
import io
import re

from xtoolkit.ablation.table import Table

FIELDS = ["column", "row", "metric", "control", "seed", "value", "state"]
SPECIAL = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           "†": r"\dag{}", "‡": r"\ddag{}", "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$", "<": r"\textless{}",
           ">": r"\textgreater{}", "[": "{[}", "*": "{*}",  # after \\ these two would be arguments
           "|": r"\textbar{}", '"': r"\textquotedbl{}"} | {one: f"\\{one}" for one in "&%$#_"}
BOLD = re.compile(r"\*\*(.*)\*\*")
FIGURE = re.compile(r"(([-+−]?\d[\d.,e+-]*|–)\*?( .*)?)?", re.S)  # a column of such cells runs right
PART = re.compile(r"(.*\S) (\([^()]*\))")  # a figure, and in brackets what is missing of it


def as_csv(lines: list[dict]) -> str:
    """A line for each figure and seed, whether it is there or not; see ``FIELDS``.

    Args:
        lines: the ``rows`` of ``table.json``.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(FIELDS)
    for line in lines:
        for column, cell in line["columns"].items():
            for control, held in {"": cell, **cell["controls"]}.items():
                values = {str(seed): value for seed, value in held["values"].items()}
                out.writerows([column, line["task"], line["metric"], control, seed, values.get(str(seed), ""), state]
                              for seed, state in held["states"].items())
    return text.getvalue()


def notes(table: Table) -> list[str]:
    """What a table's YAML says of it, then of its columns and starts, a line each."""
    named = [f"{name}: {one.note}" for name, one in [*table.columns.items(), *table.starts.items()] if one.note]
    return [_one_line(note) for note in [*([table.note] if table.note else []), *named]]


def as_tex(tables: list[tuple[str, list[str], list[list[str]]]], notes: list[str] = ()) -> str:
    """A ``tabular`` of the package booktabs each, and the notes below them, to be taken in with ``\\input``.

    Args:
        tables: (what it is, heading, rows), cells as in ``table.md``. A rule stands above and below a row in bold.
    """
    found = [f"% {_one_line(title)}\n{_tabular(heading, rows)}" for title, heading, rows in tables]
    found += [f"\\par\\noindent{{\\footnotesize {escaped(note)}\\par}}\n" for note in notes]
    return "% \\usepackage{booktabs}\n" + "\n".join(found)


def _tabular(heading, rows):
    several = list(zip(*rows)) or [()] * len(heading)
    shape = "l" + "".join("r" if all(map(FIGURE.fullmatch, cells)) else "l" for cells in several[1:])
    lines, ruled = [f"\\begin{{tabular}}{{{shape}}}", "\\toprule", _line(heading), "\\midrule"], True
    for number, row in enumerate(rows):
        bold = BOLD.fullmatch(row[0])
        lines += ["\\midrule"] if bold and not ruled else []
        lines.append(_line(row))
        ruled = bool(bold) and number < len(rows) - 1
        lines += ["\\midrule"] if ruled else []
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _line(cells):
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(text):
    if found := BOLD.fullmatch(text):
        return f"\\textbf{{{escaped(found[1])}}}"
    if (found := PART.fullmatch(text)) and any(one.isdigit() or one == "–" for one in found[1]):
        return f"{escaped(found[1])} {{\\scriptsize {escaped(found[2])}}}"
    return escaped(text)


def escaped(text: str) -> str:
    """Text as LaTeX prints it, on one line."""
    return "".join(SPECIAL.get(one, one) for one in _one_line(text))


def _one_line(text):
    return " ".join(text.split())
