"""What a job costs, from a few of its steps, in a process of its own, which is counted from its start."""

import resource
import shutil
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

SEVERAL, ASKED = 3, 2  # passes of a stream that are measured after its first; passes with guesses, the first included
LEAST, MOST = 8.0, 100  # seconds of processors after which no more steps are taken than these need, and steps taken beyond them
BATCHES = 3  # of an evaluation, from which the others are told


class Costs:
    """Seconds of processors and of the clock, by part.

    Attributes:
        counts: {part: how often a run does it}; 1 where it does not say.
    """

    def __init__(self):
        self.counts: dict[str, float] = {}
        self._spent: dict[str, list[tuple[float, float]]] = {}

    def now(self) -> tuple[float, float]:
        """Processor seconds of this process and of those that it has waited for, and the clock."""
        if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        inner = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + inner.ru_utime + inner.ru_stime, time.time()

    def since(self, before) -> tuple[float, float]:
        """What was spent since ``now`` gave ``before``."""
        return tuple(after - b for after, b in zip(self.now(), before))

    @contextmanager
    def part(self, name: str):
        """What is done inside is one measurement of a part."""
        before = self.now()
        yield
        self.add(name, self.since(before))

    def add(self, name: str, spent) -> None:
        self._spent.setdefault(name, []).append(tuple(spent))

    def found(self) -> dict[str, list[float]]:
        """{part: [how often, processor seconds, seconds]}. Of several measurements the first warms up: the others' mean counts,
        and what the first took more counts once."""
        parts = {}
        for name, spent in self._spent.items():
            later = spent[1:] or spent
            mean = [sum(column) / len(later) for column in zip(*later)]
            parts[name] = [self.counts.get(name, 1), *mean]
            if len(spent) > 1 and parts[name][0]:
                parts[f"{name}, the first time"] = [1, *(max(0.0, first - each) for first, each in zip(spent[0], mean))]
        return parts


def measure(recipe, init: bool, workers: int, began: float) -> dict:
    """Takes a few steps of a recipe in its folder, and tells what the whole run would take.

    Args:
        recipe: checked, with ``train.workers`` 0: its data are made in this process, and counted.
        init: load what it starts from; without, a checkpoint is read in its place.
        workers: that a run has.
        began: when this process was started, seconds as of ``time.time``.

    Returns:
        ``parts``: see ``Costs.found``; ``memory``: bytes at the peak; ``checkpoint``, ``checkpoints``: bytes of one, and how many
        a run keeps; ``outputs``: bytes of all else that it leaves; ``samples``: {evaluation: {figure: of how many
        samples it will be}}; ``notes``.
    """
    from xtoolkit.engine import memory
    from xtoolkit.engine.run import Run
    from xtoolkit.engine.start import check_start
    from xtoolkit.engine.writers import write_record
    from xtoolkit.plan import make_plan
    from xtoolkit.report import write_report

    check_start(recipe, "train")
    str(make_plan(recipe))
    costs, output, found = Costs(), Path(recipe.train.output), {"checkpoint": 0, "checkpoints": 0, "outputs": 0}
    run = Run(recipe, init=init)
    if recipe.streams:
        found |= _train(run, costs, init, workers, began)
    else:
        write_record(output, recipe, run.tokenizer, 0, run.device, None)
        costs.add("start", (costs.now()[0], time.time() - began))
    found |= {"samples": {}, "notes": []}
    for name in recipe.evaluate:
        outputs, samples, note = _evaluate(run, name, costs)
        found["outputs"] += outputs
        found["samples"][name] = samples
        found["notes"] += note
    with costs.part("end"):
        found["outputs"] += Path(write_report(output)).stat().st_size
    run.close()
    return found | {"parts": costs.found(), "memory": memory.peak(run.device)}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---- training -------------------------------------------------------------------------------------------------------------
def passes(schedule, step: int, log_every: int) -> list[list[str]]:
    """The groups of a step, each a list of its passes: a stream, and whether guesses are asked, as ``Trainer`` does."""
    return [[_pass(schedule, stream, step, log_every) for stream in group] for group in schedule.groups(step)]


def _pass(schedule, stream, step, log_every):
    asked = schedule.visit(stream, step) == schedule.visit(stream, step - step % log_every)
    return f"pass of {stream}" + (", with guesses" if asked else "")


