"""The pointing game: does where an expression looks lie in the box that it describes?

Shape letters: R expressions, K layers, L text tokens, N patches, D width.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.batch import RegionField
from xtoolkit.features import Encoded, full_precision
from xtoolkit.graph import Need
from xtoolkit.registry import TASK_REGISTRY, ConfigError, Count
from xtoolkit.tasks.attending import LAYERS, Attending, attention_maps, side_of
from xtoolkit.tasks.base import Alone, Measured, Task, cell, column, decoded, spread, token_ids
from xtoolkit.tasks.boxes import corners
from xtoolkit.tasks.comparing import sides, summary


@TASK_REGISTRY.register()
class PointingGame(Task):
    """The share of expressions whose map over patches is highest in the true box, and by which layer's maps it is largest.

    YAML: {type: PointingGame, match: itm, sim: sim, choose: val}

    A map is what ``attend`` gives (``attending.attention_maps``), the mean of an expression's words. It points right where the
    centre of its highest patch lies in the box; patches that tie share. The layer is chosen on the source ``choose`` and kept
    with the run (``layers.json`` of the evaluation's folder), where ``attend`` of a loaded model finds it.

    Metrics, per cent: ``accuracy``, by the chosen layer, over the expressions of all other sources; ``layer``, the chosen one,
    from 0 on. Of each source, as ``testA.accuracy``: ``accuracy``; ``layer0``, ``layer1``, ...; ``attention``, by the
    attention without its gradient, from the layer ``attention_layer`` where that points right most often on ``choose``; and
    ``similarity``, by the contrastive similarity of each patch with the expression. The floor is chance: the share of patches
    whose centre lies in the box.

    Args:
        match: the loss whose fusion encoder looks (it has ``fusion``, a name, and ``match``).
        sim: the similarity encoder; null: nothing is compared with it.
        choose: the source by whose expressions the layer is chosen; no other task should train or choose on the others.
        pairs_per_pass: expressions a pass through the fusion encoder.

    Source: pointing game, Zhang et al. 2016 (1608.00507), there within 15 pixels; the maps are ALBEF's, which scores boxes
    that a detector proposes by them.
    """

    HEADS = {"match": "match"}
    FIELDS = frozenset({"image", "text", "region"})
    HEADLINES = {"accuracy": "Expressions that look into their box, %"}
    ABILITIES = {"attend": "a loss that matches by cross-attention, `losses.itm: {type: ITM, fusion: fusion, negatives: sim}` "
                           "with a CrossAttention `fusion`, as pretraining recipes have"}

    def __init__(self, match: str = "itm", sim: str | None = "sim", choose: str = "val", pairs_per_pass: Count = 64, *,
                 tokenizer=None, output=None):
        self.match, self.sim, self.choose, self.pairs_per_pass = match, sim, choose, pairs_per_pass
        self.tokenizer, self.output = tokenizer, output

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [] if block["sim"] is None else [Need(block["sim"], grad=False)]

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        match = next((name for name, kind in losses.items() if hasattr(kind, "match")), None)
        tells = any(hasattr(kind, "attending") for kind in encoders.values())
        return {"type": cls.__name__, "match": match, "sim": None} if match is not None and tells else None

    def abilities(self) -> dict:
        return {"attend": Attending(self.match, self.output).attend}

    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        self._model = model
        return super().evaluate(model, loader, ranks)

    def predict(self, f, batch) -> dict:
        """``hits`` (R, K), ``attention`` (R, K) and ``similarity`` (R,): how far each map points right, 0 or 1 but for ties;
        ``chance`` (R,); ``map`` (R, K, N) uint8, the weighted ones over their maximum."""
        loss, region, ids = self.heads["match"], batch.region, token_ids(batch.text)
        with full_precision(batch.image.pixels):
            inputs = f.inputs(f"{loss.fusion}@{RegionField.WHOLE}")
            weighted, plain = self._maps(loss, inputs, batch.text)
            alike = None if self.sim is None else self._similarity(f, batch)
        inside = centres_in(region.box, weighted.shape[-1])
        rows = region.image_index.tolist()
        return {"hits": pointed(weighted, inside[:, None]), "attention": pointed(plain, inside[:, None]),
                **({} if alike is None else {"similarity": pointed(alike, inside)}), "chance": inside.double().mean(1),
                "map": (255 * weighted / weighted.amax(-1, keepdim=True).clamp(min=1e-30)).byte(), "true": region.box.float(),
                "is_box": region.is_box, "image_id": [batch.image.image_id[row] for row in rows], "ids": ids,
                "source": list(batch["source"]) if "source" in batch else ["all"] * len(rows)}

    def score(self, outputs: dict) -> dict[str, float]:
        groups, layers = self._groups(outputs), self._layers(outputs)
        others = outputs["is_box"] & ~groups[self.choose]
        share = lambda values, rows: 100 * values[rows].mean().item()
        found = {"accuracy": share(outputs["hits"][:, layers["layer"]], others)} if bool(others.any()) else {}
        found |= layers
        for name, rows in groups.items():
            found |= {f"{name}.accuracy": share(outputs["hits"][:, layers["layer"]], rows)}
            found |= {f"{name}.layer{k}": share(hits, rows) for k, hits in enumerate(outputs["hits"].unbind(1))}
            found[f"{name}.attention"] = share(outputs["attention"][:, layers["attention_layer"]], rows)
            if "similarity" in outputs:
                found[f"{name}.similarity"] = share(outputs["similarity"], rows)
        return found

    def floor(self, outputs: dict) -> dict[str, float]:
        chance, groups = outputs["chance"], self._groups(outputs)
        groups[""] = outputs["is_box"] & ~groups[self.choose]
        shares = {name: 100 * chance[rows].mean().item() for name, rows in groups.items() if bool(rows.any())}
        return {name: shares[name.rpartition(".")[0]] for name in self.score(outputs) if not name.endswith("layer")}

    def samples(self, outputs: dict) -> list[dict]:
        """A row an expression: ``score``, whether it points right; ``layers``, by each of them; ``attention``, ``similarity`` and
        ``chance`` likewise."""
        layers, ways = outputs["hits"].tolist(), self._layers(outputs)
        hits, attention = (outputs[kind][:, ways[layer]].tolist()
                           for kind, layer in (("hits", "layer"), ("attention", "attention_layer")))
        texts = [decoded(self.tokenizer, ids) for ids in outputs["ids"]]
        return [{"id": row, "image_id": outputs["image_id"][row], "source": outputs["source"][row], "text": texts[row],
                 "score": hits[row], "layers": layers[row], "attention": attention[row],
                 **({"similarity": outputs["similarity"][row].item()} if "similarity" in outputs else {}),
                 "chance": outputs["chance"][row].item()} for row in outputs["is_box"].nonzero()[:, 0].tolist()]

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        """The layers stay those that all rows chose."""
        source, found = np.array([row["source"] for row in rows]), {}
        ways = {"accuracy": column(rows, "score", 100), "attention": column(rows, "attention", 100),
                **{f"layer{k}": 100 * values for k, values in enumerate(np.array([row["layers"] for row in rows]).T)},
                **({"similarity": column(rows, "similarity", 100)} if "similarity" in rows[0] else {})}
        if (source != self.choose).any():
            found["accuracy"] = Measured(np.where(source != self.choose, ways["accuracy"], np.nan))
        return found | {f"{name}.{way}": Measured(np.where(source == name, values, np.nan))
                        for name in sorted(set(source.tolist())) for way, values in ways.items()}

    def files(self, outputs: dict) -> dict[str, str]:
        return {LAYERS: json.dumps({"match": self.match, "chosen_on": self.choose, **self._layers(outputs)}) + "\n"}

    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Expressions spread evenly over the other sources: [{``ids``, ``image_id``, ``true``, ``right``, ``heat``}]."""
        layer, groups = self._layers(outputs)["layer"], self._groups(outputs)
        rows = (outputs["is_box"] & ~groups[self.choose]).nonzero()[:, 0].tolist()
        return [{"ids": outputs["ids"][r], "image_id": outputs["image_id"][r], "true": outputs["true"][r].tolist(),
                 "right": outputs["hits"][r, layer].item() > 0.5, "heat": (outputs["map"][r, layer] / 255).tolist()}
                for r in spread(rows, shown)]

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        """A row for each layer, the chosen one marked, and one for each way that it is compared with."""
        sources = [name.removesuffix(".accuracy") for name in metrics if name.endswith(".accuracy")]
        ways = {f"layer{k}": f"layer {k}" + f": chosen on {self.choose}" * (k == metrics["layer"])
                for k in range(sum(name.startswith(f"{sources[0]}.layer") for name in metrics))}
        ways |= {"attention": f"attention alone, layer {metrics['attention_layer']:.0f}",
                 "similarity": "patch similarity (contrast)"}
        rows = [[said, *(cell(metrics[f"{source}.{way}"]) for source in sources)] for way, said in ways.items()
                if f"{sources[0]}.{way}" in metrics]
        rows.append(["floor: chance, by box area", *(cell(floor[f"{source}.accuracy"]) for source in sources)])
        return ["looks into the true box, %", *sources], rows

    def figures(self, examples: list[dict]) -> list[dict]:
        items = [{"image": e["image_id"], "heat": e["heat"], "right": e["right"], "caption": decoded(self.tokenizer, e["ids"]),
                  "boxes": [{"box": e["true"], "kind": "true"}]} for e in examples]
        lead = ("Expressions spread evenly over the data, not picked. The redder, the more they look there; a frame: the "
                "reddest patch lies in the true box.")
        return [{"title": "Where does it look?", "text": lead, "items": items}] if items else []

    # ---- how it is computed ---------------------------------------------------------------------------------------------
    def _maps(self, loss, inputs: dict, text) -> tuple[Tensor, Tensor]:
        """(R, K, N) the mean over each expression's words, over all its tokens where it has none; of both kinds of maps."""
        words = torch.zeros_like(text.mask)
        for row, ids in enumerate(token_ids(text) if self.tokenizer else ()):
            words[row, [place for _, places in self.tokenizer.words(ids) for place in places]] = True
        words = torch.where(words.any(1, keepdim=True), words, text.mask).float()
        words, found = words / words.sum(1, keepdim=True), []
        for rows in torch.arange(len(words), device=words.device).split(self.pairs_per_pass):
            both = attention_maps(self._model, loss, {slot: read.select(rows) for slot, read in inputs.items()})
            found.append([torch.einsum("rkln,rl->rkn", maps, words[rows]) for maps in both])
        return tuple(map(torch.cat, zip(*found)))

    def _similarity(self, f, batch) -> Tensor:
        """(R, N): the cosine of each patch, projected as the picture's summary is, with the expression."""
        graph = self._model.graph
        image, text = (graph.encoders[self.sim].inputs[slot] for slot in sides(graph, self.sim))
        patches = f[f"{image}@{RegionField.WHOLE}"]
        if isinstance(patches, Encoded):
            patches = patches.tokens[:, 1:]
        else:
            (slot, source), = graph.encoders[image].inputs.items()
            tokens = f[f"{source}@{RegionField.WHOLE}"].tokens[:, 1:]
            patches = self._model.encoder(image)(view=None, **{slot: Encoded.of(tokens.reshape(-1, 1, tokens.shape[-1]))})
            patches = patches.view(*tokens.shape[:2], -1)
        return torch.einsum("rnd,rd->rn", F.normalize(patches.float(), dim=-1), F.normalize(summary(f[text]).float(), dim=-1))

    def _groups(self, outputs) -> dict[str, Tensor]:
        """{source: (R,) bool, its expressions with a box}, that which chooses among them."""
        names = sorted(set(outputs["source"]))
        groups = {name: outputs["is_box"] & torch.tensor([s == name for s in outputs["source"]]) for name in names}
        groups = {name: rows for name, rows in groups.items() if bool(rows.any())}
        if self.choose not in groups:
            raise ConfigError(f"PointingGame: no expression with a box in the source `{self.choose}`, by which the layer is "
                              f"chosen; the data have: {', '.join(groups) or 'none'}. Name one of them in `choose`, or add it to "
                              "the data's `sources`")
        return {self.choose: groups[self.choose]} | groups

    def _layers(self, outputs) -> dict[str, int]:
        """The layers whose maps point right most often on ``choose``, the first of equal ones."""
        rows = self._groups(outputs)[self.choose]
        best = lambda hits: int(hits[rows].mean(0).argmax())
        return {"layer": best(outputs["hits"]), "attention_layer": best(outputs["attention"])}


def centres_in(box: Tensor, patches: int) -> Tensor:
    """(R, N) bool: whether the centre of each patch, row-major, lies in a box (R, 4) cx, cy, w, h in [0, 1]."""
    side = side_of(patches)
    centre = (torch.arange(side, device=box.device, dtype=torch.float64) + 0.5) / side
    low, high = (edge[..., None] for edge in corners(box))
    inside = (centre >= low) & (centre <= high)  # (R, 2, side): of columns, of rows
    return (inside[:, 1, :, None] & inside[:, 0, None, :]).flatten(1)


def pointed(maps: Tensor, inside: Tensor) -> Tensor:
    """(...,) float64: whether the highest of the patches (..., N) is one of ``inside``, (..., N) bool; ties share."""
    highest = maps == maps.amax(-1, keepdim=True)
    return (highest & inside).double().sum(-1) / highest.double().sum(-1)
