"""Linear probe: how well does a linear classifier on frozen features tell classes apart?

Shape letters: B rows, N rows of the bank, Q rows that are asked about, D width.
"""

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from xtoolkit.features import Encoded
from xtoolkit.graph import Need
from xtoolkit.registry import TASK_REGISTRY, ConfigError, Count, Positive, Range
from xtoolkit.tasks.base import Alone, Measured, Task, cell, check_counts, column, evaluating, joined, on_host, share
from xtoolkit.tasks.comparing import summary
from xtoolkit.tasks.neighbours import SIDE, small

COARSE, FINEST = range(-6, 7, 2), 1 / 8  # the powers of ten that are tried first, the last step between them
FIFTH = 5  # a part in so many is held out
PIXELS, ON_TEST = "pixels.", "best_on_test."
TITLES = {"accuracy": "Linear probe, %", "per_class": "Linear probe, mean per class, %"}


@dataclass(frozen=True)
class Probe:
    """A classifier that was fitted: its C, its L-BFGS iterations, and the classes (Q,) that it tells."""

    c: float
    iterations: int
    told: np.ndarray


@TASK_REGISTRY.register()
class LinearProbe(Task):
    """Multinomial logistic regression on the summaries of one encoder, which stays as it is.

    YAML: {type: LinearProbe, feature: vision, bank: train, metric: accuracy}

    Every row is encoded once, without augmentation. One source of the data, the bank, trains the classifier by scikit-learn's
    L-BFGS; the others are asked about; rows without a label are left out. The classifier minimises

        C * sum over rows of CE(Wx + b, label)  +  |W|^2 / 2

    Of two classes scikit-learn fits the one row w of a sigmoid, and penalises |w|^2 / 2: that is the softmax of W = [-w/2, w/2]
    with half the C, so that the `c` of a set of two classes is twice the C of the formula.

    C is chosen on a fifth of the bank that is held out, of each class alike: the powers 1e-6, 1e-4, ... 1e6 first, then the
    interval around the best is halved until there are 8 steps a decade; of equal ones the smallest. Then all of the bank is
    fitted with it. Several processes share the tries of a round; what is found does not depend on how many they are.

    Metrics, per cent: ``accuracy`` and ``per_class``, the mean over the classes of the share that is told; the same of a probe
    on the pictures themselves, 16 x 16 pixels each: ``pixels.accuracy``, ``pixels.per_class``. Also ``c`` and ``iterations``.
    The floor is the most frequent class of the bank. With ``selection: test`` all names begin with ``best_on_test.``.

    Args:
        feature: the feature whose summary is read, of an encoder of pictures or of texts.
        bank: the source of the rows that train.
        grid: 1: the feature's summary. n: the means of its picture's tokens in each of n x n cells, one after the other: where
            things are is kept, as the 16 x 16 pixels keep it.
        metric: the headline, and what C is chosen by: Aircraft, Caltech101, Flowers102 and Pets are reported per class.
        selection: ``test``: C is what gives the best figure on the rows asked about, which is no fair estimate. Released probes
            do so in effect (the best epoch on test).
        c: a C that is taken as it is; null: it is chosen.
        scale: of the features, by the bank alone. ``standard``: mean 0 and deviation 1 of each channel, which L-BFGS converges
            on soon; ``unit``: each row of length 1; ``none``: as they come, as CLIP's probe takes them.
        iterations: L-BFGS iterations at most; where the table says that they ended it, more may change the figure.
        folds: how many of the bank's fifths are held out in turn, and their figures averaged: 5 where a bank is small.
        seed: of what is held out.
        expect: {classes: 37, train: 3680, test: 3669}, how many the bank and each source must have; null: any number.

    Source: CLIP (Radford et al. 2021), A.3: L-BFGS, at most 1000 iterations, the halving search. X-FM's paper says linear
    evaluation; its release trains a head of five layers on the mean patch taken twice, chosen on the test split: that is
    `Classification` with `head: release5` on a frozen encoder. Its splits of Caltech and SUN397 overlap.
    """

    FIELDS = frozenset({"label"})

    def __init__(self, feature: str, bank: str = "train", grid: Count = 1, metric: Literal["accuracy", "per_class"] = "accuracy",
                 selection: Literal["train", "test"] = "train", c: Positive | None = None,
                 scale: Literal["standard", "unit", "none"] = "standard", iterations: Count = 1000,
                 folds: Annotated[int, Range(1, FIFTH)] = 1, seed: Annotated[int, Range(0)] = 0,
                 expect: dict[str, Count] | None = None):
        self.feature, self.bank, self.metric, self.selection, self.c = feature, bank, metric, selection, c
        self.grid = grid
        self.scale, self.iterations, self.folds, self.seed, self.expect = scale, iterations, folds, seed, expect
        self._prefix = ON_TEST if selection == "test" and c is None else ""
        title = TITLES[metric].replace("Linear probe", "Linear probe, best on test") if self._prefix else TITLES[metric]
        self.HEADLINES = {f"{self._prefix}{metric}": title}

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"], grad=False)]

    def predict(self, f, batch) -> dict:
        """``feature`` (B, D), ``label`` (B,), ``source`` and what each row is called."""
        if "source" not in batch or batch["label"].value.is_floating_point():
            raise ConfigError("LinearProbe needs data that name each row's `source`, and whose labels are classes")
        image, label = batch.image, batch["label"].value
        shown = {} if image is None else {"pixels": small(image), "image_id": list(image.image_id)}
        feature = summary(f[self.feature]) if self.grid == 1 else cells(f[self.feature], self.grid, self.feature)
        return {"feature": feature.float(), "label": label, "source": list(batch["source"])} | shown

    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        """Encodes all, then fits. See ``Task.evaluate``."""
        with evaluating(model) as device:
            mine = [on_host(self.predict(model.features(batch), batch)) for batch in share(loader, ranks, device)]
        outputs = joined(ranks.gather(mine))
        bank, asked = self._rows(outputs)
        label = outputs["label"].numpy()
        check_counts(self, self.expect, {"classes": len(np.unique(label[bank]))} | Counter(outputs["source"]))
        probes = {prefix: self._probe(outputs[kind].double().numpy(), label, bank, asked, ranks)
                  for prefix, kind in (("", "feature"), (PIXELS, "pixels")) if kind in outputs}
        return self.result(outputs | {"probes": probes, "bank": bank, "asked": asked})

    def score(self, outputs: dict) -> dict[str, float]:
        label, found = outputs["label"].numpy()[outputs["asked"]], {}
        for prefix, probe in outputs["probes"].items():
            found |= {f"{prefix}{name}": value for name, value in shares(probe.told, label).items()}
            found |= {f"{prefix}c": probe.c, f"{prefix}iterations": float(probe.iterations)}
        return {f"{self._prefix}{name}": value for name, value in found.items()}

    def floor(self, outputs: dict) -> dict[str, float]:
        label = outputs["label"].numpy()
        common = np.bincount(label[outputs["bank"]]).argmax()
        found = shares(np.full(len(outputs["asked"]), common), label[outputs["asked"]])
        return {f"{self._prefix}{prefix}{name}": value for prefix in outputs["probes"] for name, value in found.items()}

    def samples(self, outputs: dict) -> list[dict]:
        names, told = outputs.get("image_id"), {prefix: probe.told.tolist() for prefix, probe in outputs["probes"].items()}
        rows = []
        for n, row in enumerate(outputs["asked"].tolist()):
            name, label = names[row] if names else None, int(outputs["label"][row])
            rows.append({"id": name or str(row), "image_id": name, "label": label, "told": told[""][n],
                         "score": float(told[""][n] == label), **({"pixels_told": told[PIXELS][n]} if PIXELS in told else {})})
        return rows

    def measured(self, rows: list[dict]) -> dict[str, Measured]:
        label, found = column(rows, "label"), {}
        for prefix, key in (("", "told"), (PIXELS, "pixels_told")):
            for name in TITLES if all(key in row for row in rows) else ():
                found[f"{self._prefix}{prefix}{name}"] = Measured(
                    np.stack([column(rows, key), label], 1), lambda both, name=name: shares(both[:, 0], both[:, 1])[name])
        return found

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        rows, at = [], lambda side, name: side.get(f"{self._prefix}{name}")
        for prefix, what in (("", f"by {self.feature}" + (f", {self.grid} x {self.grid} cells" if self.grid > 1 else "")),
                             (PIXELS, f"by {SIDE} x {SIDE} pixels")):
            if (iterations := at(metrics, f"{prefix}iterations")) is not None:
                ended = f" (not converged after {iterations:.0f} iterations)" if iterations >= self.iterations else ""
                rows.append([what, *(cell(at(metrics, f"{prefix}{name}")) for name in TITLES),
                             f"{at(metrics, f'{prefix}c'):.3g}{ended}"])
        rows.append(["floor: most frequent class", *(cell(at(floor, name)) for name in TITLES), ""])
        return ["linear probe" + (", C chosen on test" if self._prefix else ""), "accuracy %", "mean per class %", "C"], rows

    def _rows(self, outputs: dict) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the bank and those that are asked about."""
        known, inside = (outputs["label"] >= 0).numpy(), np.array([name == self.bank for name in outputs["source"]])
        bank, asked = np.flatnonzero(known & inside), np.flatnonzero(known & ~inside)
        classes = len(outputs["label"][bank].unique())
        if not len(asked) or classes < 2:
            raise ConfigError(f"LinearProbe: {len(bank)} labelled rows of {classes} classes in the source `{self.bank}`, "
                              f"{len(asked)} in the others: `bank` must name one of several `sources`, of two classes at least")
        if not bool(outputs["feature"].isfinite().all()):
            raise ConfigError(f"LinearProbe: features of `{self.feature}` are not finite: the model has diverged; evaluate an "
                              "earlier checkpoint")
        return bank, asked

    def _probe(self, x: np.ndarray, label: np.ndarray, bank: np.ndarray, asked: np.ndarray, ranks) -> Probe:
        """C chosen, and the probe that it gives of the whole bank."""
        fit = lambda c, rows, other: self._fit(c, x[rows], label[rows], x[other])
        if self.c is not None:
            return fit(self.c, bank, asked)
        splits = [(bank, asked)] if self.selection == "test" else self._splits(label, bank)
        gives = lambda c: np.mean([shares(fit(c, rows, other).told, label[other])[self.metric] for rows, other in splits])
        return fit(search(gives, ranks), bank, asked)

    def _splits(self, label: np.ndarray, bank: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """``folds`` times the rows of the bank that are fitted, and a fifth of each class that is held out; a class of one row
        is always fitted."""
        mixed, found = np.random.default_rng(self.seed).permutation(bank), []
        several = [rows for one in np.unique(label[bank]) if len(rows := mixed[label[mixed] == one]) > 1]
        for fold in range(self.folds):
            held = np.concatenate([rows[fold::FIFTH] for rows in several] or [bank[:0]])
            if not len(held):
                raise ConfigError(f"LinearProbe: the source `{self.bank}` has no {fold + 1} rows of one class to choose C "
                                  "by: give one, `c: 1`, or fewer `folds`")
            found.append((np.setdiff1d(bank, held), held))
        return found

    def _fit(self, c: float, x: np.ndarray, label: np.ndarray, asked: np.ndarray) -> Probe:
        from sklearn.exceptions import ConvergenceWarning  # only here: it takes a second to import
        from sklearn.linear_model import LogisticRegression

        x, asked = scaled(self.scale, x, asked)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the table says it
            probe = LogisticRegression(C=c, max_iter=self.iterations).fit(x, label)
        return Probe(c, int(probe.n_iter_.max()), probe.predict(asked))


def cells(feature, grid: int, name: str) -> Tensor:
    """(B, D * grid * grid): the mean of the tokens behind the summary in each cell of a picture; ConfigError if they are no
    square."""
    count = feature.tokens.shape[1] - 1 if isinstance(feature, Encoded) else 0
    side = math.isqrt(count)
    if side < grid or side * side != count:
        raise ConfigError(f"LinearProbe: `grid: {grid}` needs a square of at least {grid} x {grid} picture tokens, and `{name}` "
                          f"gives {count} tokens; `grid: 1` reads its summary")
    tokens = feature.tokens[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(tokens, grid).flatten(1)


def scaled(how: str, bank: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) of the bank and (Q, D) of the others, see LinearProbe's ``scale``; a channel that never changes is only
    centred, a row of length 0 stays."""
    if how == "standard":
        mean, deviation = bank.mean(0), bank.std(0)
        deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, 1)
        return (bank - mean) / deviation, (asked - mean) / deviation
    lengths = (lambda x: np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)) if how == "unit" else lambda x: 1
    return bank / lengths(bank), asked / lengths(asked)


def search(gives, ranks=Alone()) -> float:
    """The C with the highest ``gives(C)``, as LinearProbe searches it. Each round's tries are shared out among the processes."""
    found, step, tries = {}, 2.0, [float(power) for power in COARSE]
    while step >= FINEST:
        mine = ranks.part(len(tries))
        found |= dict(zip(tries, ranks.gather([gives(10**power) for power in tries[mine.start:mine.stop]])))
        peak = max(found, key=lambda power: (found[power], -power))
        step /= 2
        tries = [power for power in (peak - step, peak + step) if COARSE[0] <= power <= COARSE[-1]]
    return 10**peak


def shares(told: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """``accuracy`` and ``per_class`` of (Q,) classes, in per cent; the mean is over the classes that are asked about."""
    right = told == label
    return {"accuracy": 100 * float(right.mean()),
            "per_class": 100 * float(np.mean([right[label == one].mean() for one in np.unique(label)]))}
