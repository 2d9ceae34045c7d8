"""Zero-shot or fine-tuned retrieval: the dual encoder ranks everything, the fusion encoder re-ranks the best.

Shape letters: I images, T texts, K candidates a query, P pairs to match, D width.
"""

import typing
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xtoolkit.batch import Batch, Field
from xtoolkit.features import full_precision
from xtoolkit.graph import Need
from xtoolkit.registry import TASK_REGISTRY, Count
from xtoolkit.tasks.base import (Alone, Measured, Task, cell, check_counts, column, decoded, evaluating, heads, joined,
                                 numbered, share, spread, token_ids)
from xtoolkit.tasks.comparing import Comparing, matched, rows_of, sides, vectors
from xtoolkit.tasks.ranking import GAINS, below_scored, best, chance, gains, hits_both_ways, recalls

DUAL, MATCHED, COMBINED = "dual", "matched", "combined"
WAYS = {DUAL: "dual encoder", MATCHED: "re-ranked by fusion", COMBINED: "re-ranked by both"}
RECALLS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "r_mean")


@TASK_REGISTRY.register()
class Retrieval(Task):
    """Recall of images by text and of texts by image: by the dual encoder alone, re-ranked by the fusion encoder, and by both.

    YAML: {type: Retrieval, sim: sim, match: itm, k: 256, pairs_per_pass: 64}

    Every picture and every text is encoded once. For each text the k most similar images, and for each image the k most
    similar texts, are scored by the matching head; the rest stay below them, in the order of the dual encoder. A pair
    that is wanted from both sides is scored once, and pairs go picture by picture, so that the keys and values of a
    picture are projected once in all. Of several processes each matches the pairs of the pictures that it has encoded.

    Three ways to order the candidates. ``dual``: similarity over temperature. ``matched``: the matching head's logit of
    class 1, as the paper has it. ``combined``: its log odds, class 1 minus class 0, plus similarity over temperature. A head
    that is trained on negatives drawn in proportion to exp(similarity over temperature) estimates how likely a pair is
    *beside* what the similarity says already (noise-contrastive estimation), so that the sum is the estimate of the whole.

    Metrics are per cent: ``dual.t2i_r1`` ... ``dual.i2t_r10``, ``dual.r_mean``, and the same under ``matched.`` and
    ``combined.``; the floor is chance. Ties are taken at their expectation (``ranking.hits_at``). Of the last two also what
    they gain over the dual encoder, with a 95 % interval over pictures: ``matched.t2i_r10_gain``,
    ``matched.t2i_r10_gain_low``, ``matched.t2i_r10_gain_high``, likewise ``i2t_r10`` and ``r_mean`` (``ranking.gains``).

    Args:
        sim: the similarity encoder; its two inputs are the dual encoder's features, its scores have ``image_to_text``.
        match: the loss whose fusion encoder and head re-rank (it has ``fusion``, a name, and ``match``); null: none do.
        k: candidates a query that are re-ranked.
        pairs_per_pass: pairs a pass through the fusion encoder.
        expect: {images: 1000, captions: 5000}, how many the whole split has; null: any number.

    Source: the released X-FM ``Retrieval.py``. There as here the score of a pair is the matching head's raw logit of
    class 1, not added to the similarity; there the candidates that are not re-ranked tie at -100. BLIP's released
    evaluation adds to that logit the cosine itself, not divided by the temperature. Noise-contrastive estimation: Gutmann
    and Hyvarinen 2010; Ma and Collins 2018 (1809.01812) for negatives that are drawn by a model.
    """

    HEADS = {"match": "match"}
    FIELDS = frozenset({"image", "text"})
    HEADLINES = {"t2i_r10": "Text to image R@10, %", "i2t_r10": "Image to text R@10, %"}
    ABILITIES = {"match": "a loss that matches, `losses.itm: {type: ITM, fusion: fusion, negatives: sim}`"} | dict.fromkeys(
        ("encode_image", "encode_text", "similarity", "temperature"),
        "a Similarity encoder and `losses.itc: {type: ITC, sim: sim}`")

    def __init__(self, sim: str = "sim", match: str | None = None, k: Count = 256, pairs_per_pass: Count = 64,
                 expect: dict[Literal["images", "captions"], Count] | None = None, *, tokenizer=None):
        self.sim, self.match, self.k, self.pairs_per_pass, self.tokenizer = sim, match, k, pairs_per_pass, tokenizer
        self.expect = expect

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["sim"], grad=False)]

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        """With the first encoder whose ``forward`` says that it returns scores with ``image_to_text``."""
        gives = lambda kind: getattr(typing.get_type_hints(kind.forward).get("return"), "__annotations__", {})
        sim = next((name for name, kind in encoders.items() if "image_to_text" in gives(kind)), None)
        matching = next((name for name, kind in losses.items() if hasattr(kind, "match")), None)
        return None if sim is None else {"type": cls.__name__, "sim": sim, "match": matching}

    def predict(self, f, batch) -> dict:
        """The dual encoder's features, and those that the fusion encoder reads, of pictures with their texts.

        ``batch["image_index"]`` (T,) int64 names the row of the picture that each text describes.
        """
        inputs = self._graph.encoders[self.sim].inputs
        kept = {f"sim.{slot}": [vectors(f[source]).cpu()] for slot, source in inputs.items()}
        if self.match is not None:
            fusion = f.inputs(self.heads["match"].fusion)
            kept |= {f"fusion.{slot}": [read.to("cpu")] for slot, read in fusion.items()}
        return kept | {"owner": [batch["image_index"].cpu()], "images": [batch.image.pixels.shape[0]],
                       "image_id": list(batch.image.image_id), "ids": token_ids(batch.text)}

    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        """Encodes all, then scores all pairs, then re-ranks. See ``Task.evaluate``."""
        self.heads, self._graph, self._sim = heads(self, model), model.graph, model.encoder(self.sim)
        with evaluating(model) as device:
            mine = [self.predict(model.features(batch), batch) for batch in share(loader, ranks, device)]
            pictures = self._own_pictures(mine)
            place = (ranks.part(len(loader)).start, sum(sum(output["images"]) for output in mine))
            before = sum(count for start, count in ranks.gather([place]) if start < place[0])
            own = slice(before, before + place[1])
            outputs = joined(ranks.gather(mine))
            check_counts(self, self.expect, {"images": len(outputs["image_id"]), "captions": len(outputs["ids"])})
            starts = torch.tensor([0] + outputs["images"]).cumsum(0)
            owner = torch.cat([index + start for index, start in zip(outputs["owner"], starts)]).to(device)
            image_slot, text_slot = sides(self._graph, self.sim)
            images, texts = (torch.cat(outputs[f"sim.{slot}"]).to(device) for slot in (image_slot, text_slot))
            ways = {DUAL: [self._similarity(images, texts, image_slot, text_slot)] * 2}
            if self.match is not None:
                ways |= self._rerank(model, pictures, own, outputs, ways[DUAL][0], ranks)
        return self.result({"ways": ways, "owner": owner, "image_id": outputs["image_id"], "ids": outputs["ids"]})

    def score(self, outputs: dict) -> dict[str, float]:
        owner = outputs["owner"]
        hits = {way: hits_both_ways(t2i, i2t, owner) for way, (t2i, i2t) in outputs["ways"].items()}
        found = {way: recalls(one) | ({} if way == DUAL else gains(hits[DUAL], one, owner)) for way, one in hits.items()}
        return {f"{way}.{name}": value for way, values in found.items() for name, value in values.items()}

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
        for text in spread(range(len(owner)), queries):
            order = t2i[:, text].argsort(descending=True, stable=True).tolist()
            shown.append({"ids": outputs["ids"][text], "right": names[owner[text]], "way": way,
                          "pictures": [names[i] for i in order[:top]], "rank": order.index(owner[text]) + 1})
        return shown

    def samples(self, outputs: dict) -> list[dict]:
        """A row for each text, called by its picture and its number there: whether its picture is among the first, by each way,
        ``dual.t2i_r1`` ..., ties at their expectation; a picture's first row says also whether it finds one of its texts,
        ``dual.i2t_r1`` ...; ``score`` is the last way's ``t2i_r1``."""
        owner, rows, seen = outputs["owner"].tolist(), [], set()
        hits = {f"{way}.{name}": values.tolist() for way, both in outputs["ways"].items()
                for name, values in hits_both_ways(*both, outputs["owner"]).items()}
        names = [outputs["image_id"][image] for image in owner]
        for text, (called, name, image) in enumerate(zip(numbered(names), names, owner)):
            own = {key: values[text] for key, values in hits.items() if ".t2i" in key}
            found = {} if image in seen else {key: values[image] for key, values in hits.items() if ".i2t" in key}
            seen.add(image)
            rows.append({"id": called, "image_id": name, "score": own[f"{list(outputs['ways'])[-1]}.t2i_r1"], **own, **found})
        return rows

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        found = {}
        for way in (way for way in WAYS if f"{way}.t2i_r1" in rows[0]):
            recall = np.stack([column(rows, f"{way}.{name}", 100) for name in RECALLS[:-1]], 1)
            found |= {f"{way}.{name}": Measured(values) for name, values in zip(RECALLS, recall.T)}
            found[f"{way}.r_mean"] = Measured(recall)
            if way != DUAL:
                found |= {f"{way}.{name}_gain": Measured(found[f"{way}.{name}"].values - found[f"{DUAL}.{name}"].values)
                          for name in GAINS}
        return found

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        """A row for each way of ranking, for what it gains over the dual encoder, and one for chance."""
        ways, rows = [way for way in WAYS if f"{way}.r_mean" in metrics], []
        for way in ways:
            rows.append([WAYS[way], *(cell(metrics[f"{way}.{recall}"]) for recall in RECALLS)])
            gained = [[metrics.get(f"{way}.{recall}_gain{end}") for end in ("", "_low", "_high")] for recall in RECALLS]
            if way != DUAL:
                rows.append([f"{WAYS[way]}: gain, 95 %", *("" if gain is None else f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"
                                                           for gain, low, high in gained)])
        rows += [["floor: chance", *(cell(floor.get(f"{ways[0]}.{recall}")) for recall in RECALLS)]] if floor else []
        return ["% of queries", "text to image R@1", "R@5", "R@10", "image to text R@1", "R@5", "R@10", "mean"], rows

    def figures(self, examples: list[dict]) -> list[dict]:
        """A figure for each text: what is ranked first, the right picture framed; where it is missing it stands apart."""
        lead = {"text": "Texts spread evenly over the data, not picked. Where the right picture is not among the first, it "
                        "stands apart."}
        shown = [{"title": f"“{decoded(self.tokenizer, e['ids'])}”",
                  "text": "right picture first" if e["rank"] == 1 else f"right picture at place {e['rank']}",
                  "items": [{"image": name, "right": name == e["right"]} for name in e["pictures"]]
                  + ([] if e["right"] in e["pictures"] else [{"image": e["right"], "apart": True}])} for e in examples]
        return [lead, *shown] if shown else []

    def abilities(self) -> dict:
        return Comparing(self.sim, self.match).abilities()

    def _own_pictures(self, mine: list[dict]):
        """Takes what the fusion encoder reads of pictures out of this process's outputs: no other process needs it."""
        if self.match is None or not mine:
            return None
        slot = sides(self._graph, self.heads["match"].fusion)[0]
        return _cat([part for output in mine for part in output.pop(f"fusion.{slot}")])

    def _similarity(self, images: Tensor, texts: Tensor, image_slot: str, text_slot: str, chunk: int = 1024) -> Tensor:
        """(I, T) float32 from the similarity encoder, in full precision: in bf16 many scores would tie."""
        sim, texts = self._sim, texts.float()
        with full_precision(images):
            return torch.cat([sim(view=None, **{image_slot: rows.float(), text_slot: texts}).image_to_text.float()
                              for rows in images.split(chunk)])

    def _rerank(self, model, pictures, own: slice, outputs: dict, similarity: Tensor, ranks) -> dict:
        """{way: the scores of both directions}, (I, T) float64 each, the k best of each query matched and above all others.

        Args:
            pictures: what the fusion encoder reads of this process's pictures, which are the rows ``own`` of all.
        """
        device = similarity.device
        wanted = [best(similarity, self.k, dim) for dim in (0, 1)]
        rows, columns = (wanted[0] | wanted[1]).nonzero(as_tuple=True)
        asked = (rows >= own.start) & (rows < own.stop)
        found = []
        if bool(asked.any()):
            texts = _cat(outputs[f"fusion.{sides(self._graph, self.heads['match'].fusion)[1]}"])
            pairs = rows[asked] - own.start, columns[asked]
            found = [self._match(model, pictures.to(device), texts.to(device), *pairs).cpu()]
        logits = torch.cat(ranks.gather(found)).to(device)
        scores = {MATCHED: logits[:, 1], COMBINED: logits[:, 1] - logits[:, 0] + similarity[rows, columns]}
        everywhere = {way: torch.zeros_like(similarity).index_put_((rows, columns), some) for way, some in scores.items()}
        return {way: [below_scored(all_of, scored, similarity) for scored in wanted] for way, all_of in everywhere.items()}

    def _match(self, model, images, texts, rows: Tensor, columns: Tensor) -> Tensor:
        """(P, 2) float32, the matching logits of pairs (``rows`` ascending), whole pictures after whole pictures.

        Args:
            images, texts: what the fusion encoder reads of them: features, or fields of the batch.
        """
        f, loss = model.features(Batch()), self.heads["match"]
        image_slot, text_slot = sides(self._graph, loss.fusion)
        count = images.rows if isinstance(images, Field) else len(images)
        lengths = texts.mask.sum(1) if hasattr(texts, "trim") else columns.new_ones(int(columns.max()) + 1)
        ends = torch.bincount(rows, minlength=count).cumsum(0).tolist()
        logits, first, start = [], 0, 0
        while start < len(rows):
            last = first + 1
            while last < count and ends[last] - start <= self.pairs_per_pass:
                last += 1
            group = rows_of(images, torch.arange(first, last, device=rows.device)).to(rows.device)  # its keys and values, once
            pairs = torch.arange(start, ends[last - 1], device=rows.device)
            pairs = pairs[lengths[columns[pairs]].argsort(stable=True)]
            found = []
            for some in pairs.split(self.pairs_per_pass):
                text = rows_of(texts, columns[some])
                text = text.trim(int(lengths[columns[some]].max())) if hasattr(text, "trim") else text
                fused = f.run(loss.fusion, **{image_slot: rows_of(group, rows[some] - first), text_slot: text})
                found.append(matched(loss, fused))
            logits.append(torch.cat(found)[pairs.argsort()])
            first, start = last, ends[last - 1]
        return torch.cat(logits)


def _cat(several: list):
    """What an encoder reads of several batches as of one."""
    return torch.cat(several) if isinstance(several[0], Tensor) else type(several[0]).cat(several)
