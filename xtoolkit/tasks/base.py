"""The base class of tasks: what an evaluation reads, how it runs over a loader, what it returns and what it shows."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xtoolkit.graph import Need
from xtoolkit.metrics.mean import means
from xtoolkit.registry import ConfigError


class Alone:
    """The ranks of one process: it does everything itself. Several processes bring an object with the same two methods."""

    def part(self, count: int) -> range:
        """Which of ``count`` things, in order, are this process's: the parts of all, in rank order, are ``range(count)``."""
        return range(count)

    def gather(self, mine: list) -> list:
        """The lists of all processes, joined in rank order, on every process. What they hold lies on the host."""
        return mine


class Measured(NamedTuple):
    """What a figure is computed from: N rows of ``samples.jsonl``.

    Attributes:
        values: (N,) or (N, M) float64, in the figure's unit where it is a mean of them.
        metric: the figure of some of these rows, one of them several times; ``means``: NaN says that a row counts for nothing.
    """

    values: np.ndarray
    metric: Callable[[np.ndarray], float] = means


class Task:
    """An evaluation: predicts batch by batch, then scores what it has gathered.

    A subclass takes its YAML keys in ``__init__`` and keeps them; keys that name encoders and losses stay strings there.
    The keys `type`, `data`, `every`, `batch_size` (pictures a batch) and `limit` (the first so many samples of each source alone,
    to try an evaluation) of an `evaluate:` block are the toolkit's own.

    Attributes:
        GIVEN: what the toolkit gives to a constructor that asks for it by name. ``tokenizer``: of the run's texts, has
            ``decode(ids)`` and ``words(ids)``. ``output``: pathlib.Path of a folder for files of the task's own, which the
            task makes if it writes any.
        HEADS: {key: method}: keys of the block that name a loss (or null), and the method which that loss must have (None:
            no particular one). What that loss needs is built too, and some stream must train it.
        MARKED: those of these keys whose loss is read under its own marks: the data must say how they are drawn.
        FIELDS: the batch fields that its data must have, among others; empty: any.
        HEADLINES: {metric: title}: the figures that matter most, for tiles and curves; also of a part of what is evaluated,
            ``<part>.<metric>``: a tile shows the whole, or else the first part. A title that ends in `, %` says the unit.
        ABILITIES: {ability: what a recipe needs for it}, for whoever asks a model for one that it lacks.
        heads: {key: built loss, or None}; there from the start of ``evaluate`` on.
    """

    GIVEN: frozenset = frozenset({"tokenizer", "output"})
    HEADS: dict = {}
    MARKED: frozenset = frozenset()
    FIELDS: frozenset = frozenset()
    HEADLINES: dict = {}
    ABILITIES: dict = {}

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        """What the task reads beside what its heads need, from its YAML block alone, defaults filled in."""
        return []

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        """A block with which the task would serve a model whose recipe does not evaluate it; None: it would not.

        Args:
            encoders: {name: class} of the model.
            losses: likewise.
        """
        return None

    def check(self, model, data) -> None:
        """Asked before anything is trained: raises ConfigError where these data cannot be evaluated by what ``model`` has.

        Args:
            model: built; ``model.losses[name]`` are the heads.
            data: the StreamDataset that it is to read, opened.
        """

    # ---- what is computed -----------------------------------------------------------------------------------------------
    def parts(self, batch) -> list:
        """The batches, on the device, that are predicted of one of the loader's: here that one, whole."""
        return [batch]

    def predict(self, f, batch) -> dict:
        """What is kept of one batch, see ``parts``: tensors (rows first) and lists, by name. ``f`` reads freely; nothing is cut.

        Args:
            f: Features of the batch.
            batch: Batch, on the device.
        """
        raise TypeError(f"{type(self).__name__} defines no predict")

    def score(self, outputs: dict) -> dict[str, float]:
        """The figures, by name, from all that ``predict`` returned, its rows one after the other, on the host."""
        raise TypeError(f"{type(self).__name__} defines no score")

    def floor(self, outputs: dict) -> dict[str, float]:
        """Under the same names, what a guess that has learnt nothing gets: printed beside. Empty: there is none."""
        return {}

    def examples(self, outputs: dict) -> list[dict]:
        """A few predictions, plain; pictures are named by their ``image_id``."""
        return []

    def samples(self, outputs: dict) -> list[dict]:
        """One plain row a sample, kept in ``samples.jsonl`` of the evaluation's folder, for paired statistics and for whoever
        asks which samples are told wrong: ``id``, ``image_id`` where a picture is shown, ``group`` where samples belong
        together by something else than their picture, ``score`` (a metric in per cent is 100 times its mean, where it is such a
        mean), what was told, and whatever ``measured`` needs. Empty: nothing is kept."""
        return []

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        """What each figure of samples is computed from, by its name: what a bootstrap draws.

        Here the first of ``HEADLINES``, or else ``accuracy``: 100 times the mean of ``score``. A figure that says nothing of
        samples, as what was chosen or the ends of an interval, has none.

        Args:
            rows: of ``samples``, as JSON gives them back, all or some.
        """
        return {next(iter(self.HEADLINES), "accuracy"): Measured(column(rows, "score", 100))}

    def rescore(self, rows: list[dict]) -> dict[str, float]:
        """The figures of ``measured``: of all rows those that ``score`` gives."""
        return {name: metric(values) for name, (values, metric) in self.measured(rows).items()} if rows else {}

    def files(self, outputs: dict) -> dict[str, str]:
        """{name: text} of further files for the evaluation's folder: what a benchmark's server asks for."""
        return {}

    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        """Runs the model over the loader. Several processes call it at the same time, and each returns the same.

        Args:
            model: has ``encoders``, ``losses``, ``features(batch)``, ``graph`` and ``recipe``, whose precision it runs in.
            loader: ``len(loader)`` batches; ``loader.batches(numbers)`` yields some of them, on the host.
            ranks: has ``part(count)`` and ``gather(list)``, as ``Alone`` has them.

        Returns:
            ``metrics`` {name: float}, ``floor`` {name: float}, ``examples`` [dict], ``files`` {name: text}; all on the host.

        Raises:
            ConfigError: the loader gave no batch, or none that has parts.
        """
        self.heads = heads(self, model)
        with evaluating(model) as device:
            mine = [on_host(self.predict(model.features(part), part)) for batch in share(loader, ranks, device)
                    for part in self.parts(batch)]
        return self.result(joined(ranks.gather(mine)))

    def result(self, outputs: dict) -> dict:
        """What ``evaluate`` returns, from all outputs."""
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.samples(outputs))
        return {"metrics": self.score(outputs), "floor": self.floor(outputs), "examples": self.examples(outputs),
                "files": ({"samples.jsonl": rows} if rows else {}) | self.files(outputs)}

    # ---- what is shown --------------------------------------------------------------------------------------------------
    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        """The figures as a heading and rows of text, for the console and the report. Equal headings share a table there;
        a row whose first cell begins with `floor` is set back."""
        return ["metric", "value", "floor"], [[name, cell(value, 3), cell(floor.get(name), 3)]
                                              for name, value in metrics.items()]

    def figures(self, examples: list[dict]) -> list[dict]:
        """What the report shows of examples: [{``title``, ``text``, ``items``}], every key optional.

        An item may have: ``image``, an image_id, a uint8 tensor (3, H, W) or a PIL image; ``caption``; ``note``; ``right``,
        it is framed; ``apart``, it stands apart from the others; ``mask``, a row-major list of bool, True where a patch is
        hidden; ``heat``, a row-major list of numbers from 0 to 1, how red a patch is drawn; ``boxes``
        [{``box``: [cx, cy, w, h] in [0, 1], ``kind``: `true`, `predicted` or another word}]; ``words``
        [(as read, whether it is to be predicted, what it was)]. A figure with ``text`` alone stands before the others.
        """
        return []

    # ---- what xtoolkit.load can then do ---------------------------------------------------------------------------------
    def abilities(self) -> dict:
        """{name: function(loaded, ...)}, or a property of ``loaded``, the loaded model (``inference.Pretrained``)."""
        return {}


