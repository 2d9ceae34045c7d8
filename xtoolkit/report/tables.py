"""The results of evaluations as tables, for the console and the report: each figure beside what no learning gets."""

WAYS = {"dual": "dual encoder", "matched": "re-ranked by fusion"}
BOXES = ("expressions", "accuracy %", "floor %", "mean IoU", "floor")
RECALLS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "r_mean")


def result_tables(evaluations: dict, floors: dict) -> list[tuple[str, list]]:
    """[(heading, rows)], the first row the column names, cells as text: one an evaluation, those of boxes together.

    Args:
        evaluations: {name: {metric: number or None}} as in ``results.json``.
        floors: {name: {metric: number}}, what ``Task.floor`` gave; an evaluation may be missing.
    """
    tables: dict[str, list] = {}
    for name, metrics in evaluations.items():
        floor = floors.get(name, {})
        ways = [w for w in dict.fromkeys(m.partition(".")[0] for m in metrics) if f"{w}.t2i_r1" in metrics]
        if ways:
            tables[name] = _retrieval(ways, metrics, floor)
        elif "mean_iou" in metrics:
            tables.setdefault("boxes", [list(BOXES)]).extend(_boxes(name, metrics, floor))
        else:
            tables[name] = [["metric", "value", "floor"]]
            tables[name] += [[m, figure(v, 3), figure(floor.get(m), 3)] for m, v in metrics.items()]
    return list(tables.items())


def _retrieval(ways, metrics, floor):
    heading = ["% of queries", "text to image R@1", "R@5", "R@10", "image to text R@1", "R@5", "R@10", "mean"]
    rows = [[WAYS.get(way, way)] + [figure(metrics.get(f"{way}.{r}")) for r in RECALLS] for way in ways]
    if floor:
        rows.append(["chance"] + [figure(floor.get(f"{ways[0]}.{r}")) for r in RECALLS])
    return [heading, *rows]


def _boxes(name, metrics, floor):
    """A row for all expressions of an evaluation, and one for each of its sources."""
    rows = []
    for source in [m.removesuffix("accuracy") for m in metrics if m.endswith("accuracy")]:
        cells = [figure(side.get(f"{source}{m}"), places) for m, places in (("accuracy", 1), ("mean_iou", 3))
                 for side in (metrics, floor)]
        rows.append([f"{name} {source}".rstrip(". "), *cells])
    return rows


def figure(value, places: int = 1) -> str:
    """A number for a table; a dash for what is not there or not finite."""
    return "–" if value is None else f"{value:.{places}f}"


def format_table(metrics: dict, floor: dict, name: str = "all") -> str:
    """The figures of one evaluation as a table for a terminal, beside chance or the floor."""
    (_, rows), = result_tables({name: metrics}, {name: floor})
    return aligned(rows)


def aligned(rows: list) -> str:
    """Rows of text as lines: the first column to the left, the others to the right, a rule under the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    line = lambda row: "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
    return "\n".join([line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])])
