"""Trains and evaluates a recipe: python tools/train_net.py --config projects/xfm/tiny.yaml [key=value ...]

Several processes: torchrun --nproc-per-node 8 tools/train_net.py --config ...
"""

import argparse
import sys

from xtoolkit.engine import environment
from xtoolkit.recipe.folder import CheckpointError, evaluated, latest
from xtoolkit.registry import ConfigError


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="F", help="the recipe (YAML)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.output")
    how.add_argument("--eval-only", action="store_true", help="run the evaluations on the newest checkpoint of train.output")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, e.g. train.steps=100")
    args = parser.parse_intermixed_args(argv)
    purpose = "evaluate" if args.eval_only else "resume" if args.resume else "train"
    try:
        return start(args.config, args.overrides, purpose)
    except ConfigError as e:
        return answer(args.config, e)


def start(config: str, overrides, purpose: str) -> int:
    """Reads a recipe, prints its plan and does what ``purpose`` says: train, resume or evaluate. Returns the exit code."""
    environment.share_processors()  # before anything imports torch
    from xtoolkit import recipe as recipes
    output = None
    try:
        recipe = recipes.load(config, overrides, purpose=purpose)
        output = recipe.train.output
        return _start(config, recipe, purpose)
    except OSError as e:
        if e.errno is None:  # none of the operating system's own: its traceback is wanted
            raise
        from xtoolkit.engine.storage import explain
        print(f"{config}: {explain(e, output or '.')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        last = output and latest(output)
        print("left at once; " + (f"{last} is whole, go on with --resume" if last else "no checkpoint was written"), file=sys.stderr)
        return 130


def _start(config, recipe, purpose):
    from xtoolkit.data.errors import BadDataError
    from xtoolkit.engine import distributed, run
    from xtoolkit.engine.storage import StorageError
    from xtoolkit.engine.trainer import NonFiniteError, Stopped
    from xtoolkit.plan import as_text, make_plan
    from xtoolkit.weights.files import WeightsError
    try:
        run.check_start(recipe, purpose)
        if distributed.is_main():
            print(as_text(make_plan(recipe)), flush=True)
        if purpose == "evaluate":
            run.evaluate(recipe, report=finish)
        else:
            run.train(recipe, purpose == "resume", report=finish)
    except (BadDataError, NonFiniteError, StorageError) as e:
        print(f"stopped: {e}", file=sys.stderr)
        return 1
    except (WeightsError, CheckpointError) as e:
        print(f"{config}: {e}", file=sys.stderr)
        return 2
    except Stopped as e:
        print(e, file=sys.stderr)
        return e.code
    return 0


def finish(output, names) -> None:
    """Prints the tables of the evaluations named and writes the report, from what the run's folder holds."""
    from xtoolkit.report.page import format_table, write_report

    found = evaluated(output)
    for name in names:
        print("\n" + name + "\n" + format_table(found[name]["metrics"], found[name]["floor"]))
    print(f"\nreport: {write_report(output, {})}")


def answer(config: str, error: ConfigError) -> int:
    """Prints every mistake; returns the exit code for them."""
    count = len(error.problems)
    print(f"{config}: {count} problem{'s' * (count > 1)}, nothing was started", file=sys.stderr)
    print("\n".join(f"  {p}" for p in error.problems), file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    return 2
