"""Runs a table: pretrains its columns, fine-tunes or evaluates its rows from each, over seeds, and writes one table:

    xtoolkit ablate --config xfm/ablations/table5_tiny.yaml

A job is one recipe with one seed, in a folder of its own below the table's `output`, called by a key of all that its figures
depend on. What is finished is not run again, what was interrupted goes on, and what has changed since is run anew: the same
command goes on where it was. The table is written anew after each job, table.md, .json, .csv and .tex, and at the end as a page,
table.html.
"""

import dataclasses
import os
import sys

from xtoolkit.ablation import copies, machines, results
from xtoolkit.ablation.apart import alike
from xtoolkit.ablation.contrasts import SEEDS, decimals
from xtoolkit.ablation.forecast import HOUR, Forecast, span
from xtoolkit.ablation.jobs import Jobs
from xtoolkit.ablation.runner import Runner
from xtoolkit.ablation.slurm import Cluster, Slurm
from xtoolkit.ablation.table import Table, read
from xtoolkit.cli import recipes
from xtoolkit.cli.command import Once, command, parser as make_parser, positive, whole
from xtoolkit.recipe.folder import check_writable
from xtoolkit.registry import ConfigError


@command
def main(argv=None) -> int:
    parser = make_parser("ablate", __doc__)
    parser.add_argument("--config", metavar="F", required=True, action=Once, help="the table (YAML)")
    parser.add_argument("--only", metavar="COLUMN,ROW", nargs="+", default=[],
                        help="these cells: COLUMN, COLUMN,ROW or ,ROW; without a row the whole column")
    add_arguments(parser)
    args = parser.parse_args(argv)
    path = recipes.find(args.config)
    table = read(path, str(recipes.folder()))
    return run(table, path, args, [_cell(one, table.columns) for one in args.only])


def _cell(one, columns) -> tuple[str, str]:
    """COLUMN,ROW as two names; a column's may have a comma."""
    column = max((name for name in columns if f"{one},".startswith(f"{name},")), key=len, default=one.partition(",")[0])
    return column, one[len(column) + 1:]


def add_arguments(parser) -> None:
    """What `ablate` and `finetune_all` share."""
    parser.add_argument("--output", metavar="DIR", action=Once, help="the folder of all jobs (default: the table's)")
    parser.add_argument("--seeds", type=whole, nargs="+", metavar="N", help="seeds (default: the table's)")
    parser.add_argument("--jobs", type=positive, metavar="N", default=1,
                        help="so many side by side, the cores shared out (default: 1)")
    parser.add_argument("--no-controls", action="store_true", help="the rows themselves only")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and how far each is, and run none")
    parser.add_argument("--forecast", action="store_true",
                        help="print what the jobs would take, from a few steps of each recipe, and run none")
    parser.add_argument("--copy", metavar="DIR", action=Once,
                        help="copy what is finished, without weights, to a folder where the table goes on with other seeds, and "
                        "run none")
    parser.add_argument("--slurm", metavar="PARTITION", action=Once,
                        help="run the jobs by Slurm, --jobs so many at once, with no forecast: a partition, or a YAML file of "
                        "submitit's parameters")
    parser.add_argument("--yes", action="store_true", help="measure nothing beforehand, and run however long it takes")


def run(table: Table, path: str, args, only=()) -> int:
    """Runs what is not finished of a table and writes it after each job. 1 where a job failed; the others run all the same."""
    seeds = table.seeds if args.seeds is None else args.seeds
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: one of {seeds} comes twice: the same job would count twice")
    # What is there of other seeds stays in the table.
    output = args.output or table.output
    table = dataclasses.replace(table, output=output, seeds=sorted({*table.seeds, *seeds, *machines.seeds(output)}))
    if table.contrasts and len(table.seeds) > SEEDS:
        raise ConfigError(f"{len(table.seeds)} seeds: a table with contrasts has {SEEDS} at most, whose signs are all flipped")
    check_writable(table.output, "--output" if args.output else f"{path}: output")
    if problems := alike(table):
        raise ConfigError(problems)
    say = lambda line: print(line, flush=True)
    cluster = None if args.slurm is None else Cluster(args.slurm, table.output)
    if cluster and args.forecast:
        raise ConfigError("--forecast: it measures on this machine, and --slurm runs on others: ask it on one of them")
    threads = cluster.threads if cluster else max(1, len(os.sched_getaffinity(0)) // args.jobs)
    machine = cluster.machine(say) if cluster else None
    jobs = Jobs(table, os.path.dirname(path), threads, str(recipes.folder()), machine)
    todo = jobs.all(only, not args.no_controls, seeds)
    jobs.check(todo)
    if args.dry_run:
        for number, job in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {job}: {job.state}")
        return 0
    try:
        os.makedirs(table.output, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{table.output}: the table's folder cannot be made: {error.strerror}") from None

    def told(job):
        found = {title: job.value(metric) for title, metric in (table.rows[job.row].metrics.items() if job.row else ())}
        if known := [f"{title} {value:.{decimals([value])}f}" for title, value in found.items() if value is not None]:
            print(f"    {', '.join(known)}", flush=True)
        results.write(jobs)
        return lacking(job)

    def lacking(job):
        return [line for metric in (table.rows[job.row].metrics.values() if job.row else ()) if (line := job.lacks(metric))]

    if args.copy is not None:
        print(f"{results.write(copies.copy(jobs, args.copy), page=True)}\n\ncopied: {args.copy}")
        return 0
    for job in todo:
        for line in lacking(job) if job.complete else ():
            raise ConfigError(f"{job}: {line}")
    if args.forecast or not args.yes and not cluster:
        forecast = Forecast(jobs, todo, args.jobs, table.weights == "all", say)
        print(f"{forecast.text()}\n", flush=True)
        if args.forecast:
            return 0
        _ask(forecast)
    results.write(jobs)  # keeps what is asked before there are figures, also where the first job is a row
    how = todo, args.jobs, table.weights == "all", say, told
    failed = (Slurm(cluster, *how) if cluster else Runner(*how)).run()
    print(f"\n{results.write(jobs, page=True)}\n\ntable: {table.output}/table.md, and .json, .csv, .tex, .html")
    return int(bool(failed))


def _ask(forecast: Forecast) -> None:
    """Ends the call where it would take long and nobody says that it may."""
    if forecast.clock > HOUR:
        if not sys.stdin.isatty():
            raise ConfigError(f"the jobs would take {span(forecast.clock)}: --yes runs what takes longer than an hour")
        if input(f"this takes {span(forecast.clock)}: run it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ConfigError("not run: no `y` was given; what was measured is kept")
