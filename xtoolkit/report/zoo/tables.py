"""The zoo's tables, as Markdown."""

from collections.abc import Callable

from xtoolkit.report.zoo.counts import a_step
from xtoolkit.report.zoo.source import Figure, Recorded, Run, Zoo

NONE = "–"


class Tables:
    """Every table by name.

    Args:
        counted: {recipe: what ``counts.count`` gives}.
        published: {name: a paper's whole table, as ``xtoolkit.ablation.published`` reads it}.
        file: the file of a recipe, below the folder of the checkout.
    """

    def __init__(self, zoo: Zoo, recorded: Recorded, counted: dict[str, dict], published: dict, file: Callable[[str], str]):
        self.zoo, self.recorded, self.counted, self.published, self.file = zoo, recorded, counted, published, file
        self.named = {"sizes": self._sizes, "tasks": self._tasks} \
            | {f"counts {name}": lambda link, name=name: self._counts(name, link) for name in zoo.systems} \
            | {f"paper {name}": lambda link, name=name: self._paper(name) for name in zoo.papers} \
            | {f"paper {name}": lambda link, name=name: self._whole(name) for name in published} \
            | {f"results {name}": lambda link, name=name: self._results(name) for name in zoo.tables} \
            | {f"runs {name}": lambda link, name=name: self._runs(name, link) for name in zoo.tables}
        # Each of these stands on some page; runs and tasks stand where a page wants them.
        self.due = [name for name in self.named if name == "sizes" or name.split()[0] in ("counts", "paper", "results")]

    def _recipe(self, name, link):
        return f"[`{name}`]({link(self.file(name))})"

    # ---- recipes ----------------------------------------------------------------------------------------------------------
    def _sizes(self, link):
        rows = []
        for system, one in self.zoo.systems.items():
            for recipe in one.recipes:
                c = self.counted[recipe]
                p = c["parameters"]
                shown = f"[{system}]({link(one.page)})" if one.page else system
                rows.append([shown, self._recipe(recipe, link), f"{p['trainable']:,}" if p else "unknown",
                             f"{sum(p['frozen'].values()):,}" if p else "unknown", f"{c['steps']:,}", _work(a_step(c)),
                             "; ".join(c["weights"])])
        return markdown(["system", "recipe", "trainable parameters", "frozen", "steps", "GFLOPs a step", "starts from"], rows)

    def _counts(self, system, link):
        """Parameters by module, a column a size; then what each stream costs."""
        recipes = self.zoo.systems[system].recipes
        found = [self.counted[name]["parameters"] for name in recipes]
        cell = lambda value: NONE if value is None else f"{value:,}"
        modules = dict.fromkeys(name for p in found for name, n in (p["parts"] if p else {}).items() if n)
        frozen = dict.fromkeys(name for p in found for name in (p["frozen"] if p else {}))
        rows = [[f"`{name}`", *(cell(p["parts"].get(name) or None if p else None) for p in found)] for name in modules]
        rows += [[f"**{title}**", *(cell(p[key] if p else None) for p in found)] for title, key in (
            ("trainable", "trainable"), ("of these in transformer layers", "transformer_layers"),
            ("without the losses' output matrices", "without_output_matrix"))]
        rows += [[f"`{name}`, frozen", *(cell(p["frozen"].get(name) if p else None) for p in found)] for name in frozen]
        parameters = markdown(["parameters", *(self._recipe(name, link) for name in recipes)], rows)
        rows = []
        for name in recipes:
            counted = self.counted[name]
            rows += [[f"`{name}`", f"`{s['name']}`", ", ".join(f"{n} ({w:g})" if w != 1 else n for n, w in s["losses"].items()),
                      f"{s['batch_size']:,}", f"{100 * s['share']:.3g} %",
                      f"unknown: {s['unknown']}" if s["gflops"] is None else f"{s['gflops']:,.2f}"] for s in counted["streams"]]
            rows.append([f"`{name}`", "**a step**", "", "", "", f"**{_work(a_step(counted))}**"])
        return parameters + markdown(["recipe", "stream", "losses", "rows", "of the steps", "GFLOPs a row"], rows)

    # ---- papers -----------------------------------------------------------------------------------------------------------
    def _paper(self, name):
        paper = self.zoo.papers[name]
        rows = [[what, *(NONE if value is None else str(value) for value in row), where]
                for where, found in paper.tables.items() for what, row in found.items()]
        return f"{paper.source}\n" + markdown(["as printed", *paper.columns, "where"], rows)

    def _whole(self, name):
        found = self.published[name]
        _, heading, rows = found.tables()[-1]  # before it stand differences
        return "\n".join([found.source, markdown(heading, rows), *(f"- {' '.join(note.split())}" for note in found.notes)])

    # ---- recorded results -------------------------------------------------------------------------------------------------
    def _runs(self, name, link):
        rows = [[run.title, self._recipe(run.recipe, link), f"{run.steps:,}", ", ".join(map(str, run.seeds)), run.time,
                 *self._cost(run), run.machine, run.date, f"`{run.command}`"] for run in self._of(name)]
        return markdown(["run", "recipe", "steps", "seeds", "time", "processor seconds", "rows in one of them", "GFLOPs a row",
                         "machine", "date", "command"], rows)

    def _cost(self, run) -> list[str]:
        """What was recorded of a run's processor; by its recipe's schedule the rows in a second of it, and what a row costs."""
        if run.processor is None or run.recipe not in self.counted:
            return [NONE] * 3
        counted = self.counted[run.recipe]
        rows, work = sum(s["batch_size"] * s["share"] for s in counted["streams"]), a_step(counted)
        return [f"{run.processor:,}", f"{rows * run.steps / run.processor:,.0f}", NONE if work is None else f"{work / rows:.2f}"]

    def _of(self, name) -> list[Run]:
        return [self.recorded.runs[run] for run in self.zoo.tables[name].runs]

    def _results(self, name):
        table, runs = self.zoo.tables[name], self._of(name)
        if len(runs) == 1 and runs[0].at:
            heading = [f"{step:,}" for step in runs[0].at]
            cells = lambda figure: [Figure(value) for value in figure.value]
        else:
            heading = [run.title for run in runs]
            cells = lambda figure: [figure]
        rows = []
        for title, metric in table.measures.items():
            floor = self.recorded.floors.get(metric)
            found = [one for run in runs for one in
                     (cells(run.figures[metric]) if metric in run.figures else [None])]
            places = max(_places(number) for one in found if one for number in (_last(one.value), one.deviation, one.floor))
            own = runs[0].figures[metric].floor if len(runs) == 1 else None
            beside = [f"{own:.{places}f}" if own is not None else
                      f"{floor.value:.{max(places, _places(floor.value))}f} ({floor.what})" if floor else ""]
            rows.append([title, *(_shown(one, places) for one in found), *(beside if table.floors else [])])
        several = [["seeds", *(str(len(run.seeds)) for run in runs), *([""] if table.floors else [])],
                   ["steps", *(f"{run.steps:,}" for run in runs), *([""] if table.floors else [])]] if len(runs) > 1 else []
        return markdown([table.heading, *heading, *(["floor"] if table.floors else [])], several + rows)

    def _tasks(self, link):
        rows = []
        for title, t in self.recorded.tasks.items():
            c = t.control
            error = f" ± {c.error:.1f}" if c and c.error is not None else ""
            held = [c.name, _spread(c.value, c.deviation, 1), f"{c.gain:+.1f}{error}"] if c else ["", "", ""]
            rows.append([f"[{title}]({link(self.file(t.recipe))})", t.unit, str(t.seeds), _spread(t.value, t.deviation, 1),
                         f"{t.floor:.1f}", t.baseline, *held])
        return markdown(["task of the pack", "metric", "seeds", "value", "floor", "a shallow baseline", "control", "its value",
                         "gain"], rows)


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    """A table, an empty line before it."""
    return "\n" + "".join("| " + " | ".join(row) + " |\n" for row in [heading, ["---"] * len(heading), *rows])


def _work(gflops: float | None) -> str:
    return "unknown" if gflops is None else f"{gflops:,.0f}"


def _last(value):
    return value[-1] if isinstance(value, list) else value


def _places(number: float | None) -> int:
    """The decimals that a recorded number was written with."""
    return len(repr(number).partition(".")[2]) if number is not None else 0


def _spread(value, deviation, places) -> str:
    return f"{value:.{places}f}" + (f" ± {deviation:.{places}f}" if deviation is not None else "")


def _shown(figure: Figure | None, places: int) -> str:
    """`52.3 ± 2.0`, with a floor of its own in brackets; a dash of none."""
    if figure is None or _last(figure.value) is None:
        return NONE
    own = f" ({figure.floor:.{places}f})" if figure.floor is not None else ""
    return _spread(_last(figure.value), figure.deviation, places) + own
