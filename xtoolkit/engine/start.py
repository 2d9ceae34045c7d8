"""What speaks against a start, asked before anything is planned or built."""

from contextlib import contextmanager

from xtoolkit.data.errors import BadDataError
from xtoolkit.engine import distributed
from xtoolkit.engine.device import pick_device
from xtoolkit.recipe import Purpose, Recipe
from xtoolkit.recipe.folder import check_evaluated, check_folder, check_resumed, latest
from xtoolkit.recipe.plugins import check_copies
from xtoolkit.registry import ConfigError


@contextmanager
def placed(where: str):
    """What a loss, a task or their data say against a stream or an evaluation becomes a ConfigError that begins with its
    place."""
    try:
        yield
    except BadDataError as e:
        raise ConfigError(f"{where.partition(': ')[0]}: {e}") from e
    except ConfigError as e:
        raise ConfigError([f"{where}: {problem}" for problem in e.problems]) from e


def check_start(recipe: Recipe, purpose: Purpose) -> None:
    """What the machine and the run's folder say against a start, before anything is planned or built.

    Raises:
        ConfigError: every reason.
        CheckpointError: the checkpoint to go on from is damaged.
    """
    from xtoolkit.kernels.choice import use_triton  # only here: it imports Triton

    found, output = [], recipe.train.output
    if purpose == "evaluate":
        if not recipe.evaluate:
            found.append("the recipe has no `evaluate` block: there is nothing to run")
        if recipe.streams and latest(output) is None:
            found.append(f"train.output: {output} holds no checkpoint; train first, or name another folder (train.output=...)")
    else:
        found += _undivided(recipe)
    for check in (lambda: recipe.streams or check_evaluated(output, recipe.config),
                  lambda: purpose == "evaluate" or check_folder(output, purpose == "resume"),
                  lambda: purpose == "evaluate" or check_copies(recipe.plugins, output),
                  lambda: purpose == "resume" and check_resumed(output, recipe.config, recipe.train.steps),
                  lambda: use_triton(pick_device(recipe.train.device).type)):
        try:
            check()
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)


def _undivided(recipe: Recipe) -> list[str]:
    """A line for each stream whose batch does not divide by the ranks and micro-batches of this start."""
    ranks, accumulate, where = distributed.world(), recipe.train.accumulate, recipe.source.where
    parts = ranks * accumulate
    told = f"{parts} ({ranks} rank{'s' * (ranks > 1)} x `train.accumulate` {accumulate})"
    return [f"{where('streams', name, 'batch_size')}: `batch_size` of stream `{name}`: {spec.batch_size} does not divide by "
            f"{told}; take {max(1, spec.batch_size // parts) * parts}"
            for name, spec in recipe.streams.items() if spec.batch_size % parts]
