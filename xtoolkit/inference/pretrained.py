"""A trained model that answers what its tasks say that it can: it reads what is given, they compute."""

import types
from pathlib import Path

import torch

from xtoolkit.batch import ImageField
from xtoolkit.data.process import TextProcessor
from xtoolkit.data.datasets import Pairs as PairData
from xtoolkit.data.text import Tokenizer
from xtoolkit.data.transform import ImageTransform
from xtoolkit.inference.inputs import Pairs, Pictures, Sentences
from xtoolkit.model import Model
from xtoolkit.recipe import Recipe
from xtoolkit.recipe.folder import EVALUATIONS
from xtoolkit.registry import DATASET_REGISTRY, TASK_REGISTRY, filled, nearest, schema

READS = ("mean", "std", "clean", "max_tokens")  # keys of data that say how a picture and a text are read


class Pretrained:
    """A model with its tokenizer and image transform, in evaluation mode. ``xtoolkit.load`` makes one.

    What it can be asked comes from the tasks that its recipe evaluates, and from those that suggest themselves for its
    encoders and losses (``Task.abilities``, ``Task.suggest``): ``abilities`` lists it, ``help(model.NAME)`` describes it.

    Pictures are paths, PIL images of any mode, or tensors (3, H, W): uint8 from 0 to 255 or floats from 0 to 1 (see
    ``ImageTransform``); pixels that ``transform`` gave already go in as ``ImageField(pixels)``. Texts are strings. One
    picture or text gives a result without that dimension; a list, a tensor (B, 3, H, W) or an ImageField gives it with.

    Texts are cleaned and cut, pictures resized and normalised, and passes computed and their precision chosen as the
    evaluations of the recipe do: the first evaluation says how, else the first stream (``mean``, ``std``, ``clean``,
    ``max_tokens``), of either first those with pictures; what no data says to clean is not cleaned. Results need no
    gradient, and do not depend on what else is in a batch, up to rounding. The model's own mode, training or not, is as
    before after each call.

    Args:
        model: with weights, on its device; of several parts that could answer, that which an evaluation names does.
        tokenizer: of its texts.
        folder: that it was loaded from, where its tasks' own files lie; None: the recipe's `train.output`.
        giving: ``giving(ability)`` names the known recipes that train a model with that ability.

    Attributes:
        model: ``model.features(batch)`` reads any other feature.
        tokenizer: has ``encode(text)`` and ``decode(ids)``.
        transform: a picture -> (3, size, size) float32; None if the model reads no pictures.
        config: the resolved recipe, plain.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, folder: Path | None = None, giving=lambda ability: []):
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, model.recipe.config
        reads, sizes = _reading(model.recipe), model.sizes()
        self._texts = TextProcessor(tokenizer, reads["max_tokens"], reads["clean"])
        self.transform = ImageTransform(sizes["image_size"], reads["mean"], reads["std"]) if sizes else None
        self._giving, self._abilities = giving, {}
        for task in _tasks(model, tokenizer, Path(model.recipe.train.output) if folder is None else folder):
            self._abilities = task.abilities() | self._abilities

    @property
    def device(self) -> torch.device:
        """Where the model is, and where results are: ``.model.to(...)`` moves both."""
        return next(self.model.parameters()).device

    # ---- what it can ----------------------------------------------------------------------------------------------------
    @property
    def abilities(self) -> list[str]:
        """What it can be asked, by name."""
        return sorted(self._abilities)

    def __getattr__(self, name: str):
        """An ability. Raises AttributeError with what the recipe would need for it, and with what the model can."""
        able = self.__dict__.get("_abilities", {})
        if name not in able:
            raise AttributeError(f"this model has no `{name}`" + (self._lacking(name) if not name.startswith("_") else ""))
        return able[name].fget(self) if isinstance(able[name], property) else types.MethodType(able[name], self)

    def __dir__(self):
        return [*super().__dir__(), *self._abilities]

    def __repr__(self) -> str:
        recipe, count = self.model.recipe, sum(p.numel() for p in self.model.parameters())
        parts = lambda kind: ", ".join(f"{name} ({type(part).__name__})" for name, part in kind.items())
        return (f"{Path(recipe.train.output).name}: {count:,} parameters, {recipe.train.precision} on {self.device}\n"
                f"  encoders: {parts(self.model.encoders)}\n  losses: {parts(self.model.losses)}\n"
                f"  abilities: {', '.join(self.abilities) or 'none'}")

    def _lacking(self, name: str) -> str:
        needed = {cls.__name__: cls.ABILITIES[name] for cls in map(TASK_REGISTRY.get, TASK_REGISTRY.names())
                  if name in cls.ABILITIES}
        recipes = self._giving(name) if needed else []
        known = ", ".join(recipes[:4]) + (f" and {len(recipes) - 4} more" if len(recipes) > 4 else "")
        why = "".join(f": {task} gives it, where a recipe has {what}" for task, what in needed.items())
        why += f"; recipes that have: {known}" if known else ""
        return f"{why}; it has: {', '.join(self.abilities) or 'none'}" if why else nearest(name, self.abilities)

    # ---- what abilities read --------------------------------------------------------------------------------------------
    def pictures(self, given) -> Pictures:
        """What a person gives as pictures, to be read in batches. Raises ValueError where the model reads none."""
        if self.transform is None:
            raise ValueError("this model reads no pictures: no encoder of its recipe reads any")
        return Pictures(given, self.transform, self.device)

    def texts(self, given, second=None) -> Sentences:
        """What a person gives as texts, to be read in batches; with ``second`` as pairs of texts."""
        return Sentences(given, self._texts, self.device, second)

    def pairs(self, images, texts) -> Pairs:
        """Pictures with texts, to be read in batches of pairs."""
        return Pairs(self.pictures(images), self.texts(texts))


def _tasks(model: Model, tokenizer, folder: Path) -> list:
    """The tasks that say what a model can: those of its recipe first, then those that suggest themselves."""
    recipe = model.recipe
    blocks = [(name, recipe.source.where("evaluate", name), block) for name, block in recipe.evaluate.items()]
    kinds = [{name: type(part) for name, part in parts.items()} for parts in (model.encoders, model.losses)]
    for name in TASK_REGISTRY.names():
        if block := TASK_REGISTRY.get(name).suggest(*kinds):
            blocks.append((name, f"what {name} suggests", block))
    return [TASK_REGISTRY.build(block, where, tokenizer=tokenizer, output=folder / EVALUATIONS / name)
            for name, where, block in blocks]


def _reading(recipe: Recipe) -> dict:
    """``mean``, ``std``, ``clean`` and ``max_tokens``: each of the first data that have it, evaluations before streams, of
    either those with pictures before those without; where none has it, what pictures and texts get that say nothing."""
    defaults = {key: one.default for key, one in schema(ImageTransform).items() if key in ("mean", "std")}
    found: dict = {}
    for blocks in ([block["data"] for block in recipe.evaluate.values()], [s.data for s in recipe.streams.values()]):
        data = [(DATASET_REGISTRY.get(block["type"]), block) for block in blocks]
        for cls, block in sorted(data, key=lambda one: not _pictures(one[0])):
            keys = filled(cls, block)
            keys["max_tokens"] = cls.max_length(keys)
            found = {key: keys[key] for key in READS if keys.get(key) is not None} | found
    return defaults | {"clean": False, "max_tokens": schema(PairData)["max_tokens"].default} | found


def _pictures(cls) -> bool:
    """Whether a dataset has pictures."""
    return any(issubclass(kind, ImageField) for kind in cls.FIELDS.values())