def heads(task: Task, model) -> dict:
    """{key: loss} of a task's ``HEADS``; None where a key is null."""
    names = {key: getattr(task, key) for key in task.HEADS}
    return {key: None if name is None else model.losses[name] for key, name in names.items()}


@contextlib.contextmanager
def evaluating(model):
    """Eval mode, no autograd graph, the model's precision. Yields the model's device; puts each module's own mode back.

    ``no_grad`` rather than inference mode: a buffer that a module computes and keeps on first use must still serve
    training.
    """
    training, precision = [m for m in model.modules() if m.training], model.recipe.train.precision
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield device
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def drawing(seed: int, device: torch.device):
    """What is drawn within comes of this seed; the generators then go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def share(loader, ranks, device):
    """This process's batches of a loader, on the device."""
    for batch in loader.batches(ranks.part(len(loader))):
        yield batch.to(device, non_blocking=True)


def on_host(output: dict) -> dict:
    """What ``predict`` returned, its tensors on the host: other processes may read them."""
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in output.items()}


def joined(outputs: list[dict]) -> dict:
    """The outputs of all batches as one dict: tensors concatenated, lists joined.

    Raises:
        ConfigError: there are none.
    """
    if not outputs:
        raise ConfigError("the evaluation has no data: its loader gave no batch that it can use")
    several = {name: [output[name] for output in outputs] for name in outputs[0]}
    return {name: torch.cat(values) if isinstance(values[0], Tensor) else list(chain(*values))
            for name, values in several.items()}


def check_counts(task: Task, expect: dict | None, found: dict) -> None:
    """Raises ConfigError where an evaluation has not what its key ``expect`` says: {what: how many}; None accepts anything."""
    if wrong := [f"{found.get(name, 0):,} {name}, not {count:,}" for name, count in (expect or {}).items()
                 if found.get(name, 0) != count]:
        raise ConfigError(f"{type(task).__name__}: `expect` is not met: the data have {'; '.join(wrong)}. Another split, a "
                          "part of it, or samples that could not be read; `expect: null` evaluates what is there")


def spread(rows: list, shown: int) -> list:
    """At most ``shown`` of some rows, spread evenly over them."""
    return rows[::-(-len(rows) // shown)] if rows else []


def column(rows: list[dict], key: str, times: float = 1) -> np.ndarray:
    """(N,) float64, what the rows have under a key, multiplied; NaN where a row has nothing."""
    return times * np.array([np.nan if (value := row.get(key)) is None else value for row in rows], dtype=np.float64)


def numbered(names: list[str]) -> list[str]:
    """`name:0`, `name:1`, ...: each name with how often it came before; what stands between changes nothing."""
    seen, found = Counter(), []
    for name in names:
        found.append(f"{name}:{seen[name]}")
        seen[name] += 1
    return found


def token_ids(text) -> list[list[int]]:
    """The token ids of each row of a TextField, padding left off: what an example shows is decoded from them."""
    return [ids[mask].tolist() for ids, mask in zip(text.ids.cpu(), text.mask.cpu())]


def decoded(tokenizer, ids: list[int]) -> str:
    """Token ids as a person reads them: the text, or the numbers where a task has no tokenizer."""
    return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids).strip()


def cell(value: float | None, places: int = 1) -> str:
    """A number for a table; a dash for what is not there or not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{round(value, places) + 0.0:.{places}f}"  # no -0.0
