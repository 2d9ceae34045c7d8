"""A trained model that answers: embeddings, similarities, whether a text belongs to a picture, where what it says is.

Shape letters: I images, T texts, B pairs, D channels of the shared space.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.batch import Batch, ImageField, RegionField
from xtoolkit.data import regions
from xtoolkit.data.base import Texts
from xtoolkit.data.text import Tokenizer, text_field
from xtoolkit.data.transform import ImageTransform
from xtoolkit.encoders.similarity import Similarity
from xtoolkit.features import Encoded
from xtoolkit.model import Model
from xtoolkit.recipe import Recipe
from xtoolkit.registry import DATASET_REGISTRY, TASK_REGISTRY, schema, settled
from xtoolkit.tasks.base import evaluating
from xtoolkit.tasks.retrieval import sides

# What each method needs: the block that would provide it.
NEEDED = {
    "sim": ("compare pictures with texts", "ITC", "a Similarity encoder and `losses.itc: {type: ITC, sim: sim}`"),
    "match": ("tell whether a text belongs to a picture", "ITM",
              "`losses.itm: {type: ITM, fusion: fusion, negatives: sim}`"),
    "boxes": ("find what a text says", "BBP", "`losses.bbp: {type: BBP, feature: fusion@whole}`"),
}


class Pretrained:
    """A model with its tokenizer and image transform, in evaluation mode. ``xtoolkit.load`` makes one.

    Pictures are paths, PIL images of any mode, or tensors (3, H, W): uint8 from 0 to 255 or floats from 0 to 1 (see
    ``ImageTransform``); pixels that ``transform`` gave already go in as ``ImageField(pixels)``. Texts are strings. One
    picture or text gives a result without that dimension; a list, a tensor (B, 3, H, W) or an ImageField gives it with.

    Texts are cleaned and cut, pictures resized and normalised, and passes computed and their precision chosen as the
    evaluations of the recipe do: the first evaluation says how, else the first stream (``mean``, ``std``, ``clean``,
    ``max_tokens``). Results need no gradient, and do not depend on what else is in a batch, up to rounding. The model's
    own mode, training or not, is as before after each call.

    Args:
        model: with weights, on its device; of several parts that could answer, that which an evaluation names does.
        tokenizer: of its texts.

    Attributes:
        model: ``model.features(batch)`` reads any other feature.
        tokenizer: has ``encode(text)`` and ``decode(ids)``.
        transform: a picture -> (3, size, size) float32; None if the model reads no pictures.
        config: the resolved recipe, plain.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer):
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, model.recipe.config
        reads = _reading(model.recipe)
        self._texts = Texts(tokenizer, reads["max_tokens"], reads["clean"], None, frozenset())
        sizes = model.sizes()
        self._spec = (sizes["image_size"], sizes["patch_size"]) if sizes else None
        self.transform = ImageTransform(self._spec[0], reads["mean"], reads["std"]) if self._spec else None
        self._parts = _parts(model)

    @property
    def device(self) -> torch.device:
        """Where the model is, and where results are: ``.model.to(...)`` moves both."""
        return next(self.model.parameters()).device

    @property
    def temperature(self) -> float:
        """What training divides similarities by: ``(similarity(images, texts) / temperature).softmax(-1)`` are its
        probabilities that a text is the one of a picture, among those given."""
        return float(self.model.encoders[self._part("sim")].temperature.detach())

    # ---- what it answers --------------------------------------------------------------------------------------------
    def encode_image(self, images, batch_size: int = 64) -> Tensor:
        """(I, D) float32 of unit length: what retrieval compares. (D,) for one picture."""
        pictures, source = _Pictures(images, self._transform()), self._source("image")
        with evaluating(self.model) as device:
            found = [self._vectors(Batch(image=pictures.read(rows)[0]).to(device), source)
                     for rows in _batches(torch.arange(len(pictures)), batch_size)]
        return _squeezed(torch.cat(found), pictures.single)

    def encode_text(self, texts, batch_size: int = 64) -> Tensor:
        """(T, D) float32 of unit length. (D,) for one text."""
        ids, single = self._ids(texts)
        source, order = self._source("text"), torch.tensor([len(one) for one in ids]).argsort(stable=True)
        with evaluating(self.model) as device:
            found = [self._vectors(Batch(text=self._field(ids, rows)).to(device), source)
                     for rows in _batches(order, batch_size)]
        return _squeezed(torch.cat(found)[order.argsort()], single)

    def similarity(self, images, texts, batch_size: int = 64) -> Tensor:
        """(I, T) float32, the cosine of each picture with each text, from -1 to 1; (T,), (I,) or () for single ones.

        Not divided by ``temperature``.
        """
        images, texts = self.encode_image(images, batch_size), self.encode_text(texts, batch_size)
        return images @ texts.t()

    def match(self, images, texts, batch_size: int = 64, logits: bool = False) -> Tensor:
        """(B,) the probability that each text belongs to its picture, by the fusion encoder's matching head (ITM).

        Pair by pair; one picture goes with every text, one text with every picture. () for one of both.

        Args:
            logits: (B, 2) instead, before the softmax. Retrieval re-ranks by column 1, which orders the pairs of one
                query nearly, not exactly, as the probabilities do.
        """
        loss = self.model.losses[self._part("match")]
        graph = self.model.graph
        image_slot, text_slot = sides(graph, loss.fusion)
        inputs, found, single = graph.encoders[loss.fusion].inputs, [], False
        with evaluating(self.model) as device:
            for batch, shown, _, single in self._pairs(images, texts, batch_size, device):
                f = self.model.features(batch)
                fused = f.run(loss.fusion, **{image_slot: f[inputs[image_slot]].select(shown),
                                              text_slot: f[inputs[text_slot]]})
                with torch.autocast(device.type, enabled=False):  # as retrieval does: in bf16 many would tie
                    found.append(loss.match(Encoded.of(fused.tokens.float(), fused.mask)).float())
        found = torch.cat(found)
        return _squeezed(found if logits else found.softmax(1)[:, 1], single)

    def ground(self, images, texts, normalized: bool = False, batch_size: int = 64) -> Tensor:
        """(B, 4) float32, the box of what each text says: x, y (upper left), w, h in pixels of the picture as given.

        Pair by pair; one picture goes with every text, one text with every picture. (4,) for one of both. The box is
        the model's own, as the evaluations measure it: it may reach over the picture's edge.

        Args:
            normalized: cx, cy (centre), w, h in shares of the picture's width and height instead.
        """
        loss, found, single = self.model.losses[self._part("boxes")], [], False
        with evaluating(self.model) as device:
            for batch, shown, sizes, single in self._pairs(images, texts, batch_size, device):
                if sizes is None and not normalized:
                    raise ValueError("an ImageField does not say how large its pictures were: ask with normalized=True")
                box = loss.boxes(self.model.features(self._whole(batch, shown))[loss.feature]).float()
                if not normalized:
                    box = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, 2:]], 1) * sizes.to(device).repeat(1, 2)
                found.append(box)
        return _squeezed(torch.cat(found), single)

    # ---- how --------------------------------------------------------------------------------------------------------
    def _part(self, kind: str) -> str:
        if self._parts[kind] is None:
            what, loss, block = NEEDED[kind]
            has = ", ".join(type(module).__name__ for module in self.model.losses.values())
            raise ValueError(f"this model cannot {what}: it was trained without {loss} (it has: {has}); "
                             f"its recipe needs {block}")
        return self._parts[kind]

    def _transform(self) -> ImageTransform:
        if self.transform is None:
            raise ValueError("this model reads no pictures: no encoder of its recipe has the input `$image`")
        return self.transform

    def _source(self, side: str) -> str:
        """The feature of one side that the similarity compares."""
        sim = self._part("sim")
        image_slot, text_slot = sides(self.model.graph, sim)
        return self.model.graph.encoders[sim].inputs[image_slot if side == "image" else text_slot]

    def _vectors(self, batch: Batch, source: str) -> Tensor:
        feature = self.model.features(batch)[source]
        return F.normalize((feature.pooled if isinstance(feature, Encoded) else feature).float(), dim=-1)

    def _ids(self, texts) -> tuple[list, bool]:
        """The token ids of each text, and whether it is one that stands alone."""
        single = isinstance(texts, str)
        texts = [texts] if single else list(texts) if isinstance(texts, (list, tuple)) else texts
        if not isinstance(texts, list):
            raise TypeError(f"texts are a string or a list of strings, not {type(texts).__name__}")
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts are a string or a list of strings, but text {place} is of type {type(text).__name__}")
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"text {place} holds half a character: a lone surrogate")
        if not texts:
            raise ValueError("no text was given")
        bad = lambda text: lambda kind, detail: ValueError(f"{text!r}: {kind}: {detail}")
        return [self._texts(text, bad(text), None).ids for text in texts], single

    def _field(self, ids, rows):
        return text_field([ids[row] for row in rows], self.tokenizer.pad)

    def _pairs(self, images, texts, batch_size, device):
        """The pairs, in batches.

        Yields:
            a Batch of texts and of distinct pictures; (B,) int64, the row of each text's picture; (B, 2) float32 on the
            host, width and height of that picture as given, or None; whether picture and text came alone.
        """
        pictures, (ids, one) = _Pictures(images, self._transform()), self._ids(texts)
        count = max(len(pictures), len(ids))
        if min(len(pictures), len(ids)) not in (1, count):
            raise ValueError(f"{len(pictures)} pictures and {len(ids)} texts: give as many of both, or one of either")
        for rows in _batches(torch.arange(count), batch_size):
            first = rows * 0  # of one that goes with all
            several = len(pictures) == count
            image, sizes = pictures.read(rows if several else first[:1])
            text, shown = self._field(ids, rows if len(ids) == count else first), rows - rows[0] if several else first
            yield (Batch(text, image).to(device), shown.to(device), None if sizes is None else sizes[shown],
                   pictures.single and one)

    def _whole(self, batch: Batch, shown: Tensor) -> Batch:
        """The batch of a region stream that asks for boxes: each text with a box that is the whole of its picture."""
        box = torch.tensor([regions.WHOLE], device=shown.device).expand(len(shown), 4)
        patches = (self._spec[0] // self._spec[1]) ** 2
        true = torch.ones(len(shown), patches, dtype=torch.bool, device=shown.device)
        return Batch(batch.text, batch.image, RegionField(shown, box, true, true[:, 0]))


def _batches(rows: Tensor, batch_size: int):
    """``rows`` in batches. Raises ValueError for a size that is none."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, not {batch_size!r}")
    return rows.split(batch_size)


def _squeezed(rows: Tensor, single: bool) -> Tensor:
    return rows[0] if single else rows


class _Pictures:
    """One picture or several, opened when they are asked for.

    Attributes:
        single: one that came alone.
    """

    def __init__(self, given, transform: ImageTransform):
        several = isinstance(given, (list, tuple, ImageField)) or isinstance(given, Tensor) and given.dim() == 4
        self.single, self._transform = not several, transform
        self._given = given.pixels if isinstance(given, ImageField) else given if several else [given]
        self._ready = isinstance(given, ImageField)
        if len(self) == 0:
            raise ValueError("no picture was given")

    def __len__(self) -> int:
        return len(self._given)

    def read(self, rows: Tensor) -> tuple[ImageField, Tensor | None]:
        """Some of the pictures.

        Returns:
            their pixels; (len(rows), 2) float32 width and height as given, None where only pixels as the model reads
            them were given.
        """
        if self._ready:
            return ImageField(self._given[rows.to(self._given.device)]), None
        opened = [self._transform.open(self._given[row], f"picture {row}") for row in rows.tolist()]
        sizes = torch.tensor([(one.width, one.height) for one in opened], dtype=torch.float32)
        return ImageField(torch.stack([self._transform.pixels(one) for one in opened])), sizes


def _parts(model: Model) -> dict[str, str | None]:
    """Who answers: ``sim`` an encoder, ``match`` and ``boxes`` losses. What an evaluation names comes first."""
    found = {"sim": [], "match": [], "boxes": []}
    for block in model.recipe.evaluate.values():
        cls = TASK_REGISTRY.get(block["type"])
        keys = {key.name: key.default for key in schema(cls).values()} | settled(cls, block, TASK_REGISTRY.beside)
        named = {method: key for key, method in cls.LOSS_METHODS.items()} | {key: key for key in cls.ENCODER_KEYS}
        for kind in found.keys() & named.keys():
            found[kind] += [keys[named[kind]]] if keys[named[kind]] is not None else []
    found["sim"] += [name for name, encoder in model.encoders.items() if isinstance(encoder, Similarity)]
    for kind in ("match", "boxes"):
        found[kind] += [name for name, loss in model.losses.items() if hasattr(loss, kind)]
    return {kind: next(iter(names), None) for kind, names in found.items()}


def _reading(recipe: Recipe) -> dict:
    """``mean``, ``std``, ``clean`` and ``max_tokens``: each of the first evaluation, else the first stream, that has
    pictures and that key; else the default of Pairs."""
    blocks = [block["data"] for block in recipe.evaluate.values()] + [s.data for s in recipe.streams.values()]
    found = {}
    for block in [*blocks, {"type": "Pairs"}]:
        cls = DATASET_REGISTRY.get(block["type"])
        keys = {key.name: key.default for key in schema(cls).values()} | settled(cls, block, DATASET_REGISTRY.beside)
        if "image" in cls.FIELDS:
            found = {key: keys[key] for key in ("mean", "std", "clean", "max_tokens") if key in keys} | found
    return found
