"""The base class of hooks: the moments of a run at which other code is called."""

import json


class Hook:
    """Something done around steps. Called on every process, in the order of the trainer's list.

    A registered hook stands in a recipe as ``hooks: {name: {type: ..., its keys}}``: its ``__init__`` signature is the
    schema of the block. Hooks of a recipe run before the checkpoint is written. They may change when a run is resumed.

    Attributes:
        name: the hook's name in the recipe; None for the engine's own. What a hook writes begins with it.
    """

    name: str | None = None

    def before_train(self, trainer) -> None:
        """Once, after a checkpoint has been loaded."""

    def before_step(self, trainer) -> None:
        """Before each step; ``trainer.done`` steps are behind."""

    def after_backward(self, trainer) -> None:
        """Once a group of streams, before clipping: ``p.grad`` is the group's gradient, averaged over the processes.

        ``trainer.done`` does not count the step yet. What asks the device for a value here makes every step wait for it.
        """

    def after_step(self, trainer) -> None:
        """After each step; ``trainer.done`` counts it, ``trainer.values`` holds its numbers."""

    def write(self, trainer, values: dict) -> None:
        """Numbers for the record, by name, on the host; ``step`` is the first. Called by ``Trainer.write``."""

    def after_train(self, trainer) -> None:
        """Once, when all steps are done."""

    def close(self, trainer) -> None:
        """Once, however the run ended: give back what was opened."""

    def state_dict(self) -> dict:
        """What a resumed run must know, as JSON has it: kept in each checkpoint under ``name``, the first process's."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """What ``state_dict`` returned, on every process, before ``before_train``; not called if nothing was kept."""


def named(hook: Hook) -> str:
    """How messages name a hook."""
    return f"hook `{hook.name}` ({type(hook).__name__})" if hook.name else f"hook {type(hook).__name__}"


def state_of(hook: Hook) -> dict:
    """A hook's ``state_dict``. Raises TypeError for what a checkpoint's JSON cannot hold, by the hook's name."""
    state = hook.state_dict()
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{named(hook)}: its state_dict must hold what JSON has: {error}") from error
    return state
