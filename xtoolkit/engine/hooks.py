"""The hooks of a full run: what to log, checkpoints, evaluations, signals."""

import signal
import sys
import time
from collections import Counter

import torch

from xtoolkit.engine import distributed, memory, records
from xtoolkit.engine.best import Best
from xtoolkit.engine.figures import Samples
from xtoolkit.engine.trainer import Stopped
from xtoolkit.engine.writers import Console, JsonLines, Results, RunRecord, TensorBoard
from xtoolkit.hooks import Hook
from xtoolkit.recipe.folder import evaluated, selected
from xtoolkit.registry import ConfigError


def default_hooks(tokenizer=None, own=()) -> list[Hook]:
    """The hooks of a full run, in the order that matters: numbers are written before the checkpoint from which a
    resumed run goes on, a signal is obeyed before an evaluation begins, and the results come last.

    Args:
        tokenizer: of the run: kept in its folder, and what samples of the streams are read with; None: neither is done.
        own: the recipe's hooks: called before the checkpoint is written.
    """
    samples = [] if tokenizer is None else [Samples(tokenizer)]
    return [RunRecord(tokenizer), JsonLines(), TensorBoard(), Console(), *samples, *own, Log(), Checkpoint(), Signals(),
            Evaluate(), Results()]


class Log(Hook):
    """Gathers the numbers of the steps and hands them on at each log step.

    Losses are means over the steps since the last log step in which they were computed (after a resume within an
    interval: over the steps since). Written by name: ``<stream>.<loss>``, ``<stream>.<loss>.<part>``, and ``<loss>``,
    its mean over the streams that have it; with ``.guess`` behind, what guessing costs of each stream's first batch since;
    ``loss`` is the weighted sum that is differentiated; also rates, times, samples and epochs. On a CPU ``cpu_share`` is the
    part of the steps' time in which the main thread computed or waited for data: far below 1, other processes hold the
    processors.
    """

    def before_train(self, trainer):
        self._sums, self._counts, self._computed = {}, {}, trainer.computed
        self._seconds, self._samples, self._began = trainer.seconds, self._seen(trainer), trainer.done
        self._waited = self._wait(trainer)

    def after_step(self, trainer):
        for name, value in trainer.values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts[name] + 1 if name in self._counts else 1
        if trainer.is_log_step:
            trainer.log(self._losses(trainer) | self._rates(trainer))
            self.before_train(trainer)

    def _losses(self, trainer):
        names = list(self._sums)
        # One transfer for all numbers of the interval.
        means = torch.stack([self._sums[n].float() / self._counts[n] for n in names]).cpu()
        streams = trainer.recipe.streams
        of_losses = {f"{s}.{loss}{what}": loss + what
                     for s, spec in streams.items() for loss in spec.losses for what in ("", ".guess")}
        # What every process has is averaged, parts of losses too; the rest is this process's own.
        ranks = distributed.Ranks()
        everyones = Counter(ranks.gather(names))
        shared = [i for i, n in sorted(enumerate(names), key=lambda item: item[1]) if everyones[n] == ranks.world]
        means[shared] = distributed.mean(means[shared])
        values = dict(zip(names, means.tolist()))
        by_loss: dict[str, list] = {}
        for name, loss in of_losses.items():
            if name in values:
                by_loss.setdefault(loss, []).append(values[name])
        first = {"loss": values.pop("loss")} | {loss: sum(v) / len(v) for loss, v in by_loss.items()}
        return first | {name: values[name] for name in sorted(values)}

    def _rates(self, trainer):
        seconds, steps = trainer.seconds - self._seconds, trainer.done - self._began
        waited = self._wait(trainer) - self._waited
        values = {"lr": trainer.lr, "samples_per_s": (self._seen(trainer) - self._samples) / max(seconds, 1e-9),
                  "data_share": waited / max(seconds, 1e-9), "seconds": trainer.seconds,
                  "eta_s": seconds / steps * (trainer.train.steps - trainer.done), "memory_gb": memory.peak(trainer.device) / 1e9}
        now = memory.current(trainer.device)
        if now is not None:
            values["memory_now_gb"] = now / 1e9
        if trainer.device.type == "cpu":
            loading = waited if trainer.train.workers else 0  # without workers data are made by this thread
            values["cpu_share"] = min(1.0, (trainer.computed - self._computed + loading) / max(seconds, 1e-9))
        sizes = trainer.sizes()
        for stream in trainer.recipe.streams:
            values[f"samples.{stream}"] = trainer.samples(stream)
            values[f"epochs.{stream}"] = trainer.samples(stream) / max(1, sizes[stream])
            values[f"bad.{stream}"] = sum(trainer.loaders[stream].report()["bad"].values())
        return values

    def _seen(self, trainer):
        return sum(trainer.samples(stream) for stream in trainer.recipe.streams)

    def _wait(self, trainer):
        return sum(loader.wait_s for loader in trainer.loaders.values())


