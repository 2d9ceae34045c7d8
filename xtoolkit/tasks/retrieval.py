"""Zero-shot or fine-tuned retrieval: the dual encoder ranks everything, the fusion encoder re-ranks the best.

Shape letters: I images, T texts, K candidates a query, P pairs to match, D width.
"""

import torch
from torch import Tensor

from xtoolkit.batch import Batch
from xtoolkit.features import Encoded
from xtoolkit.registry import TASK_REGISTRY
from xtoolkit.tasks.base import Task, evaluating, gather, named_parts, on, token_ids
from xtoolkit.tasks.ranking import both_ways, chance

DUAL, MATCHED = "dual", "matched"


@TASK_REGISTRY.register()
class Retrieval(Task):
    """Recall of images by text and of texts by image, from the dual encoder alone and re-ranked by the fusion encoder.

    YAML: {type: Retrieval, sim: sim, match: itm, k: 256, batch_size: 64}

    Every picture and every text is encoded once. For each text the k most similar images, and for each image the k most
    similar texts, are scored by the matching head; the rest stay below them, in the order of the dual encoder. A pair
    that is wanted from both sides is scored once, and pairs go picture by picture, so that the keys and values of a
    picture are projected once in all.

    Metrics are per cent: ``dual.t2i_r1`` ... ``dual.i2t_r10``, ``dual.r_mean``, and the same under ``matched.``; the
    floor is chance. Ties are taken at their expectation (``ranking.recall_at``).

    Args:
        sim: the similarity encoder; its two inputs are the dual encoder's features, its scores have ``image_to_text``.
        match: the loss whose fusion encoder and head re-rank (it has ``fusion``, a name, and ``match``); null: none do.
        k: candidates a query that are re-ranked.
        batch_size: pairs a pass through the fusion encoder.

    Source: the released X-FM ``Retrieval.py``. There as here the score of a pair is the matching head's raw logit of
    class 1, not added to the similarity; there the candidates that are not re-ranked tie at -100.
    """

    ENCODER_KEYS = ("sim",)
    LOSS_KEYS = ("match",)
    LOSS_METHODS = {"match": "match"}
    FIELDS = frozenset({"image", "text"})

    def __init__(self, sim: str = "sim", match: str | None = None, k: int = 256, batch_size: int = 64):
        self.sim, self.match, self.k, self.batch_size = sim, match, k, batch_size

    def predict(self, f, batch) -> dict:
        """The dual encoder's features, and those that the fusion encoder reads, of pictures with their texts.

        ``batch["image_index"]`` (T,) int64 names the row of the picture that each text describes.
        """
        inputs = self._graph.encoders[self.sim].inputs
        kept = {f"sim.{slot}": [_plain(f[source])] for slot, source in inputs.items()}
        if self.match is not None:
            fusion = self._graph.encoders[self.parts["match"].fusion].inputs
            kept |= {f"fusion.{slot}": [f[source]] for slot, source in fusion.items()}
        return kept | {"owner": [batch["image_index"]], "images": [batch.image.pixels.shape[0]],
                       "image_id": list(batch.image.image_id), "ids": token_ids(batch.text)}

    def evaluate(self, model, loader) -> dict:
        """Encodes all, then scores all pairs, then re-ranks. See ``Task.evaluate``."""
        self.parts, self._graph = named_parts(self, model), model.graph
        with evaluating(model) as device:
            outputs = gather([self.predict(model.features(batch), batch) for batch in on(device, loader)])
            starts = torch.tensor([0] + outputs["images"]).cumsum(0)
            owner = torch.cat([index + start.to(device) for index, start in zip(outputs["owner"], starts)])
            image_slot, text_slot = sides(model.graph, self.sim)
            images, texts = torch.cat(outputs[f"sim.{image_slot}"]), torch.cat(outputs[f"sim.{text_slot}"])
            ways = {DUAL: [self._similarity(images, texts, image_slot, text_slot)] * 2}
            if self.match is not None:
                ways[MATCHED] = self._rerank(model, outputs, ways[DUAL][0])
        outputs = {"ways": ways, "owner": owner, "image_id": outputs["image_id"], "ids": outputs["ids"]}
        return {"metrics": self.score(outputs), "floor": self.floor(outputs), "examples": self.examples(outputs)}

    def score(self, outputs: dict) -> dict[str, float]:
        return {f"{way}.{name}": value for way, (t2i, i2t) in outputs["ways"].items()
                for name, value in both_ways(t2i, i2t, outputs["owner"]).items()}

    def floor(self, outputs: dict) -> dict[str, float]:
        by_chance = chance(len(outputs["image_id"]), outputs["owner"])
        return {f"{way}.{name}": value for way in outputs["ways"] for name, value in by_chance.items()}

    def examples(self, outputs: dict, queries: int = 8, top: int = 5) -> list[dict]:
        """Texts spread evenly over the set, each with the pictures that the last way of ranking puts first.

        Returns:
            [{``ids``: token ids, ``right``: image_id, ``pictures``: top image_ids, ``rank``: 1 is first, ``way``}]
        """
        way, (t2i, _) = list(outputs["ways"].items())[-1]
        names, owner = outputs["image_id"], outputs["owner"].tolist()
        shown = []
        for text in range(0, len(owner), -(-len(owner) // queries)):
            order = t2i[:, text].argsort(descending=True, stable=True).tolist()
            shown.append({"ids": outputs["ids"][text], "right": names[owner[text]], "way": way,
                          "pictures": [names[i] for i in order[:top]], "rank": order.index(owner[text]) + 1})
        return shown

    def _similarity(self, images: Tensor, texts: Tensor, image_slot: str, text_slot: str, chunk: int = 1024) -> Tensor:
        """(I, T) float32 from the similarity encoder, in full precision: in bf16 many scores would tie."""
        sim, texts = self.parts["sim"], texts.float()
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([sim(view=None, **{image_slot: rows.float(), text_slot: texts}).image_to_text.float()
                              for rows in images.split(chunk)])

    def _rerank(self, model, outputs: dict, similarity: Tensor) -> list[Tensor]:
        """The scores of both directions, (I, T) float32 each, the k best of each query matched and above all others."""
        image_slot, text_slot = sides(model.graph, self.parts["match"].fusion)
        images, texts = Encoded.cat(outputs[f"fusion.{image_slot}"]), Encoded.cat(outputs[f"fusion.{text_slot}"])
        wanted = [_best(similarity, self.k, dim) for dim in (0, 1)]
        logits = torch.zeros_like(similarity)
        rows, columns = (wanted[0] | wanted[1]).nonzero(as_tuple=True)
        logits[rows, columns] = self._match(model, images, texts, rows, columns, image_slot, text_slot)
        return [below_scored(logits, w, similarity) for w in wanted]

    def _match(self, model, images, texts, rows, columns, image_slot, text_slot) -> Tensor:
        """(P,) float32, the matching logits of pairs (``rows`` ascending), whole pictures after whole pictures."""
        f, loss = model.features(Batch()), self.parts["match"]
        lengths = texts.mask.sum(1)
        ends = torch.bincount(rows, minlength=len(images)).cumsum(0).tolist()
        logits, first, start = [], 0, 0
        while start < len(rows):
            last = first + 1
            while last < len(images) and ends[last] - start <= self.batch_size:
                last += 1
            group = Encoded.of(images.tokens[first:last], images.mask[first:last])
            pairs = torch.arange(start, ends[last - 1], device=rows.device)
            pairs = pairs[lengths[columns[pairs]].argsort(stable=True)]
            found = []
            for some in pairs.split(self.batch_size):
                longest = int(lengths[columns[some]].max())
                text = Encoded.of(texts.tokens[columns[some], :longest], texts.mask[columns[some], :longest])
                fused = f.run(loss.fusion, **{image_slot: group.select(rows[some] - first), text_slot: text})
                # The head in full precision: bf16 has so few logits that candidates would tie.
                with torch.autocast(rows.device.type, enabled=False):
                    found.append(loss.match(Encoded.of(fused.tokens.float(), fused.mask))[:, 1].float())
            logits.append(torch.cat(found)[pairs.argsort()])
            first, start = last, ends[last - 1]
        return torch.cat(logits)


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
        raise ValueError(f"retrieval reads encoder `{encoder}`, which must have one input that comes from $image and "
                         f"one that comes from $text; it has {dict(graph.encoders[encoder].inputs)}")
    return found["image"][0], found["text"][0]


def below_scored(logits: Tensor, scored: Tensor, similarity: Tensor) -> Tensor:
    """``logits`` where ``scored``, and below all of them the others, in the order of ``similarity``; float64 (I, T)."""
    logits, similarity = logits.double(), similarity.double()
    lowest = logits.masked_fill(~scored, torch.inf).min()
    return torch.where(scored, logits, similarity - similarity.max() + lowest - 1)


def _best(similarity: Tensor, k: int, dim: int) -> Tensor:
    """(I, T) bool, True at the k largest along ``dim``; of equal ones those that stand first."""
    order = similarity.argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, min(k, similarity.shape[dim]))
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(dim, order, True)


def _plain(feature) -> Tensor:
    """(B, D): a projection gives it as it is; of token features it is the summary."""
    return feature.pooled if isinstance(feature, Encoded) else feature
