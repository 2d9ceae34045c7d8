"""Trains and evaluates a recipe: xtoolkit train --config xfm/tiny.yaml [key=value ...]

Several processes: torchrun --nproc-per-node 8 -m xtoolkit train --config ...
"""

import sys

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, recipe_parser
from xtoolkit.registry import ConfigError


@command
def main(argv=None) -> int:
    parser = recipe_parser("train", __doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.output")
    how.add_argument("--eval-only", action="store_true", help="as `xtoolkit evaluate`")
    args = parser.parse_intermixed_args(argv)
    return start(args.config, args.overrides, "evaluate" if args.eval_only else "resume" if args.resume else "train")


def start(config: str, overrides, purpose: str) -> int:
    """Reads a recipe, prints its plan and does what ``purpose`` says: train, resume or evaluate. Returns the exit code."""
    recipe = recipes.read(config, overrides, purpose=purpose)
    from xtoolkit.data.errors import BadDataError
    from xtoolkit.weights.files import WeightsError
    from xtoolkit.engine import distributed, run
    from xtoolkit.engine.checkpoint import CheckpointError
    from xtoolkit.engine.trainer import NonFiniteError, Stopped
    from xtoolkit.plan import as_text, make_plan
    from xtoolkit.recipe.folder import latest
    try:
        run.check_start(recipe, purpose)
        if distributed.is_main():
            print(as_text(make_plan(recipe)), flush=True)
        if purpose == "evaluate":
            run.evaluate(recipe, report=finish)
        else:
            run.train(recipe, purpose == "resume", report=finish)
    except ConfigError:
        raise
    except (BadDataError, NonFiniteError) as e:
        print(f"stopped: {e}", file=sys.stderr)
        return 1
    except (WeightsError, CheckpointError, FileNotFoundError, PermissionError) as e:
        print(f"{config}: {e}", file=sys.stderr)
        return 2
    except Stopped as e:
        print(e, file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        last = latest(recipe.train.output)
        print("left at once; " + (f"{last} is whole, go on with --resume" if last else "no checkpoint was written yet"),
              file=sys.stderr)
        return 130
    return 0


def finish(run) -> None:
    """Prints the tables and writes the report."""
    from xtoolkit.report.gallery import collect_gallery
    from xtoolkit.report.page import format_table, write_report

    batches = {name: loader.at(0) for name, loader in run.loaders.items()}
    gallery = collect_gallery(run.results, run.eval_loaders, batches, run.tokenizer)
    for name, result in run.results.items():
        print("\n" + name + "\n" + format_table(result["metrics"], result["floor"]))
    print(f"\nreport: {write_report(run.recipe.train.output, gallery)}")
