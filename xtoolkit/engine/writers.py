"""The hooks that write a run down: console, metrics.jsonl, TensorBoard, and files of what was run and what came out."""

import json
import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from xtoolkit.engine import distributed, environment
from xtoolkit.engine.guessing import judge_run, sentences
from xtoolkit.engine.optim import lr_at
from xtoolkit.engine.records import now, plain, read_lines, write_json, write_results
from xtoolkit.hooks import Hook
from xtoolkit.recipe.config import Config
from xtoolkit.recipe.folder import CONFIG, METRICS, PLUGINS, TOKENIZER
from xtoolkit.recipe.plugins import copy_plugins, record


class Console(Hook):
    """One line a log step on ``out``, one an evaluation, and a progress bar where ``bar`` is a terminal.

    Before the first it says what guessing costs of each loss, and at the end whether each came below that.
    """

    # Redraws a second of the bar: a terminal is slow, a small model's step is not.
    BAR_RATE = 10
    # Numbers of a line that a recipe's hook writes: they may be many.
    SHOWN = 6
    # Below this share of its time a step computes so little that something else must hold the processors; the seconds of
    # steps that are judged together, and between two lines that say so.
    HELD, SPAN, AGAIN = 0.65, 10, 600

    def __init__(self, out=None, bar=None):
        self._out, self._bar = out or sys.stdout, bar or sys.stderr
        self._drawn, self._said = 0.0, -math.inf

    def before_train(self, trainer):
        self._until, self._computed, self._span, self._guesses_said = trainer.seconds, 0.0, 0.0, False
        if trainer.resumed_from:
            self._line(f"resumed from {trainer.resumed_from}: step {trainer.done} of {trainer.train.steps}")
            self._bent(trainer)
            self._edited(trainer)
        elif trainer.resume:
            self._line(f"nothing to resume in {trainer.output}: starting at step 0")

    def _bent(self, trainer):
        """More steps than were asked for before change the rate of every step that is left."""
        done, optim, then, steps = trainer.done, trainer.recipe.optim, trainer.resumed_steps, trainer.train.steps
        if done < steps and lr_at(done, optim, then) != lr_at(done, optim, steps):
            self._line(f"train.steps was {then} and is {steps}, which bends the schedule: the learning rate was "
                       f"{lr_at(done - 1, optim, then):.2e} at step {done} and becomes {lr_at(done, optim, steps):.2e}")

    def _edited(self, trainer):
        """What is computed from here on need not be what was computed before."""
        then = {known["copy"]: known["digest"] for known in trainer.resumed_plugins.values()}
        for entry, kept in record(trainer.recipe.plugins).items():
            if kept["copy"] in then and then[kept["copy"]] != kept["digest"]:
                self._line(f"plugin {entry} is not what {trainer.resumed_from.name} was trained with: its content was "
                           f"{then[kept['copy']]} and is {kept['digest']}; both are kept in {Path(trainer.output) / PLUGINS}")

    def after_step(self, trainer):
        if distributed.is_main() and self._bar.isatty() and time.monotonic() - self._drawn > 1 / self.BAR_RATE:
            self._drawn = time.monotonic()
            share = trainer.done / trainer.train.steps
            full = int(share * 30)
            self._bar.write(f"\r\033[K[{'#' * full}{'.' * (30 - full)}] {trainer.done}/{trainer.train.steps}")
            self._bar.flush()

    def write(self, trainer, values):
        step = f"step {values['step']:>{len(str(trainer.train.steps))}}/{trainer.train.steps}"
        if values is not trainer.latest:  # not the log's
            shown = [f"{name} {value:.4g}" for name, value in values.items() if name != "step" and value is not None]
            if len(shown) > self.SHOWN and not any(name.partition(".")[0] in trainer.evaluators for name in values):
                shown[self.SHOWN:] = [f"and {len(shown) - self.SHOWN} more in {METRICS}"]
            self._line(f"{step}  {'  '.join(shown)}")
            return
        names = dict.fromkeys(loss for spec in trainer.recipe.streams.values() for loss in spec.losses)
        losses = [f"{name} {values[name]:.4f}" for name in names if name in values]
        guesses = [f"{name} {guess:.4g}" for name in names if (guess := values.get(f"{name}.guess")) is not None]
        if guesses and not self._guesses_said:
            self._guesses_said = True
            self._line(f"guessing, without a look at the sample, is so far: {'  '.join(guesses)}")
        eta = timedelta(seconds=round(values["eta_s"]))
        bad = sum(count for name, count in values.items() if name.startswith("bad."))
        self._line(f"{step}  loss {values['loss']:.4f}  {'  '.join(losses)}  "
                   f"lr {values['lr']:.2e}  norm {values['norm']:.3g}  {values['samples_per_s']:.1f} samples/s  "
                   f"data {values['data_share']:.0%}  eta {eta}  {values['memory_gb']:.2f} GB"
                   + (f", now {values['memory_now_gb']:.2f}" if "memory_now_gb" in values else "")
                   + (f"  bad samples {bad}" if bad else ""))
        if "cpu_share" in values:
            self._held(values["seconds"], values["cpu_share"])

    def _held(self, seconds, share):
        """Says it where steps take far longer than they compute, over spans of ``SPAN`` seconds at least."""
        self._computed, self._span = self._computed + share * (seconds - self._until), self._span + seconds - self._until
        self._until = seconds
        if self._span < self.SPAN:
            return
        share, self._computed, self._span = self._computed / self._span, 0.0, 0.0
        if share < self.HELD and time.monotonic() - self._said > self.AGAIN:
            self._said = time.monotonic()
            self._line(f"steps take {1 / max(share, 0.01):.1f} times what their processor time explains: other processes hold "
                       f"the processors (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")

    def after_train(self, trainer):
        """What was wrong with the data, a line a stream that had bad samples; and a line a loss, whether it learnt."""
        for name, loader in trainer.loaders.items():
            report = loader.report()
            if report["bad"]:
                kinds = ", ".join(f"{count} {kind}" for kind, count in report["bad"].items())
                self._line(f"stream {name}: {sum(report['bad'].values())} of {report['read']} samples were bad and replaced "
                           f"({kinds}); worst shard {report['worst_shard']}")
        for line in sentences(judge_run(trainer.output, trainer.recipe)):
            self._line(line)

    def close(self, trainer):
        self._clear()

    def _line(self, text):
        if distributed.is_main():
            self._clear()
            print(text, file=self._out, flush=True)

    def _clear(self):
        if self._drawn and self._bar.isatty():
            self._bar.write("\r\033[K")
            self._bar.flush()


