"""What the report shows of evaluations and of training batches: figures as plain data, their pictures as JPEG in base64.

A figure has the keys of ``Figure``, an item of it those of ``Item``, every one optional.
"""

import base64
import io
import json
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from xtoolkit.engine import distributed
from xtoolkit.engine.records import write_json
from xtoolkit.hints import fits
from xtoolkit.hooks import Hook
from xtoolkit.registry import arguments, check, not_numbers
from xtoolkit.tasks.base import Alone, Task

# Pixels a side of a picture at most, and its JPEG quality.
SIDE, QUALITY = 192, 88


@dataclass(frozen=True)
class Item:
    """One thing that a figure shows; see ``Task.figures``.

    Attributes:
        image: a picture: (3, H, W) uint8 or PIL's, or an image id, which is looked up in the evaluation's data; in a file
            it is a JPEG in base64.
    """

    image: str | Tensor | Image.Image | None = None
    caption: str = ""
    note: str = ""
    right: bool = False
    apart: bool = False
    mask: list[bool] = field(default_factory=list)
    heat: list[float] = field(default_factory=list)
    boxes: list[dict] = field(default_factory=list)
    words: list[tuple[str, bool, str]] = field(default_factory=list)

    def problems(self) -> list[tuple[str, str]]:
        """(key, what is wrong) beyond the types."""
        found = [("boxes", "must be a list of {box: [cx, cy, w, h], kind: a word}")] if any(
            box.keys() != {"box", "kind"} or not fits(box["kind"], str) or not fits(box["box"], tuple[(float,) * 4])
            for box in self.boxes) else []
        if isinstance(self.image, Tensor) and not _is_picture(self.image):
            found.append((fields(self)[0].name, f"must be (3, H, W) uint8, not {tuple(self.image.shape)} {self.image.dtype}"))
        return found

    def plain(self) -> dict:
        """What it has, as JSON has it."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}


@dataclass(frozen=True)
class Figure:
    """One figure. ``items`` may be empty where ``text`` says all; see ``Task.figures``."""

    title: str = ""
    text: str = ""
    items: list[dict] = field(default_factory=list)


def mistake(figure) -> str | None:
    """What is wrong with a figure, made or read from a file, in one line; None: it can be shown."""
    if not isinstance(figure, dict):
        return f"a figure must be a mapping, not {type(figure).__name__}"
    found = check(Figure, figure, "a figure") + not_numbers(figure, lambda *keys: "a figure")
    for number, item in enumerate(figure.get("items") or ()) if not found else ():
        found += check(Item, item, f"items[{number}]")
    return " ".join(found[0].split()) if found else None


def excuse(wrong: str) -> dict:
    """The figure in the place of one that cannot be shown."""
    return vars(Figure(text=f"Not shown: {wrong}"))


def good(figures, of: str) -> list[dict]:
    """Figures as they were made, for ``with_pictures``. In the place of a wrong one stands what is wrong with it, and stderr
    says it too: a run does not end for what it only shows.

    Args:
        of: who made them.
    """
    figures = figures if isinstance(figures, (list, tuple)) else [figures]
    wrong = [mistake(figure) for figure in figures]
    for one in filter(None, wrong) if distributed.is_main() else ():
        print(f"{of}: {one}; not shown", file=sys.stderr)
    return [figure if one is None else excuse(f"{of}: {one}") for figure, one in zip(figures, wrong)]


def table(task, metrics: dict, floor: dict, of: str) -> tuple[list[str], list[list[str]]]:
    """``Task.table``; where what a task gives cannot be one, every metric in a row, and stderr says so."""
    made = task.table(metrics, floor)
    if fits(made, tuple[list[str], list[list[str]]]) and made[0] and all(len(row) == len(made[0]) for row in made[1]):
        return made
    if distributed.is_main():
        print(f"{of}.table: must return (heading, rows), all of them lists of text, each row as long as the heading; its "
              "metrics are listed instead", file=sys.stderr)
    return Task.table(task, metrics, floor)


def record(task, result: dict, figures: list[dict], of: str) -> dict:
    """What is kept of an evaluation.

    Args:
        of: the evaluation and its task, for messages.
        task: says how its metrics are laid out: ``table(metrics, floor)`` and ``HEADLINES``.
        result: what ``Task.evaluate`` returned.
        figures: with their pictures, see ``with_pictures``.

    Returns:
        ``metrics``, ``floor``, ``table``, ``headlines``, ``figures`` and ``files``, as JSON has them.
    """
    metrics, floor = result["metrics"], result["floor"]
    return {"metrics": metrics, "floor": floor, "table": table(task, metrics, floor, of), "headlines": task.HEADLINES,
            "figures": figures, "files": result.get("files", {})}


def with_pictures(figures: list[dict], dataset=None, batches=(), ranks=Alone()) -> list[dict]:
    """Figures as JSON has them. An item whose picture is not to be had is shown without.

    Several processes call it at the same time with the same figures, and each looks through its own batches.

    Args:
        figures: without mistakes, see ``good``.
        dataset: ``pictures(batch)`` gives {image id: (3, H, W) uint8} of its own batches.
        batches: those of this process; gone through no further than the pictures that are named are found, and not at all
            where none is.
        ranks: has ``gather(list)``, see ``tasks.base.Alone``.
    """
    items = [[Item(**arguments(Item, item)) for item in figure.get("items") or ()] for figure in figures]
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


def _is_picture(pixels: Tensor) -> bool:
    return pixels.dtype == torch.uint8 and pixels.ndim == 3 and len(pixels) == 3


def jpeg(picture: Tensor | Image.Image, side: int = SIDE) -> str:
    """A picture, (3, H, W) uint8 or PIL's, as JPEG in base64, made smaller where it is larger than ``side``."""
    if isinstance(picture, Tensor):
        if not _is_picture(picture):
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
                dataset = trainer.loaders[stream].dataset
                figures = dataset.figures(batch.to("cpu"), self._tokenizer, self._shown)
                of = f"stream `{stream}`: {type(dataset).__name__}.figures"
                self._figures[stream], self._unwritten = with_pictures(good(figures, of)), True

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