def counted(schedule, train) -> Counter:
    """{pass, update, log or step: how often a run does it}."""
    found = Counter()
    for step in range(train.steps):
        groups = passes(schedule, step, train.log_every)
        found.update([name for group in groups for name in group])
        found["update"] += len(groups)
    logs = -(-train.steps // train.log_every)
    return found + Counter(log=logs, step=train.steps - logs)


def chosen_steps(schedule, train, counts: Counter) -> list[int]:
    """The first steps that together have each pass as often as it is measured, one before them, and two log steps."""
    lacking = {name: min(count, ASKED if name.endswith("guesses") else 1 + SEVERAL) for name, count in counts.items()
               if name.startswith("pass")} | {"log": min(2, counts["log"])}
    found, step = [], 0
    while step < train.steps and any(count > 0 for count in lacking.values()):
        met = [name for group in passes(schedule, step, train.log_every) for name in group]
        met += ["log"] if (step + 1) % train.log_every == 0 or step + 1 == train.steps else []
        if any(lacking[name] > 0 for name in met):
            found.append(step)
            for name in met:
                lacking[name] -= 1
        step += 1
    return found


def spread(steps: range, several: int) -> range:
    """So many of some steps, evenly over them."""
    return steps[::max(1, -(-len(steps) // several))] if several > 0 else steps[:0]


def _train(run, costs, init, workers, began) -> dict:
    """Takes the chosen steps of a run with all hooks but those that save and evaluate, which are measured by themselves."""
    from xtoolkit.engine import checkpoint
    from xtoolkit.engine.hooks import Checkpoint, Evaluate, Signals, default_hooks
    from xtoolkit.engine.trainer import Trainer
    from xtoolkit.kernels.choice import describe
    from xtoolkit.recipe.folder import latest
    from xtoolkit.recipe.settings import best_by

    train, output = run.recipe.train, Path(run.recipe.train.output)

    class Measured(Trainer):
        """Takes the chosen steps alone."""

        def fit(self):
            self._call("before_train")
            costs.add("start", (costs.now()[0], time.time() - began))
            counts, at_first = counted(self.schedule, self.train), _size(output)
            costs.counts |= counts
            steps, before = chosen_steps(self.schedule, self.train, counts), costs.now()
            for step in steps:
                self.take(step)
            each = costs.since(before)[0] / len(steps)
            for step in spread(range(steps[-1] + 1, train.steps), int(min(MOST, LEAST / each - len(steps)))):
                self.take(step)
            with costs.part("end of training"):
                self._call("after_train")
                self._call("close")
            self.written = at_first + (_size(output) - at_first) * counts["log"] / min(2, counts["log"])

        def take(self, step):
            """One step, wherever it stands in the run."""
            self.done, self.inside, before = step, (0.0, 0.0), costs.now()
            self._call("before_step")
            self.step()
            self._call("after_step")
            rest = [spent - inner for spent, inner in zip(costs.since(before), self.inside)]
            costs.add("log" if self.is_log_step else "step", rest)

        def _backward(self, stream, step):
            return self._timed(_pass(self.schedule, stream, step, self.train.log_every), super()._backward, stream, step)

        def _update(self, group, total, step):
            self._timed("update", super()._update, group, total, step)

        def _timed(self, name, call, *arguments):
            before, waited = costs.now(), sum(loader.wait_s for loader in self.loaders.values())
            found = call(*arguments)
            processor, clock = costs.since(before)
            self.inside = self.inside[0] + processor, self.inside[1] + clock
            # With workers data are made beside the step.
            data = sum(loader.wait_s for loader in self.loaders.values()) - waited
            costs.add(name, (processor, max(clock - data, data / workers) if workers else clock))
            return found

    hooks = [hook for hook in default_hooks(run.tokenizer, run.hooks) if not isinstance(hook, (Checkpoint, Evaluate, Signals))]
    trainer = Measured(run.model, run.recipe, run.loaders, {}, hooks, kernels=describe(run.device.type))
    trainer.fit()
    best = train.keep_best is not None
    saves = -(-train.steps // train.checkpoint_every) + (_times(run.recipe, best_by(train.keep_best)[0]) if best else 0)
    costs.counts |= {"checkpoint": saves, "loading": best + (not init and run.recipe.init is not None)}
    for _ in range(2):
        with costs.part("checkpoint"):
            trainer.save()
        with costs.part("loading"):
            checkpoint.load(latest(output), trainer.model)
    size = _size(latest(output))
    shutil.rmtree(latest(output).parent)
    return {"checkpoint": size, "checkpoints": min(train.keep, saves) + best, "outputs": trainer.written}


# ---- evaluations ----------------------------------------------------------------------------------------------------------
def _times(recipe, name) -> int:
    """How often a run evaluates."""
    every = recipe.evaluate[name].get("every")
    return 1 if every is None or not recipe.streams else -(-recipe.train.steps // every)


def _evaluate(run, name, costs) -> tuple[float, dict[str, int], list[str]]:
    """Measures an evaluation at two lengths, and tells the whole from their difference; one of a few batches runs whole.

    Returns:
        Bytes that the whole one leaves, of how many samples each figure will be, and a note where it could not be cut short.
    """
    from xtoolkit.engine.records import write_evaluation
    from xtoolkit.engine.run import EVAL_BATCH
    from xtoolkit.recipe.folder import EVALUATIONS

    block, steps, output = run.recipe.evaluate[name], run.recipe.train.steps, Path(run.recipe.train.output)
    given, size = {key: block.get(key) for key in ("limit", "batch_size")}, block.get("batch_size") or EVAL_BATCH

    def number(limit):
        block.update(limit=limit, batch_size=1)
        found = len(run.eval_loader(name))
        block.update(given)
        return found

    def once(limit, step=None):
        """What the first samples of each source cost."""
        block.update(limit=limit)
        before = costs.now()
        try:
            write_evaluation(output, name, steps, run.evaluator(name, steps)(step))
        finally:
            block.update(given)
        return costs.since(before)

    whole, notes, limits = number(given["limit"]), [], [size, BATCHES * size]
    if number(limits[1]) >= whole:
        limits = [given["limit"]]
    try:
        first, *others = [once(limits[0], steps), *map(once, limits)]
    except Exception as error:  # a task of its own kind: its number of classes, its folds
        if len(limits) == 1:
            raise
        notes.append(f"evaluation `{name}` cannot be cut short, and ran whole: {str(error).splitlines()[0]}")
        limits = [given["limit"]]
        first, *others = [once(limits[0], steps), once(limits[0])]
    last, sizes = others[-1], [number(limit) for limit in limits]
    more = (whole - sizes[-1]) / max(1, sizes[-1] - sizes[0])
    each = [b + max(0.0, b - a) * more for a, b in zip(others[0], last)]
    costs.add(f"evaluation {name}", each)
    costs.add(f"evaluation {name}, the first time", [max(0.0, one - again) for one, again in zip(first, others[0])])
    costs.counts[f"evaluation {name}"] = _times(run.recipe, name)
    left = (output / EVALUATIONS / f"{name}.json").stat().st_size + _size(output / EVALUATIONS / name) * whole / max(1, sizes[-1])
    return left, scored(run, name, limits[-1]), notes


def scored(run, name: str, limit: int | None) -> dict[str, int]:
    """{figure: of how many samples it will be}, from what an evaluation kept of the first ``limit`` samples of each source; None:
    of all. The source that a task takes its answers from, its ``bank``, is asked nothing."""
    import numpy as np

    from xtoolkit.engine.records import read_lines
    from xtoolkit.metrics.mean import as_columns
    from xtoolkit.recipe.folder import EVALUATIONS

    rows = read_lines(Path(run.recipe.train.output) / EVALUATIONS / name / "samples.jsonl")
    if not rows:
        return {}
    task, sources = run.tasks[name], run.recipe.evaluate[name]["data"].get("sources") or ["all"]
    asked = [size for source, size in zip(sources, run._dataset("evaluate", name).sizes)
             if source != getattr(task, "bank", None)]
    longer = sum(asked) / sum(size if limit is None else min(limit, size) for size in asked)
    count = lambda values: int((~np.isnan(as_columns(values, (1, 2)))).any(1).sum())
    return {figure: round(longer * count(values)) for figure, (values, _) in task.measured(rows).items()}

