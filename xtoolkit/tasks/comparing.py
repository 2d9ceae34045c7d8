"""What a model that compares pictures with texts can be asked: vectors, similarities, whether a text belongs to a picture.

Shape letters: I images, T texts, B pairs, D channels of the shared space.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.batch import Batch
from xtoolkit.features import Encoded, full_precision
from xtoolkit.tasks.base import evaluating


class Comparing:
    """The abilities of `Retrieval`: methods whose first argument is the loaded model.

    Args:
        sim: name of the similarity encoder.
        matching: name of the loss that has ``match``, or None.
    """

    def __init__(self, sim: str, matching: str | None):
        self._sim, self._matching = sim, matching

    def abilities(self) -> dict:
        """{name: method}; ``match`` only where a loss can tell."""
        found = {"encode_image": self.encode_image, "encode_text": self.encode_text, "similarity": self.similarity,
                 "temperature": property(self.temperature)}
        return found | ({} if self._matching is None else {"match": self.match})

    def temperature(self, loaded) -> float:
        """What training divides similarities by: ``(similarity(images, texts) / temperature).softmax(-1)`` are its
        probabilities that a text is the one of a picture, among those given."""
        return float(loaded.model.encoder(self._sim).current().detach())

    def encode_image(self, loaded, images, batch_size: int = 64) -> Tensor:
        """(I, D) float32 of unit length: what retrieval compares. (D,) for one picture."""
        return self._encode(loaded, 0, loaded.pictures(images), batch_size)

    def encode_text(self, loaded, texts, batch_size: int = 64) -> Tensor:
        """(T, D) float32 of unit length. (D,) for one text."""
        return self._encode(loaded, 1, loaded.texts(texts), batch_size)

    def similarity(self, loaded, images, texts, batch_size: int = 64) -> Tensor:
        """(I, T) float32, the cosine of each picture with each text, from -1 to 1; (T,), (I,) or () for single ones.

        Not divided by ``temperature``.
        """
        return self.encode_image(loaded, images, batch_size) @ self.encode_text(loaded, texts, batch_size).t()

    def match(self, loaded, images, texts, batch_size: int = 64, logits: bool = False) -> Tensor:
        """(B,) the probability that each text belongs to its picture, by the fusion encoder's matching head (ITM).

        Pair by pair; one picture goes with every text, one text with every picture. () for one of both.

        Args:
            logits: (B, 2) instead, before the softmax. Retrieval re-ranks by column 1, which orders the pairs of one
                query nearly, not exactly, as the probabilities do.
        """
        model, pairs, found = loaded.model, loaded.pairs(images, texts), []
        loss = model.losses[self._matching]
        image_slot, text_slot = sides(model.graph, loss.fusion)
        with evaluating(model):
            for image, text, shown, _ in pairs.batches(batch_size):
                f = model.features(Batch(text=text, image=image))
                inputs = f.inputs(loss.fusion)
                fused = f.run(loss.fusion, **inputs | {image_slot: rows_of(inputs[image_slot], shown)})
                found.append(matched(loss, fused))
        found = torch.cat(found)
        return pairs.result(found if logits else found.softmax(1)[:, 1])

    def _encode(self, loaded, side: int, given, batch_size: int) -> Tensor:
        """The vectors of pictures (side 0) or of texts (1)."""
        graph, found = loaded.model.graph, []
        source = graph.encoders[self._sim].inputs[sides(graph, self._sim)[side]]
        with evaluating(loaded.model):
            for field in given.batches(batch_size):
                vectors = summary(loaded.model.features(Batch(**{("text" if side else "image"): field}))[source])
                found.append(F.normalize(vectors.float(), dim=-1))
        return given.result(torch.cat(found))


def sides(graph, encoder: str) -> tuple[str, str]:
    """The slots of a two-input encoder that come from the image and from the text.

    Raises:
        ValueError: it does not have exactly one of each.
    """
    found = {"image": [], "text": []}
    for slot, source in graph.encoders[encoder].inputs.items():
        for field in graph.sources(source) & found.keys():
            found[field].append(slot)
    if any(len(slots) != 1 for slots in found.values()) or found["image"] == found["text"]:
        raise ValueError(f"encoder `{encoder}` must have one input that comes from $image and one that comes from $text; "
                         f"it has {dict(graph.encoders[encoder].inputs)}")
    return found["image"][0], found["text"][0]


def matched(loss, fused: Encoded) -> Tensor:
    """(B, 2) float32, what a matching head says of fused pairs, in full precision: bf16 has so few logits that candidates
    would tie."""
    with full_precision(fused.mask):
        return loss.match(Encoded.of(fused.tokens.float(), fused.mask)).float()


def rows_of(read, rows: Tensor):
    """The rows (K,) int64 of what an encoder reads: a field of the batch, token features, or vectors (B, D)."""
    return read[rows] if isinstance(read, Tensor) else read.select(rows)


def summary(feature) -> Tensor:
    """(B, D): a projection gives it as it is; of token features it is the summary."""
    return feature.pooled if isinstance(feature, Encoded) else feature


def vectors(feature) -> Tensor:
    """(B, D) of unit length, what a similarity compares: a projection gives them as they are, token features their summary."""
    return feature.unit if isinstance(feature, Encoded) else feature
