"""The jobs of a table: what is pretrained, what is fine-tuned or evaluated from it, where each lies, and how far it is."""

import fcntl
import gzip
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from xtoolkit.ablation.machines import DONE, machines
from xtoolkit.ablation.recipe import Recipe, There
from xtoolkit.ablation.table import START, Column, Control, Table, slug
from xtoolkit.recipe.folder import EVALUATIONS, evaluated, latest
from xtoolkit.registry import ConfigError, nearest

LOCK = ".lock"  # beside it: held while somebody runs it
PLACE = re.compile(r"<(\d+)>")  # in a recipe's lines: which of a job's starts
FINISHED, OLDER, MISSING = "finished", "finished by an older engine", "missing"  # states of a job, among others
PRETRAIN, RUN = "pretrain", "run"  # folders of a column, and of a row without a control


@dataclass(eq=False)
class Job:
    """One recipe with one seed.

    Attributes:
        column, row, control: where its figures stand; ``row`` is empty for what is pretrained, ``control`` for the row itself.
        seed: of the table.
        recipe: a ``Recipe`` of the table with its overrides, which all seeds share.
        trained: the seed that it is trained with.
        place: the folder of this cell, with a folder a key in it.
        after: what it starts from, in the order in which its recipe counts them.
    """

    column: str
    row: str
    control: str
    seed: int
    recipe: Recipe
    trained: int
    place: Path
    after: list["Job | There"]

    def __str__(self) -> str:
        return ", ".join([*(name for name in (self.column, self.row, self.control) if name), f"seed {self.seed}"])

    @cached_property
    def key(self) -> str:
        """16 hex digits, of all that its figures depend on."""
        from xtoolkit.ablation import keys

        return keys.digest("\n".join([self.recipe.key, str(self.trained), *(start.key for start in self.after)]))[:16]

    @cached_property
    def folder(self) -> Path:
        """Where it lies: a job of another key has a folder of its own."""
        return self.place / self.key

    @property
    def overrides(self) -> list[str]:
        """What its recipe is changed by, ``key=value``."""
        return [*self.begun, f"train.seed={self.trained}", f"train.output={self.folder}"]

    @property
    def begun(self) -> list[str]:
        """Its recipe's lines with the folders of what it starts from; other text in angle brackets stays as it is."""
        folder = lambda found: str(self.after[int(found[1])].folder) if int(found[1]) < len(self.after) else found[0]
        return [PLACE.sub(folder, line) for line in self.recipe.lines]

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / DONE).is_file()

    @property
    def stale(self) -> Path | None:
        """The folder of the newest finished job of this cell with another key: what it depends on has changed since."""
        found = [path.parent for path in self.place.glob(f"*/{DONE}") if path.parent != self.folder]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    @property
    def state(self) -> str:
        """``finished``, ``finished by an older engine``, ``running``, ``stale`` or ``missing``."""
        if self.complete:
            from xtoolkit.ablation import keys

            told = json.loads((self.folder / DONE).read_text(encoding="utf-8"))
            older = told["engine"] != keys.engine() or any(isinstance(one, Job) and one.state == OLDER for one in self.after)
            return OLDER if older else FINISHED
        lock = Path(f"{self.folder}{LOCK}")
        if lock.is_file():
            with open(lock, "rb") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return "running"
        return "stale" if self.stale else MISSING

    def value(self, metric: str, what: str = "metrics") -> float | None:
        """Its figure, or its floor; None where it has none (yet)."""
        evaluation, _, name = metric.partition(".")
        record = evaluated(self.folder).get(evaluation) if self.complete else None
        return None if record is None else record[what].get(name)

    def lacks(self, metric: str) -> str | None:
        """What its results do not have of a metric; None: nothing."""
        evaluation, _, name = metric.partition(".")
        known = evaluated(self.folder)
        if evaluation not in known:
            return f"`{metric}`: it ran no evaluation `{evaluation}`{nearest(evaluation, known)}"
        given = known[evaluation]["metrics"]
        return None if name in given else f"`{metric}`: evaluation `{evaluation}` gives no `{name}`{nearest(name, given)}"

    def samples(self, metric: str) -> dict[str, dict]:
        """{sample: what a metric's evaluation kept of it}, from ``samples.jsonl`` or ``samples.jsonl.gz``. Samples are told by
        their ids, or by their places where several have one id: texts about a picture that are called by it."""
        path = self.folder / EVALUATIONS / metric.partition(".")[0] / "samples.jsonl"
        path, opened = (path, open) if path.is_file() else (path.with_name(f"{path.name}.gz"), gzip.open)
        if not (self.complete and path.is_file()):
            return {}
        with opened(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        ids = [str(row["id"]) for row in rows]
        return dict(zip(ids if len(set(ids)) == len(ids) else map(str, range(len(ids))), rows))


class Jobs:
    """All jobs of a table, made as they are asked for: a start that several columns share is one job."""

    def __init__(self, table: Table, folder: str, threads: int = 1, library: str | None = None, machine: list | None = None):
        """
        Args:
            folder: of the table's file, in which its recipes lie.
            threads: of each job; part of its key.
            library, machine: see ``Recipe``. A seed that is whole on another machine stays, so that a table goes on elsewhere, a
                seed a machine: pairs never mix two.
        """
        self.table, self._beside, self._threads, self._library, self._machine = table, folder, threads, library, machine
        self._recipes: dict[tuple, Recipe] = {}
        self._made: dict[tuple, Job | There] = {}
        self._on: dict[int, list | None] = {}  # {seed: its machine}

    def all(self, only=(), controls: bool = True, seeds=None) -> list[Job]:
        """Seed by seed, column by column, each job after those that it starts from: whenever time runs out, the first seeds are
        whole.

        Args:
            only: (column, row) of the cells; an empty name is any, and a column without a row is pretrained even where no row
                applies. Empty: all cells.
            seeds: of the table's; None: all.

        Raises:
            ConfigError: an unknown name; a recipe that is none.
        """
        table, found = self.table, []
        wrong = [f"--only: no column `{one}`{nearest(one, table.columns)}" for one, _ in only if one and one not in table.columns]
        wrong += [f"--only: no row `{one}`{nearest(one, table.rows)}" for _, one in only if one and one not in table.rows]
        if wrong:
            raise ConfigError(wrong)
        asked = lambda column, row: not only or any(c in ("", column) and r in ("", row) for c, r in only)
        for seed in table.seeds if seeds is None else seeds:
            for column in table.columns:
                cells = [job for job in self.cells(column, seed, controls) if asked(column, job.row)]
                alone = [self.pretrained("columns", column, seed)] if not only or (column, "") in only else []
                for job in [*alone, *cells]:
                    found += [one for one in (*_chain(job), job) if isinstance(one, Job) and one not in found]
        return found

    def elsewhere(self, output: str) -> "Jobs":
        """The same table's in another folder."""
        return Jobs(replace(self.table, output=output), self._beside, self._threads, self._library, self._machine)

    def check(self, jobs: list[Job]) -> None:
        """Raises ConfigError with the mistakes of all recipes, each once: a job of hours may stand before the one that has it.
        Those of the whole table come first, as it is written after each job with the state of all its cells. Missing files count
        where a job starts from nothing that is still to be made."""
        from xtoolkit import recipe as recipes

        found: dict[str, None] = {}
        for one in dict.fromkeys(one for job in self.all() for one in (job.recipe, *job.after) if not isinstance(one, Job)):
            try:
                one.key  # what a figure depends on: it is read, and kept
            except ConfigError as error:
                found |= dict.fromkeys(error.problems)
        if found:
            raise ConfigError(list(found))
        for job in jobs:
            for start in job.after if not job.complete else ():
                if isinstance(start, Job) and start.complete and latest(start.folder) is None:
                    found[f"{start}: finished, and its weights are not here, as in a copy: go on where they are, ask for other "
                          f"seeds, or remove {start.folder} to train it again"] = None
        for job in {id(job.recipe): job for job in jobs if not job.complete}.values():
            there = all(isinstance(start, There) for start in job.after)
            lines = job.begun if there else job.recipe.lines
            try:
                recipes.load(job.recipe.path, [*lines, f"train.output={job.folder}"], there, "resume", self._library)
            except ConfigError as error:
                found |= dict.fromkeys(error.problems)
        if found:
            raise ConfigError(list(found))

    def cells(self, column: str, seed: int, controls: bool = True) -> list[Job]:
        """What is fine-tuned or evaluated of a column with a seed."""
        table, found = self.table, []
        for name, row in table.rows.items():
            if table.applies(row, table.columns[column]):
                found += [self.cell(column, name, control, seed) for control in ("", *(row.controls if controls else ()))]
        return found

    def cell(self, column: str, row: str, control: str, seed: int) -> Job:
        """The job of one cell."""
        task, how = self.table.rows[row], self.table.controls[control] if control else Control()
        place = Path(self.table.output) / slug(column) / slug(row) / slug(control or RUN) / f"seed_{seed}"
        name, changes = how.recipe or task.recipe, [*task.set, *self.table.columns[column].rows, *how.set]
        recipe, after = self._recipe(name, ["init=<0>", *changes], seed), [self.pretrained("columns", column, seed)]
        if not recipe.begins:
            recipe, after = self._recipe(name, changes, seed), []
        return self._kept((column, row, control, seed),
                          lambda: Job(column, row, control, seed, recipe, seed + self.table.apart, place, after))

    def pretrained(self, kind: str, name: str, seed: int) -> Job | There:
        """What is pretrained for a column (kind ``columns``) or a start, or is there."""
        column: Column = getattr(self.table, kind)[name]
        if column.run is not None:
            return self._kept((kind, name), lambda: There(Path(column.run)))
        place = Path(self.table.output) / (slug(name) if kind == "columns" else f"start-{slug(name)}") / PRETRAIN / f"seed_{seed}"
        begun = self.table.begins_with(column)
        lines = [START.sub(lambda found: f"<{begun.index(found[1])}>", line) for line in self.table.overrides(column)]
        recipe = self._recipe(column.recipe or self.table.recipe, lines, seed)
        after = [self.pretrained("starts", one, seed) for one in begun]
        return self._kept((kind, name, seed), lambda: Job(name, "", "", seed, recipe, seed + column.apart, place, after))

    def _kept(self, name, make):
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _recipe(self, name, lines, seed) -> Recipe:
        machine = self._machine_of(seed)
        known = (name, *lines, str(machine))
        if known not in self._recipes:
            self._recipes[known] = Recipe(os.path.join(self._beside, name), lines, self._threads, self._library, machine)
        return self._recipes[known]

    def machines(self) -> dict[str, list]:
        """{seed, as text: its machine}, of the seeds that are whole."""
        return {str(seed): of[0].recipe.on for seed in self.table.seeds if (of := self._whole(seed))}

    def _machine_of(self, seed) -> list | None:
        """Another one where all of a seed was run there, else that of all others."""
        if seed not in self._on:
            for machine in [*machines(self.table.output, seed), None]:
                self._on[seed] = machine or self._machine
                self._made = {name: job for name, job in self._made.items() if name[-1] != seed}
                if machine is None or self._whole(seed):
                    break
        return self._on[seed]

    def _whole(self, seed) -> list[Job]:
        """The jobs of a seed, without controls, if all of them are finished."""
        found = self.all(controls=False, seeds=[seed])
        return found if all(job.complete for job in found) else []


def _chain(job):
    """The jobs before a job, the first ones first."""
    return [one for start in getattr(job, "after", ()) for one in (*_chain(start), start)]


def write_done(job: Job, seconds: float, processor: float | None = None, engine: str | None = None) -> None:
    """Says that all of a job is there, with which engine it ran, where, and how long.

    Args:
        seconds: of the call that has ended it.
        processor: seconds that all processors together spent on it; None: not known, as it was begun by a call that was killed.
        engine: that it ran with, or those; None: this one.
    """
    from xtoolkit.ablation import keys
    from xtoolkit.engine.records import write_json

    spent = None if processor is None else round(processor, 1)
    write_json(job.folder / DONE, {"job": str(job), "key": job.key, "engine": engine or keys.engine(), "machine": job.recipe.on,
                                   "seconds": round(seconds, 1), "processor_seconds": spent})
