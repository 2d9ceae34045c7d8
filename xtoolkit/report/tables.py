"""The results of evaluations as tables, for the console and the report, laid out as their tasks did."""


def result_tables(tables: dict, told: dict = {}) -> list[tuple[str, list, list]]:
    """[(title, heading, rows)]: one an evaluation; those with one heading share a table, each row with its evaluation's name.

    Args:
        tables: {evaluation: (heading, rows)}, cells as text.
        told: {evaluation: what the title says behind its name}.
    """
    together: dict[tuple, dict] = {}
    for name, (heading, rows) in tables.items():
        together.setdefault(tuple(heading), {})[name] = rows
    found = []
    for heading, named in together.items():
        first = lambda name, cell: (cell if len(named) == 1 else f"{cell}, {name}" if cell.startswith("floor")
                                    else f"{name} {cell}")
        rows = [[first(name, row[0]), *row[1:]] for name, rows in named.items() for row in rows]
        found.append((", ".join(name + told.get(name, "") for name in named), list(heading), rows))
    return found


def format_tables(tables: dict, told: dict = {}) -> str:
    """The figures of evaluations as tables for a terminal; see ``result_tables``."""
    return "\n\n".join(f"{title}\n{aligned([heading, *rows])}" for title, heading, rows in result_tables(tables, told))


def aligned(rows: list) -> str:
    """Rows of text as lines: the first column to the left, the others to the right, a rule under the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    line = lambda row: "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
    return "\n".join([line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])])
