"""The best checkpoint by a figure of an evaluation (``train.keep_best``): kept beside the newest, loaded at the end."""

import math
from pathlib import Path

from xtoolkit.engine import checkpoint, distributed, records
from xtoolkit.recipe.folder import BEST, FOLDER, best, of_step
from xtoolkit.recipe.settings import best_by
from xtoolkit.registry import ConfigError, nearest


class Best:
    """Which step was the best so far.

    A checkpoint is written before ``checkpoints/best.json`` names it, and none that this names is removed: whenever the process
    is killed, the file names a whole checkpoint, no newer than the one from which the run goes on.

    Args:
        trainer: of a recipe with ``train.keep_best``; what its folder knows of an earlier start counts.

    Attributes:
        kept: ``by``, ``value`` and ``step``; None: none so far.
    """

    def __init__(self, trainer):
        found, self._by = best(trainer.output), trainer.train.keep_best
        self.evaluation, self._metric, self._sign = best_by(self._by)
        self.kept = found if found is not None and found["by"] == self._by and found["step"] <= trainer.done else None

    @staticmethod
    def forget(output, by: str | None) -> None:
        """Names no checkpoint any more that an earlier start chose by another figure."""
        if distributed.is_main() and (found := best(output)) is not None and found["by"] != by:
            (Path(output) / FOLDER / BEST).unlink()

    def consider(self, trainer, metrics: dict) -> None:
        """Keeps the model if it is better than all before, by what its evaluation found at this step; every process calls it.

        Raises:
            ConfigError: the evaluation gives no such figure; a checkpoint is written first.
        """
        if self._metric not in metrics:
            trainer.save()
            meant = nearest(self._metric, metrics)
            end = "" if meant.endswith("?") else "."
            raise ConfigError(f"train.keep_best: evaluation `{self.evaluation}` gives no `{self._metric}`{meant}{end} Go on with "
                              f"--resume train.keep_best={self.evaluation}.METRIC")
        value = metrics[self._metric]
        if value is None or not math.isfinite(value):
            return
        if self.kept is None or self._sign * value > self._sign * self.kept["value"]:
            trainer.save()
            self.kept = {"by": self._by, "value": value, "step": trainer.done}
            if distributed.is_main():
                records.write_json(Path(trainer.output) / FOLDER / BEST, self.kept)
                checkpoint.prune(trainer.output, trainer.train.keep)
            distributed.barrier()

    def load(self, trainer) -> None:
        """Puts its weights into the model."""
        if self.kept["step"] != trainer.done:
            checkpoint.load(of_step(trainer.output, self.kept["step"]), trainer.model)