class Checkpoint(Hook):
    """Writes a checkpoint every ``train.checkpoint_every`` steps and after the last one."""

    def after_step(self, trainer):
        if trainer.done % trainer.train.checkpoint_every == 0 or trainer.done == trainer.train.steps:
            trainer.save()


class Signals(Hook):
    """SIGINT and SIGTERM: finish the step, write a checkpoint, leave with ``Stopped``. A second one leaves at once."""

    def __init__(self):
        self._before = {}

    def before_train(self, trainer):
        def ask(number, frame):
            if trainer.stop:
                raise KeyboardInterrupt
            trainer.stop = number
            sys.stderr.write(f"\n{signal.Signals(number).name}: finishing what runs and writing a checkpoint; "
                             "once more leaves at once\n")

        self._before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def after_step(self, trainer):
        leave_if_asked(trainer)

    def after_train(self, trainer):
        """A signal during the last evaluations: all steps are done and kept, the results are not complete."""
        leave_if_asked(trainer)

    def close(self, trainer):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave_if_asked(trainer) -> None:
    """Writes a checkpoint and raises ``Stopped`` where a signal has come to any process."""
    if number := distributed.agree(trainer.stop):
        trainer.save()
        raise Stopped(number, trainer.done)


class Evaluate(Hook):
    """Runs each evaluator every ``evaluate.<name>.every`` steps (null: never in between) and after the last step.

    Its numbers are written as ``<evaluation>.<metric>``, and all that it found as ``evaluations/<name>.json``. Every
    process evaluates a part; the first one writes. None is begun once a signal has come. A run that goes on first makes up
    for those that were due at its checkpoint's step and have no record of it; none is run again that has. One whose numbers are
    none ends the run, after the others. With ``train.keep_best`` the best checkpoint is kept, loaded after the last step, and
    evaluations without ``every`` run on it alone.
    """

    def before_train(self, trainer):
        self._known = evaluated(trainer.output)
        trainer.evaluations |= {name: self._known[name]["metrics"] for name in trainer.evaluators if name in self._known}
        Best.forget(trainer.output, trainer.train.keep_best)
        self._best = best = None if trainer.train.keep_best is None else Best(trainer)
        if best and best.evaluation in self._known and 0 < self._known[best.evaluation]["step"] == trainer.done:
            best.consider(trainer, self._known[best.evaluation]["metrics"])  # a kill may have come before it was kept
        if 0 < trainer.done < trainer.train.steps:
            self._run(trainer, self._lacking(trainer, self._due(trainer)))

    def after_step(self, trainer):
        self._run(trainer, self._due(trainer))

    def after_train(self, trainer):
        """What a signal kept from being evaluated after the last step is evaluated when the run is resumed."""
        last = [n for n in trainer.evaluators if self._best is None or self._every(trainer, n)]
        self._run(trainer, self._lacking(trainer, last))
        if self._best is not None and self._best.kept is not None:
            self._best.load(trainer)
        rest = [n for n in trainer.evaluators if n not in last]
        self._run(trainer, self._lacking(trainer, rest), None if self._best is None else self._best.kept)

    def _lacking(self, trainer, names):
        """Those that have no record of this step, nor of the best one once that is loaded."""
        kept = self._best and self._best.kept
        of_step = lambda n: self._known[n]["step"] == trainer.done and (not kept or self._every(trainer, n))
        return [n for n in names if n not in self._known or not (of_step(n) or selected(self._known[n], kept))]

    def _every(self, trainer, name):
        block = trainer.recipe.evaluate[name]
        return block["every"] if "every" in block else None

    def _due(self, trainer):
        last, every = trainer.done == trainer.train.steps, {n: self._every(trainer, n) for n in trainer.evaluators}
        return [n for n in every if (last and self._best is None if every[n] is None else last or trainer.done % every[n] == 0)]

    def _run(self, trainer, names, of_best=None):
        """Runs some evaluations on the model of this step, or on that of ``of_best``, which is loaded."""
        wrong, step = [], trainer.done if of_best is None else of_best["step"]
        for name in names:
            leave_if_asked(trainer)
            started = time.perf_counter()
            try:
                record = trainer.evaluators[name](trainer.done)
            except ConfigError as error:
                wrong += error.problems
                continue
            trainer.evaluations[name], record = record["metrics"], record | ({"selected": of_best} if of_best else {})
            if distributed.is_main():
                records.write_evaluation(trainer.output, name, step, record)
            values = {f"{name}.{metric}": value for metric, value in record["metrics"].items()}
            of = {f"{name}.of_step": step} if of_best else {}
            trainer.write(values | of | {f"{name}.seconds": time.perf_counter() - started})
            self._known[name] = {"step": step, **record}
            distributed.barrier()
            try:
                if self._best is not None and name == self._best.evaluation and not of_best:
                    self._best.consider(trainer, record["metrics"])
            except ConfigError as error:
                wrong += error.problems
        if wrong:
            raise records.NoFigures(wrong)
