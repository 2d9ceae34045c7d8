"""Measures a recipe's data: samples a second by number of workers, and the share of a step spent waiting for it.

The rate is that of a reader that does nothing else, once the batches prefetched at its start are used up. The share is
measured on real steps of the model (random weights) whose batches come from the workers meanwhile; ``--step-seconds``
sleeps in their place, which is what a step on another device looks like from here.
"""

import json
import sys
import time
from pathlib import Path

from xtoolkit.cli.benchmarks import setting

HELP = "loading: samples a second by workers, and the share of a step spent waiting"
PREFETCHED = 2  # batches that a worker keeps ready


def add_arguments(parser) -> None:
    """Options of this benchmark."""
    setting.add_arguments(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2), metavar="N",
                        help="processes a stream; 0: in the training process itself (default: 0 1 2)")
    parser.add_argument("--batches", type=int, default=16, metavar="N",
                        help="batches read at each number (default: 16)")
    parser.add_argument("--steps", type=int, default=4, metavar="N",
                        help="steps over which waiting is measured; 0: not at all (default: 4)")
    parser.add_argument("--step-seconds", type=float, metavar="S",
                        help="sleep so long in the place of a step; no model is then run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, unrounded")


def main(args) -> int:
    """Measures, prints, writes. Returns 0, or 2 for what cannot be done."""
    from xtoolkit.data.errors import BadDataError

    if min(args.workers) < 0 or args.batches < 1 or args.steps < 0:
        print("--workers and --steps must be 0 or more, --batches at least 1", file=sys.stderr)
        return 2
    try:
        found = measure(setting.read_recipe(args), args.stream, args.workers, args.batches, args.steps,
                        args.step_seconds)
    except BadDataError as e:
        print(e, file=sys.stderr)
        return 2
    print(as_text(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(recipe, streams, workers, batches, steps, step_seconds) -> dict:
    """All figures, as JSON has them: a row for each stream and number of workers."""
    from xtoolkit.data.loader import Loader
    from xtoolkit.engine import environment
    from xtoolkit.engine.run import Run
    from xtoolkit.engine.device import pick_device

    run, device = Run(recipe, init=False), pick_device(recipe.train.device)
    take = _sleeper(step_seconds) if step_seconds is not None else _trainer(run, device) if steps else None
    found = {"machine": environment.machine(device), "torch": environment.versions()["torch"],
             "git": environment.git_hash(), "batches": batches, "steps": steps, "step_seconds": step_seconds,
             "rows": []}
    for name in streams or recipe.streams:
        stream, dataset = recipe.streams[name], run.loaders[name].dataset
        for count in workers:
            make = lambda: Loader(name, dataset, stream.batch_size, recipe.train.seed, count,
                                  max_bad=recipe.train.max_bad)
            rate, bad = read(make(), batches, stream.batch_size, count)
            row = {"stream": name, "batch_size": stream.batch_size, "workers": count, "samples_per_s": rate,
                   "samples_per_s_per_worker": rate / max(1, count), "bad": bad}
            if take:
                row |= dict(zip(("waiting", "step_s"), wait(make(), name, steps, take)))
            found["rows"].append(row)
    return found


def read(loader, batches: int, batch_size: int, workers: int) -> tuple[float, int]:
    """Samples a second once what was prefetched during the start has been used up, and how many were bad."""
    first = max(1, PREFETCHED * workers)
    try:
        for visit in range(first):
            loader.at(visit)
        began = time.perf_counter()
        for visit in range(first, first + batches):
            loader.at(visit)
        seconds = time.perf_counter() - began
        return batches * batch_size / seconds, sum(loader.report()["bad"].values())
    finally:
        loader.close()


def wait(loader, stream: str, steps: int, take) -> tuple[float, float]:
    """The share of ``steps`` steps that was spent waiting, and the seconds a step; a first one does not count."""
    try:
        take(stream, loader.at(0))
        began, waited = time.perf_counter(), loader.wait_s
        for visit in range(1, max(1, steps) + 1):
            take(stream, loader.at(visit))
        seconds = time.perf_counter() - began
        return (loader.wait_s - waited) / seconds, seconds / max(1, steps)
    finally:
        loader.close()


def _sleeper(seconds: float):
    return lambda stream, batch: time.sleep(seconds)


def _trainer(run, device):
    """Forward, backward and update on a batch that has been read already."""
    from xtoolkit.cli.benchmarks.step import Stepper

    stepper, precision = Stepper(run.model, device), run.recipe.train.precision
    return lambda stream, batch: stepper.take(stream, lambda: batch, precision)


def as_text(found: dict) -> str:
    """The figures as a table."""
    from xtoolkit.report.tables import aligned

    machine = found["machine"]
    step = "a step" if found["step_seconds"] is None else f"a sleep of {found['step_seconds']:g} s"
    head = ["stream", "batch", "workers", "samples/s", "a worker", "bad", f"{step} s", "of it waiting"]
    rows = [[r["stream"], f"{r['batch_size']:,}", str(r["workers"]), f"{r['samples_per_s']:,.0f}",
             f"{r['samples_per_s_per_worker']:,.0f}", str(r["bad"]),
             *([f"{r['step_s']:.3f}", f"{r['waiting']:.1%}"] if "waiting" in r else ["", ""])] for r in found["rows"]]
    return (f"{machine['cpu']}, {machine['cores']} cores; torch {found['torch']}; commit {found['git']}\n"
            + aligned([head, *rows]))
