"""What the report shows of evaluations and of training batches: figures as plain data, their pictures as JPEG in base64.

A figure is ``{"title": str, "text": str, "items": [item]}``, every key optional; the keys of an item are those of ``Item``.
"""

import base64
import io
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from xtoolkit.engine import distributed
from xtoolkit.engine.records import write_json
from xtoolkit.hooks import Hook
from xtoolkit.tasks.base import Alone

# Pixels a side of a picture at most, and its JPEG quality.
SIDE, QUALITY = 192, 88


@dataclass(frozen=True)
class Item:
    """One thing that a figure shows; see ``Task.figures``.

    Attributes:
        image: a picture: (3, H, W) uint8 or PIL's, or an image id, which is looked up in the evaluation's data; in a file
            it is a JPEG in base64.
    """

    image: object = None
    caption: str = ""
    note: str = ""
    right: bool = False
    apart: bool = False
    mask: list = field(default_factory=list)
    boxes: list = field(default_factory=list)
    words: list = field(default_factory=list)

    def plain(self) -> dict:
        """What it has, as JSON has it."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}


def record(task, result: dict, figures: list[dict]) -> dict:
    """What is kept of an evaluation.

    Args:
        task: says how its metrics are laid out: ``table(metrics, floor)`` and ``HEADLINES``.
        result: what ``Task.evaluate`` returned.
        figures: with their pictures, see ``with_pictures``.

    Returns:
        ``metrics``, ``floor``, ``table``, ``headlines`` and ``figures``, as JSON has them.
    """
    metrics, floor = result["metrics"], result["floor"]
    return {"metrics": metrics, "floor": floor, "table": task.table(metrics, floor), "headlines": task.HEADLINES,
            "figures": figures}


def with_pictures(figures: list[dict], dataset=None, batches=(), ranks=Alone()) -> list[dict]:
    """Figures as JSON has them. An item whose picture is not to be had is shown without.

    Several processes call it at the same time with the same figures, and each looks through its own batches.

    Args:
        figures: as a task or a dataset makes them.
        dataset: ``pictures(batch)`` gives {image id: (3, H, W) uint8} of its own batches.
        batches: those of this process; gone through no further than the pictures that are named are found, and not at all
            where none is.
        ranks: has ``gather(list)``, see ``tasks.base.Alone``.

    Raises:
        TypeError: a key that items do not have.
    """
    items = [[Item(**item) for item in figure["items"]] if "items" in figure else [] for figure in figures]
    named = {item.image for several in items for item in several if isinstance(item.image, str)}
    found = dict(ranks.gather(list(find_pictures(dataset, batches, named).items()) if named else []))

    def shown(item):
        if item.image is None or isinstance(item.image, str):
            return replace(item, image=found[item.image] if item.image in found else None).plain()
        return replace(item, image=jpeg(item.image)).plain()

    return [figure | ({"items": [shown(item) for item in several]} if several else {}) for figure, several in zip(figures, items)]


def find_pictures(dataset, batches, names: set) -> dict[str, str]:
    """{image id: JPEG in base64} of the pictures named; what the data does not have is left out."""
    found: dict = {}
    for batch in batches:
        found |= {name: jpeg(picture) for name, picture in dataset.pictures(batch).items()
                  if name in names and name not in found}
        if len(found) == len(names):
            break
    return found


def jpeg(picture: Tensor | Image.Image, side: int = SIDE) -> str:
    """A picture, (3, H, W) uint8 or PIL's, as JPEG in base64, made smaller where it is larger than ``side``."""
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or len(picture) != 3:
            raise ValueError(f"a picture must be (3, H, W) uint8, not {tuple(picture.shape)} {picture.dtype}")
        picture = Image.fromarray(picture.permute(1, 2, 0).contiguous().cpu().numpy())
    picture = picture.convert("RGB")  # also a copy: thumbnail works in place
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY)
    return base64.b64encode(out.getvalue()).decode()


class Samples(Hook):
    """``samples.json``, {stream: figures}: what the model read first of each stream.

    The batch is looked at as the model gets it: nothing is read again. A run that goes on keeps what there is.

    Args:
        tokenizer: of the run.
        shown: rows of a batch.
    """

    NAME = "samples.json"

    def __init__(self, tokenizer, shown: int = 6):
        self._tokenizer, self._shown, self._watch = tokenizer, shown, None

    def before_train(self, trainer):
        self._path = Path(trainer.output) / self.NAME
        self._figures = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._unwritten = False

        def look(model, arguments):
            stream, batch = arguments[:2]
            if stream not in self._figures:
                figures = trainer.loaders[stream].dataset.figures(batch.to("cpu"), self._tokenizer, self._shown)
                self._figures[stream], self._unwritten = with_pictures(figures), True

        if distributed.is_main() and not self._figures.keys() >= trainer.recipe.streams.keys():
            self._watch = trainer.model.register_forward_pre_hook(look)

    def after_step(self, trainer):
        if self._unwritten:
            write_json(self._path, self._figures)
            self._unwritten = False
            if self._figures.keys() >= trainer.recipe.streams.keys():
                self.close(trainer)

    def close(self, trainer):
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