class JsonLines(Hook):
    """``metrics.jsonl``: one object a step that has numbers, ``step`` first. What is not finite is null.

    A resumed run drops the lines after its checkpoint, so that no step stands there twice; an evaluation joins the line
    of its step.
    """

    def __init__(self):
        self._file, self._last, self._last_at = None, None, 0

    def before_train(self, trainer):
        if not distributed.is_main():
            return
        path = Path(trainer.output) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if line["step"] <= trainer.done]
        unfinished = path.with_suffix(".jsonl.unfinished")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.replace(path)
        self._file = open(path, "r+", encoding="utf-8")
        trainer.latest = next((line for line in reversed(kept) if "loss" in line), {})
        if kept:
            self._last = kept[-1]
            self._last_at = os.path.getsize(path) - len((json.dumps(self._last) + "\n").encode())
        self._file.seek(0, os.SEEK_END)

    def write(self, trainer, values):
        if self._file is None:
            return
        logged = trainer.latest if trainer.latest.get("step") == values["step"] else {}
        values = plain(values | logged)  # a hook that takes a name of the log's changes nothing
        if self._last is not None and self._last["step"] == values["step"]:
            values = self._last | values
            self._file.seek(self._last_at)
            self._file.truncate()
        self._last, self._last_at = values, self._file.tell()
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self, trainer):
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard(Hook):
    """Every number as a scalar under ``<output>/tensorboard``."""

    def __init__(self):
        self._writer = None

    def before_train(self, trainer):
        if distributed.is_main():
            # Here, not above: tensorboard takes a second to import.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(Path(trainer.output) / "tensorboard"), purge_step=trainer.done + 1)

    def write(self, trainer, values):
        if self._writer is not None:
            for name, value in values.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name.replace(".", "/"), value, values["step"])

    def close(self, trainer):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class RunRecord(Hook):
    """``config.yaml`` (resolved), ``environment.json``, the tokenizer and the plugins, written when a run starts.

    A run that is resumed keeps what earlier starts ran on under ``earlier``.

    Args:
        tokenizer: has ``save(folder)``; None: none is kept.
    """

    def __init__(self, tokenizer=None):
        self._tokenizer = tokenizer

    def before_train(self, trainer):
        if distributed.is_main():
            write_record(trainer.output, trainer.recipe, self._tokenizer, trainer.done, trainer.device, trainer.kernels)


def write_record(output, recipe, tokenizer, step: int, device, kernels: str | None) -> None:
    """What a run's folder says of a start: see ``RunRecord``."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(Config(recipe.config).dump(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
    copy_plugins(recipe.plugins, folder / PLUGINS)
    path = folder / "environment.json"
    earlier = []
    if path.exists():
        previous = json.loads(path.read_text(encoding="utf-8"))
        earlier = [*previous.pop("earlier"), previous]
    write_json(path, {
        "started": now(), "from_step": step, "command": environment.command(), "git": environment.git_hash(),
        "kernels": kernels, "ranks": distributed.world(), "precision": recipe.train.precision,
        "versions": environment.versions(), "machine": environment.machine(device), "earlier": earlier})


class Results(Hook):
    """``results.json``, when all steps are done.

    Keys: ``step``, ``evaluations`` {name: {metric: value}} of every evaluation so far, ``losses`` (the last numbers
    logged), ``guessing`` (whether each came below its line of guessing: ``guessing.judge``), ``data`` {stream: what its loader
    reports, bad samples included}, ``samples`` and ``epochs`` {stream: seen}, ``seconds`` (in steps), ``seconds_all`` (of this
    start, evaluations included).
    """

    def before_train(self, trainer):
        self._started = time.perf_counter()

    def after_train(self, trainer):
        if not distributed.is_main():
            return
        streams, sizes = list(trainer.recipe.streams), trainer.sizes()
        write_results(trainer.output, {
            "step": trainer.done, "losses": trainer.latest, "guessing": judge_run(trainer.output, trainer.recipe),
            "data": {name: loader.report() for name, loader in trainer.loaders.items()},
            "samples": {name: trainer.samples(name) for name in streams},
            "epochs": {name: trainer.samples(name) / max(1, sizes[name]) for name in streams},
            "seconds": trainer.seconds, "seconds_all": time.perf_counter() - self._started})
