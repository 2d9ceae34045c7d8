"""How much of each loss reaches each encoder, and which losses conflict there: the gradient of every weighted loss, each alone.

  xtoolkit audit_gradients outputs/xfm_tiny                        # a run's weights, on batches of its streams
  xtoolkit audit_gradients outputs/xfm_tiny stop_gradient=null     # the same weights, without the cuts
  xtoolkit audit_gradients --config xfm/tiny.yaml --batches 4      # the weights that a run starts from

Norms are of the mean gradient over the batches, 0 where exactly nothing arrives; cosines are over the parameters that both losses
reach. In the run itself, over training: the hook {type: LossGradients}. Nothing is written but what --json names.
"""

import sys
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import Once, command, parser as make_parser, positive, whole
from xtoolkit.recipe.folder import CONFIG, CheckpointError
from xtoolkit.registry import ConfigError


@command
def main(argv=None) -> int:
    parser = make_parser("audit_gradients", __doc__)
    parser.add_argument("what", nargs="*", metavar="RUN | key=value", help="a run's output folder; changes to its recipe")
    parser.add_argument("--config", metavar="F", action=Once,
                        help="in place of RUN: a recipe, with the weights it starts from")
    parser.add_argument("--batches", type=positive, default=1, metavar="N", help="batches of each stream (default: %(default)s)")
    parser.add_argument("--first", type=whole, default=0, metavar="N", help="the first of these batches (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write norms and cosines there too")
    args = parser.parse_intermixed_args(argv)
    runs, overrides = [one for one in args.what if "=" not in one], [one for one in args.what if "=" in one]
    if len(runs) + (args.config is not None) != 1:
        parser.error(f"name one RUN or one --config, not {', '.join([*runs, *filter(None, [args.config])]) or 'none'}")
    if runs and not (Path(runs[0]) / CONFIG).is_file():
        raise ConfigError(f"{runs[0]}: holds no run: it has no {CONFIG}; name the `train.output` of a run")
    if args.json and not args.json.parent.is_dir():
        raise ConfigError(f"--json: {args.json.parent}: no such folder")
    from xtoolkit.data.errors import BadDataError
    from xtoolkit.weights.files import WeightsError
    try:
        return audit(args, runs, overrides)
    except BadDataError as e:
        print(f"stopped: {e}", file=sys.stderr)
        return 1
    except (WeightsError, CheckpointError) as e:
        print(f"{(runs or [args.config])[0]}: {e}", file=sys.stderr)
        return 2


def audit(args, runs, overrides) -> int:
    """Builds the model, takes the gradients and prints them. Returns the exit code."""
    from xtoolkit.engine.records import write_json
    from xtoolkit.engine.run import Run
    from xtoolkit.hooks.by_loss import cosines, norms

    if runs:  # a checkpoint overwrites the weights to start from, whose files need not be there
        recipe = recipes.read(str(Path(runs[0]) / CONFIG), [*overrides, f"train.output={runs[0]}"], missing_files=False)
    else:
        recipe = recipes.read(args.config, overrides)
    if not recipe.streams:
        raise ConfigError("the recipe has no `streams`: no loss is trained, so there is no gradient")
    run = Run(recipe, init=not runs)
    step = run.load_newest() if runs else 0
    rows, encoders = gradients(run, args.first, args.batches), list(run.model.encoders)
    sizes, agree = norms(rows, encoders), cosines(rows, encoders)
    print(f"{runs[0] if runs else args.config}, step {step:,}, {args.batches} batch{'es' * (args.batches > 1)} of each stream\n")
    print(told(sizes, agree))
    if args.json:
        write_json(args.json, {"step": step, "first": args.first, "batches": args.batches, "norms": sizes, "cosines": agree})
    return 0


def gradients(run, first: int, batches: int) -> dict:
    """The mean gradients of a run's streams over some of their batches; see ``hooks.by_loss.gradients_by_loss``."""
    import torch

    from xtoolkit.engine.device import autocast
    from xtoolkit.hooks.by_loss import gradients_by_loss

    rows, train = {}, run.recipe.train
    run.model.train()
    try:
        for stream, spec in run.recipe.streams.items():
            weights = {loss: weight / batches for loss, weight in spec.losses.items()}
            for number in range(first, first + batches):
                batch = run.batch(stream, number)
                with torch.random.fork_rng(), autocast(run.device, train.precision):
                    torch.manual_seed(train.seed + number)
                    gradients_by_loss(run.model, stream, batch, weights, rows=rows)
    finally:
        run.close()
    return rows


def told(sizes: dict, agree: dict) -> str:
    """Norms, a row a loss, and for each encoder that several losses reach their cosines, as tables for a terminal."""
    from xtoolkit.report.gradients import cosine_table, norm_table
    from xtoolkit.report.tables import aligned

    parts = ["gradient norm\n" + aligned(norm_table(sizes))]
    for encoder, found in agree.items():
        parts.append(f"cosine in {encoder}\n" + aligned(cosine_table(found)))
    return "\n\n".join(parts)
