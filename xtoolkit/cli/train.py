"""Trains and evaluates a recipe: python tools/train_net.py --config projects/xfm/tiny.yaml [key=value ...]

Several processes: torchrun --nproc-per-node 8 tools/train_net.py --config ...
"""

import argparse
import sys

from xtoolkit.registry import ConfigError


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="F", help="the recipe (YAML)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of train.output")
    how.add_argument("--eval-only", action="store_true", help="run the evaluations on the newest checkpoint of train.output")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, e.g. train.steps=100")
    args = parser.parse_intermixed_args(argv)
    try:
        from xtoolkit import recipe as recipes
        purpose = "evaluate" if args.eval_only else "resume" if args.resume else "train"
        recipe = recipes.load(args.config, args.overrides, purpose=purpose)
    except ConfigError as e:
        return answer(args.config, e)
    from xtoolkit.cli.releases import releases
    from xtoolkit.data.errors import BadDataError
    from xtoolkit.weights.files import WeightsError
    from xtoolkit.engine import distributed, run
    from xtoolkit.engine.checkpoint import CheckpointError
    from xtoolkit.engine.trainer import NonFiniteError, Stopped
    from xtoolkit.plan import as_text, make_plan
    try:
        if distributed.is_main():
            print(as_text(make_plan(recipe)), flush=True)
        releases()  # what they add to the known formats, for the answer to weights that do not fit
        if args.eval_only:
            run.evaluate(recipe, report=finish)
        else:
            run.train(recipe, args.resume, report=finish)
    except ConfigError as e:
        return answer(args.config, e)
    except (BadDataError, NonFiniteError) as e:
        print(f"stopped: {e}", file=sys.stderr)
        return 1
    except (WeightsError, CheckpointError, FileNotFoundError, PermissionError) as e:
        print(f"{args.config}: {e}", file=sys.stderr)
        return 2
    except Stopped as e:
        print(e, file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print("left at once; the last checkpoint is whole, go on with --resume", file=sys.stderr)
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


def answer(config: str, error: ConfigError) -> int:
    """Prints every mistake; returns the exit code for them."""
    count = len(error.problems)
    print(f"{config}: {count} problem{'s' * (count > 1)}, nothing was started", file=sys.stderr)
    print("\n".join(f"  {p}" for p in error.problems), file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    return 2
