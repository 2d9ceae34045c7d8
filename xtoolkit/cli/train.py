"""Trains and evaluates a recipe: xtoolkit train --config xfm/tiny.yaml [key=value ...]

Several processes: torchrun --nproc-per-node 8 -m xtoolkit train --config ...
"""

import sys

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, recipe_parser
from xtoolkit.recipe.folder import CheckpointError, chosen, evaluated, latest, told


@command
def main(argv=None) -> int:
    parser = recipe_parser("train", __doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.output")
    how.add_argument("--eval-only", action="store_true", help="as `xtoolkit evaluate`")
    args = parser.parse_intermixed_args(argv)
    return start(args.config, args.overrides, "evaluate" if args.eval_only else "resume" if args.resume else "train")


def start(config: str, overrides, purpose: str, only=()) -> int:
    """Reads a recipe, prints its plan and does what ``purpose`` says: train, resume or evaluate. Returns the exit code.

    Args:
        only: the evaluations that are run; empty: all.
    """
    output = None
    try:
        recipe = recipes.read(config, overrides, purpose=purpose, only=only)
        purpose = purpose if recipe.streams else "evaluate"  # without streams all that it can do
        output = recipe.train.output
        return _start(config, recipe, purpose)
    except BrokenPipeError:
        raise
    except OSError as e:
        if e.errno is None:  # none of the operating system's own: its traceback is wanted
            raise
        from xtoolkit.engine.storage import explain
        print(f"{config}: {explain(e, output or '.')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        last = output and latest(output)
        print("left at once; " + (f"{last} is whole, go on with --resume" if last else "no checkpoint was written"),
              file=sys.stderr)
        return 130


def _start(config, recipe, purpose):
    from xtoolkit.cli.releases import releases
    from xtoolkit.data.errors import BadDataError
    from xtoolkit.engine import distributed
    from xtoolkit.engine.records import NoFigures
    from xtoolkit.engine.run import Run
    from xtoolkit.engine.start import check_start
    from xtoolkit.engine.storage import StorageError
    from xtoolkit.engine.finite import NonFiniteError
    from xtoolkit.engine.trainer import Stopped
    from xtoolkit.plan import make_plan
    from xtoolkit.weights.files import WeightsError
    try:
        check_start(recipe, purpose)
        output = recipe.train.output
        checkpoint = {"train": lambda output: None, "evaluate": chosen, "resume": latest}[purpose](output)
        if distributed.is_main():
            print(make_plan(recipe, checkpoint=checkpoint and told(output, checkpoint)), flush=True)
        releases()  # what they add to the known formats, for the answer to weights that do not fit
        # A checkpoint overwrites the weights to start from.
        run = Run(recipe, init=checkpoint is None)
        if purpose == "evaluate":
            run.evaluate(run.load_newest() if recipe.streams else 0, report=finish)
        else:
            run.train(purpose == "resume", report=finish)
    except (BadDataError, NonFiniteError, StorageError) as e:
        print(f"stopped: {e}", file=sys.stderr)
        return 1
    except NoFigures as e:
        print("\n".join(["evaluated, but for:", *(f"  {line}" for line in e.problems)]), file=sys.stderr)
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
    from xtoolkit.engine import records
    from xtoolkit.report import write_report
    from xtoolkit.report.tables import format_tables

    found = evaluated(output)
    if names:
        print("\n" + format_tables({name: found[name]["table"] for name in names},
                                   {name: f" ({said})" for name in names if (said := records.told(found[name]))}))
    print(f"\nreport: {write_report(output)}")
