"""Runs side by side: what differs in their recipes, their results, their curves.

  xtoolkit compare outputs/xfm_tiny outputs/two
  xtoolkit compare outputs/table5/*/pretrain/seed_1/* --out columns.html

Differences and results are printed, of long recipes and many metrics the most telling; the page has all, and the curves over each
other. Results differ by chance too: `xtoolkit ablate` holds recipes against each other over seeds.
"""

from pathlib import Path

from xtoolkit.cli.command import Once, command, parser as make_parser
from xtoolkit.registry import ConfigError


@command
def main(argv=None) -> int:
    parser = make_parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="their output folders; differences are to the first")
    parser.add_argument("--out", type=Path, metavar="FILE.html", action=Once, help="the page (default: compare.html)")
    args = parser.parse_args(argv)
    from xtoolkit.report import compare
    from xtoolkit.report.rendering import write

    runs, out = read(args.runs), args.out or Path("compare.html")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out: {out}: " + ("a folder; name a file" if out.is_dir() else f"no folder {out.parent}"))
    names = compare.labels(args.runs)
    page = compare.as_page(names, runs)
    try:
        write(out, page)
    except OSError as error:
        raise ConfigError(f"--out: {out}: cannot be written: {error.strerror}") from None
    print(f"{compare.as_text(names, runs)}\n\ncurves: {out}")
    return 0


def read(folders: list[Path]) -> list:
    """The runs of folders. Raises ConfigError: every folder that holds none, or none with results."""
    from xtoolkit.report.compare import without_results
    from xtoolkit.report.record import read_run

    if len(folders) < 2:
        raise ConfigError(f"{folders[0]}: one run alone; name another to compare it with")
    problems, found, known = [], [], {}
    for folder in folders:
        if (first := known.setdefault(folder.resolve(), folder)) is not folder:
            problems.append(f"{folder}: the same run as {first}: name each once")
            continue
        if not folder.is_dir():
            problems.append(f"{folder}: {'a file; name the folder of a run' if folder.exists() else 'no such run'}")
            continue
        try:
            run = read_run(folder)
        except (FileNotFoundError, ConfigError) as error:
            problems += getattr(error, "problems", [str(error)])
        except ValueError as error:
            problems.append(f"{folder}: a record in it is damaged: {error}")
        else:
            found.append(run)
            if without_results(run):
                problems.append(f"{folder}: no results yet: it has neither logged a step nor evaluated anything")
    if problems:
        raise ConfigError(problems)
    return found
