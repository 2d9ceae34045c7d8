"""Fine-tunes a pretrained run on every task of a table, over several seeds, and writes one table:

    xtoolkit finetune_all --init outputs/xfm_tiny

A job is one recipe with one seed, in a folder of its own below the table's `output`. What is finished is not run again, what was
interrupted goes on, so the same command goes on where it was. The table is written anew after each job: table.md and table.json.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time

from xtoolkit.cli import recipes
from xtoolkit.cli.command import Once, command, parser as make_parser
from xtoolkit.cli.finetune_table import Job, Table, check_recipes, decimals, jobs_of, read, write
from xtoolkit.registry import ConfigError

TABLE = "xfm/finetune/tiny/all.yaml"


@command
def main(argv=None) -> int:
    parser = make_parser("finetune_all", __doc__)
    parser.add_argument("--config", metavar="F", action=Once, help=f"the table (default: {TABLE})")
    parser.add_argument("--init", metavar="RUN", action=Once, help="the pretrained run or weights (default: the table's)")
    parser.add_argument("--output", metavar="DIR", action=Once, help="the folder of all jobs (default: the table's)")
    parser.add_argument("--seeds", type=seed, nargs="+", metavar="N", help="seeds (default: the table's)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows")
    parser.add_argument("--no-controls", action="store_true", help="the rows themselves only")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs and which are finished, and run none")
    args = parser.parse_args(argv)
    path = recipes.find(args.config or TABLE)
    given = {"init": args.init, "output": args.output, "seeds": args.seeds}
    table = dataclasses.replace(read(path), **{key: value for key, value in given.items() if value is not None})
    if not os.path.exists(table.init):
        raise ConfigError(f"--init: {table.init}: no such run or file of weights; `make demo` makes outputs/xfm_tiny")
    if len(set(table.seeds)) < len(table.seeds):
        raise ConfigError(f"--seeds: one of {table.seeds} comes twice: the same job would count twice")
    jobs = jobs_of(table, os.path.dirname(path), args.only, not args.no_controls)
    check_recipes(jobs)
    if args.dry_run:
        return look(jobs)
    if changed := [f"{job.folder}: finished with another recipe: {line}; name another folder (--output), or remove it"
                   for job in jobs if job.complete for line in job.changes()]:
        raise ConfigError(changed)
    return run(jobs, table)


def seed(text: str) -> int:
    """A seed of `--seeds`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is none: an integer of at least 0")
    return int(text)


def look(jobs: list[Job]) -> int:
    """Prints every job, and what is still to run of it."""
    for number, job in enumerate(jobs, 1):
        todo = "finished" if job.complete else f"xtoolkit train --config {job.recipe} {' '.join(job.overrides)}"
        print(f"[{number}/{len(jobs)}] {job}: {todo}")
    return 0


def run(jobs: list[Job], table: Table) -> int:
    """Runs what is not finished and writes the table after each job. 1 where a job failed; the others are run all the same."""
    failed, text = 0, ""
    for number, job in enumerate(jobs, 1):
        at, started = f"[{number}/{len(jobs)}] {job}", time.perf_counter()
        code = 0 if job.complete else train(job)
        if code:
            failed += 1
            print(f"{at}: exit code {code}, see {job.folder}.log, which ends with:\n{end_of_log(job)}", file=sys.stderr)
        else:
            found = {title: job.value(metric) for title, metric in table.rows[job.row].metrics.items()}
            if lacking := [line for metric in table.rows[job.row].metrics.values() if (line := job.lacks(metric))]:
                failed += 1
                print("\n".join(f"{at}: {line}" for line in lacking), file=sys.stderr)
            told = ", ".join(f"{title} {value:.{decimals([value])}f}" for title, value in found.items() if value is not None)
            print(f"{at}: {time.perf_counter() - started:.0f} s; {told or 'none of its metrics'}", flush=True)
        text = write(jobs, table)
    print(f"\n{text}\n\ntable: {table.output}/table.md, and table.json")
    return int(failed > 0)


def train(job: Job) -> int:
    """Runs a job, or what is left of it, in a process of its own, whose words go to `FOLDER.log`. Returns its exit code."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{job.folder}.log", "a", encoding="utf-8") as log:
        return subprocess.call([sys.executable, "-m", "xtoolkit", "train", "--config", job.recipe, "--resume", *job.overrides],
                               stdout=log, stderr=log)


def end_of_log(job: Job) -> str:
    with open(f"{job.folder}.log", encoding="utf-8") as log:
        return "".join(f"    {line}" for line in log.readlines()[-4:]).rstrip()
