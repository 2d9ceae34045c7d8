"""Accuracy: how often a classification head is right, and what else its benchmark asks for.

Shape letters: B rows, N rows of all batches, C classes.
"""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from xtoolkit.batch import Batch
from xtoolkit.metrics import classification as metrics
from xtoolkit.registry import TASK_REGISTRY, ConfigError
from xtoolkit.tasks.base import Measured, Task, cell, column, decoded, evaluating, spread
from xtoolkit.tasks.rows import shown_items, told_rows
from xtoolkit.tasks.servers import CLASSES, classes as server_classes

NAMES = "classes.txt"
NLVR2 = re.compile(r"(?P<set>(?:train|dev|test1|test2)-\d+)-\d+-(?P<sentence>\d+)")  # its identifiers
TITLES = {"accuracy": "accuracy %", "top5": "among the first five %", "mean_per_class": "mean of the classes' accuracies %",
          "f1": "F1 of class 1, %", "matthews": "Matthews' correlation x 100", "roc_auc": "area under the ROC curve %",
          "consistency": "groups that are all right %", "unlabelled": "rows without a label"}


@TASK_REGISTRY.register()
class Accuracy(Task):
    """What a Classification head is scored by, in per cent.

    YAML: {type: Accuracy, loss: classify, consistency: identifier, server: NLVR2}

    Metrics: ``accuracy``; ``mean_per_class``, the mean over classes of the share told right; with more than five classes
    ``top5``; with two ``f1`` of class 1, ``matthews`` (x 100) and ``roc_auc`` of its score; ``consistency``. Rows without a
    label are predicted and not scored; ``unlabelled`` counts them. The floor is a constant answer on the same rows: the most
    frequent class, for F1 class 1.

    Args:
        loss: the loss whose head is read (it has ``logits``).
        consistency: a key of the data's records: the share of groups of rows that are all told right. Rows of one value are a
            group; of NLVR2's identifiers (`dev-SET-PAIR-SENTENCE`, numbers) those that differ in the pair of pictures alone.
        server: a file for a benchmark's server in the evaluation's folder: `CoLA`, `SST-2`, `MRPC`, `QQP`, `MNLI-m`, `MNLI-mm`,
            `QNLI`, `RTE` (GLUE), `NLVR2` or `Hateful-Memes`.

    Source: GLUE's and NLVR2's evaluations; consistency: Suhr et al. 2019, section 4. The release prints as "Acc@5" a top-2.
    """

    HEADS = {"loss": "logits"}
    FIELDS = frozenset({"label"})
    HEADLINES = {"accuracy": "Told right, %"}
    ABILITIES = {"classify": "a classification head, `losses.classify: {type: Classification, features: text, classes: 2}` "
                             "(finetune/tiny/sst2.yaml trains one)"}

    def __init__(self, loss: str = "classify", consistency: str | None = None, server: Literal[CLASSES] | None = None, *,
                 tokenizer=None, output: Path | None = None):
        self.loss, self.consistency, self.server = loss, consistency, server
        self.tokenizer, self.output = tokenizer, output

    @classmethod
    def suggest(cls, encoders: dict, losses: dict) -> dict | None:
        loss = next((name for name, kind in losses.items() if hasattr(kind, "logits") and hasattr(kind, "labels")), None)
        return None if loss is None else {"type": cls.__name__, "loss": loss}

    def check(self, model, data) -> None:
        self._agree(model.losses[self.loss], data.names)

    @staticmethod
    def _agree(loss, names) -> None:
        """Raises ConfigError where data have other classes than a head; None: they do not say theirs."""
        if names is not None and len(names) != loss.classes:
            raise ConfigError(f"Accuracy: the head tells {loss.classes} classes, and its data have {len(names)}: "
                              f"{', '.join(names)[:60]}")

    # ---- what is computed -----------------------------------------------------------------------------------------------
    def predict(self, f, batch) -> dict:
        """``logits`` (B, C) float32, ``label`` (B,), and lists of what each row shows and is called."""
        loss, label = self.heads["loss"], batch["label"]
        if label.value.is_floating_point():
            raise ConfigError("Accuracy: the labels of its data are targets of regression: give the data `classes`, or take "
                              "`type: Correlation`")
        self._agree(loss, label.classes)
        rows = told_rows(batch)
        if self.consistency is not None:
            rows["group"] = [self._group(record) for record in rows["record"]]
        return {**rows, "record": [], "logits": loss.logits(f).float(), "label": label.value, "classes": [label.classes or ()]}

    def score(self, outputs: dict) -> dict[str, float]:
        known = self._known(outputs)
        missing = {"unlabelled": float((~known).sum())} if not known.all() else {}
        return (self._figures(outputs, outputs["logits"]) if known.any() else {}) | missing

    def floor(self, outputs: dict) -> dict[str, float]:
        known, logits = self._known(outputs), outputs["logits"]
        if not known.any():
            return {}
        counts = torch.bincount(outputs["label"][known], minlength=logits.shape[1]).float()
        found = self._figures(outputs, counts.expand_as(logits))
        if "f1" in found:
            label = outputs["label"][known]
            found["f1"] = 100 * metrics.f1(label, torch.ones_like(label))
        return found

    def samples(self, outputs: dict) -> list[dict]:
        """The rows with a label: ``score`` is 1 where they are told right, else 0. Of two classes also ``odds``, the logit of
        class 1 less that of class 0; of more than five the ``place`` of the label, 1 the likeliest."""
        known = self._known(outputs)
        rows, names = known.nonzero()[:, 0].tolist(), self._names(outputs)
        label, logits = outputs["label"][known], outputs["logits"][known]
        more = {"group": [outputs["group"][row] for row in rows]} if self.consistency is not None else {}
        if len(names) == 2:
            more["odds"] = (logits[:, 1].double() - logits[:, 0].double()).tolist()
        if len(names) > 5:
            more["place"] = metrics.places(label, logits).tolist() if rows else []
        return [{"id": outputs["id"][row], "image_id": outputs["image_id"][row], "score": float(told == true),
                 "label": names[true], "told": names[told], **{key: values[n] for key, values in more.items()}}
                for n, (row, true, told) in enumerate(zip(rows, label.tolist(), logits.argmax(1).tolist()))]

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        right, share = column(rows, "score"), lambda metric: lambda both: 100 * metric(both[:, 0], both[:, 1])
        classes = np.unique([row["label"] for row in rows], return_inverse=True)[1]
        found = {"accuracy": Measured(100 * right),
                 "mean_per_class": Measured(np.stack([classes, np.where(right, classes, -1)], 1), share(metrics.mean_per_class))}
        if all("place" in row for row in rows):
            found["top5"] = Measured(100.0 * (column(rows, "place") <= 5))
        if all("odds" in row for row in rows):
            odds = column(rows, "odds")
            positive = (odds > 0) == (right > 0)  # told class 1 and right, or told class 0 and wrong
            two = np.stack([positive, odds > 0], 1).astype(np.float64)
            found |= {"f1": Measured(two, share(metrics.f1)), "matthews": Measured(two, share(metrics.matthews))}
            if 0 < positive.sum() < len(rows):
                found["roc_auc"] = Measured(np.stack([positive, odds], 1), share(metrics.roc_auc))
        if self.consistency is not None:  # the last row of a group stands for it
            group: dict = {}
            for n, row in enumerate(rows):
                group[row["group"]] = n, group.get(row["group"], (0, 100))[1] * row["score"]
            values = np.full(len(rows), np.nan)
            for n, value in group.values():
                values[n] = value
            found["consistency"] = Measured(values)
        return found

    def files(self, outputs: dict) -> dict[str, str]:
        names = self._names(outputs)
        found = {NAMES: "".join(f"{name}\n" for name in names)}
        if self.server is not None:
            found |= server_classes(self.server, outputs["id"], names, outputs["logits"].softmax(1).tolist())
        return found

    def examples(self, outputs: dict, shown: int = 12) -> list[dict]:
        """Rows spread evenly over the data: [{``image_id``, ``second_id``, ``ids``, ``label``, ``told``, ``probability``}]."""
        names, probabilities = self._names(outputs), outputs["logits"].softmax(1)
        label = outputs["label"].tolist()
        return [{key: outputs[key][row] for key in ("image_id", "second_id", "ids")} |
                {"label": names[label[row]] if label[row] >= 0 else None, "told": names[int(probabilities[row].argmax())],
                 "probability": probabilities[row].max().item()} for row in spread(list(range(len(label))), shown)]

    def _figures(self, outputs: dict, logits) -> dict[str, float]:
        known = self._known(outputs)
        label, logits = outputs["label"][known], logits[known]
        told, classes = logits.argmax(1), logits.shape[1]
        found = {"accuracy": metrics.accuracy(label, told), "mean_per_class": metrics.mean_per_class(label, told)}
        if classes > 5:
            found["top5"] = metrics.top_k(label, logits, 5)
        if classes == 2:
            odds = logits[:, 1].double() - logits[:, 0].double()
            found |= {"f1": metrics.f1(label, told), "matthews": metrics.matthews(label, told),
                      **({"roc_auc": metrics.roc_auc(label == 1, odds)} if len(label.unique()) == 2 else {})}
        if self.consistency is not None:
            right: dict = {}
            groups = [group for group, one in zip(outputs["group"], known.tolist()) if one]
            for group, one in zip(groups, (label == told).tolist()):
                right[group] = right.get(group, True) and one
            found["consistency"] = sum(right.values()) / len(right)
        return {name: 100 * value for name, value in found.items()}

    def _known(self, outputs: dict):
        """(N,) bool, the rows with a label, which all are classes of the head."""
        label, classes = outputs["label"], outputs["logits"].shape[1]
        if int(label.max()) >= classes:
            raise ConfigError(f"Accuracy: a label of its data is {int(label.max())}, the head tells {classes} classes, from 0")
        return label >= 0

    def _names(self, outputs: dict) -> list[str]:
        """The names of the classes; numbers where the data do not say them."""
        return list(outputs["classes"][0]) or [str(number) for number in range(outputs["logits"].shape[1])]

    def _group(self, record: dict) -> str:
        if self.consistency not in record:
            raise ConfigError(f"Accuracy: `consistency: {self.consistency}` is no key of the data's records; they have: "
                              f"{', '.join(record) or 'none'}")
        name = str(record[self.consistency])
        found = NLVR2.fullmatch(name)
        return name if found is None else f"{found['set']}-{found['sentence']}"

    # ---- what is shown --------------------------------------------------------------------------------------------------
    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        places = lambda name: 0 if name == "unlabelled" else 1
        return ["classification", "value", "floor: a constant answer"], [
            [TITLES[name], cell(value, places(name)), cell(floor.get(name))] for name, value in metrics.items()]

    def figures(self, examples: list[dict]) -> list[dict]:
        items = []
        for e in examples:
            note = f"told: {e['told']}, {e['probability']:.2f}" + ("" if e["label"] is None else f"; label: {e['label']}")
            items += shown_items(e, decoded(self.tokenizer, e["ids"]) if e["ids"] else "", note, e["label"] == e["told"])
        lead = "Rows spread evenly over the data, not picked. A frame: told right."
        return [{"title": "What it tells", "text": lead, "items": items}] if items else []

    # ---- what xtoolkit.load can then do ---------------------------------------------------------------------------------
    def abilities(self) -> dict:
        return {"classify": self.classify}

    def classify(self, loaded, *given, batch_size: int = 64):
        """The probability of each class, {name: probability}, the likeliest first; a list of these where a list was given.

        What is given is what the head reads: ``classify(text)``, ``classify(first, second)`` where it is trained on pairs of
        texts, ``classify(image)``, ``classify(image, text)``, or ``classify(left, right, text)``. Each is one or a list; one goes
        with all of a list. Classes are called by their numbers where the run's folder does not say their names.
        """
        loss, graph = loaded.model.losses[self.loss], loaded.model.graph
        read = {source for name in graph.below(ref.split("@")[0] for ref in loss.features)
                for source in graph.encoders[name].inputs.values() if source.startswith("$")}
        slots = [slot for slot in ("image", "second", "text") if f"${slot}" in read]
        if len(slots) != len(read) or len(given) not in ({1, 2} if slots == ["text"] else {len(slots)}):
            raise TypeError(f"this head reads {', '.join(sorted(read))}: give "
                            + ("a text, or a pair of texts" if slots == ["text"] else f"{len(slots)}: {', '.join(slots)}")
                            + f"; {len(given)} came")
        several = {"text": loaded.texts(*given)} if slots == ["text"] else {
            slot: (loaded.texts if slot == "text" else loaded.pictures)(one) for slot, one in zip(slots, given)}
        count = max(map(len, several.values()))
        if wrong := [len(one) for one in several.values() if len(one) not in (1, count)]:
            raise ValueError(f"{wrong[0]} of one and {count} of another: give as many of each, or one")
        found = []
        with evaluating(loaded.model):
            for rows in torch.arange(count).split(batch_size):
                picked = {slot: one.read(rows if len(one) == count else rows * 0) for slot, one in several.items()}
                fields = {slot: value[0] if isinstance(value, tuple) else value for slot, value in picked.items()}
                found += loss.logits(loaded.model.features(Batch(**fields))).softmax(1).tolist()
        kept = self.output / NAMES if self.output is not None else None
        names = kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.is_file() else []
        names = names if len(names) == loss.classes else [str(number) for number in range(loss.classes)]
        told = [dict(sorted(zip(names, row), key=lambda one: -one[1])) for row in found]
        return told[0] if all(one.single for one in several.values()) else told
