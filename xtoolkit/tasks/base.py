"""The base class of tasks: what an evaluation reads, how it runs over a loader, and what it returns."""

import contextlib
from itertools import chain

import torch
from torch import Tensor

from xtoolkit.graph import Need
from xtoolkit.registry import schema


class Task:
    """An evaluation: predicts batch by batch, then scores what it has gathered.

    A subclass takes its YAML keys in ``__init__`` and keeps them; keys that name encoders and losses stay strings
    there. ``evaluate`` puts the modules that they name into ``self.parts``.

    Attributes:
        ENCODER_KEYS: keys whose value names an encoder.
        LOSS_KEYS: keys whose value names a loss (or null). What that loss needs is built too, trained or not.
        LOSS_METHODS: {key: the method that this loss must have}.
        FIELDS: the batch fields that its data must have, exactly; empty: any.
        parts: {key: built encoder or loss, or None}; there from the start of ``evaluate`` on.
    """

    ENCODER_KEYS: tuple = ()
    LOSS_KEYS: tuple = ()
    LOSS_METHODS: dict = {}
    FIELDS: frozenset = frozenset()

    @classmethod
    def needs(cls, **block) -> list[Need]:
        """What the task reads beside what its losses need, from its YAML block alone: only what is reached is built."""
        block = {k.name: k.default for k in schema(cls).values()} | block
        return [Need(block[key], grad=False) for key in cls.ENCODER_KEYS if block[key] is not None]

    def predict(self, f, batch) -> dict:
        """What is kept of one batch: tensors (rows first) and lists, by name. ``f`` reads freely; nothing is cut.

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
        """A few predictions for the report; pictures are named by their ``image_id``."""
        return []

    def evaluate(self, model, loader) -> dict:
        """Runs the model over the loader.

        Args:
            model: has ``encoders``, ``losses``, ``features(batch)``, ``graph`` and ``recipe``, whose precision it
                runs in.
            loader: yields Batches, on the host.

        Returns:
            ``metrics`` {name: float}, ``floor`` {name: float}, ``examples`` [dict]; all on the host.
        """
        self.parts = named_parts(self, model)
        with evaluating(model) as device:
            outputs = gather([self.predict(model.features(batch), batch) for batch in on(device, loader)])
        return {"metrics": self.score(outputs), "floor": self.floor(outputs), "examples": self.examples(outputs)}


def named_parts(task: Task, model) -> dict:
    """{key: module} for the encoder and loss keys of a task; None where a key is null."""
    parts = {}
    for keys, modules in ((task.ENCODER_KEYS, model.encoders), (task.LOSS_KEYS, model.losses)):
        for key in keys:
            name = getattr(task, key)
            parts[key] = None if name is None else modules[name]
    return parts


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


def on(device, loader):
    """The batches of a loader, on the device."""
    for batch in loader:
        yield batch.to(device, non_blocking=True)


def gather(outputs: list[dict]) -> dict:
    """The outputs of all batches as one dict on the host: tensors concatenated, lists joined."""
    if not outputs:
        raise ValueError("the evaluation has no data: its loader gave no batch")
    joined = {}
    for name, first in outputs[0].items():
        several = [o[name] for o in outputs]
        joined[name] = torch.cat([s.cpu() for s in several]) if isinstance(first, Tensor) else list(chain(*several))
    return joined


def token_ids(text) -> list[list[int]]:
    """The token ids of each row of a TextField, padding left off: what an example shows is decoded from them."""
    return [ids[mask].tolist() for ids, mask in zip(text.ids.cpu(), text.mask.cpu())]
