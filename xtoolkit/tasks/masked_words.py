"""Masked words: does the picture help to tell them?

Shape letters: I images, T texts, M masked tokens, P pictures with a masked token.
"""

import torch
from torch import Tensor

from xtoolkit.batch import stable_key
from xtoolkit.graph import Ref
from xtoolkit.registry import TASK_REGISTRY, ConfigError
from xtoolkit.tasks.base import Alone, Task, cell, decoded, spread, token_ids
from xtoolkit.tasks.comparing import rows_of, sides


@TASK_REGISTRY.register()
class MaskedWords(Task):
    """What masked words cost with the text's own picture and with another one, the same words masked.

    YAML: {type: MaskedWords, loss: imlm}

    The words are masked as the `mask` block of the evaluation's data says, the same in every pass. The other picture is one
    of the same batch: a cycle through its pictures, seeded by their names, so that a figure repeats on any number of
    processes; a batch of one picture is left out. A model that reads the text alone gets the same with both.

    Metrics: ``loss`` and ``other.loss``, the mean cross-entropy of a masked word with its own and with the other picture;
    ``gain``, the second minus the first; ``gain_error``, its standard error, the words of all texts of a picture taken as
    one observation; ``gain_in_errors``, their ratio; ``accuracy`` and ``other.accuracy``, per cent of the words that are
    told. The floor tells each word by its share of the masked words themselves: their entropy, and the share of the most
    frequent one.

    Args:
        loss: the loss (it has ``feature``, a reference under a mark of texts, and ``word_losses``).
    """

    HEADS = {"loss": "word_losses"}
    MARKED = frozenset({"loss"})
    FIELDS = frozenset({"image", "text"})
    HEADLINES = {"gain": "What a picture tells of a masked word, nats", "loss": "Masked words, nats"}

    def __init__(self, loss: str = "imlm", *, tokenizer=None):
        self.loss, self.tokenizer = loss, tokenizer

    def parts(self, batch) -> list:
        """The batch, if it shows two pictures."""
        return [batch] if len(set(batch.image.image_id)) > 1 else []

    def evaluate(self, model, loader, ranks=Alone()) -> dict:
        self._graph = model.graph
        return super().evaluate(model, loader, ranks)

    def predict(self, f, batch) -> dict:
        """Of each masked token, (M,): ``own`` and ``other`` losses, whether it is ``told`` with either, its ``word`` and the
        ``picture`` that it belongs to; and lists of what each text is made of."""
        loss, text, owner, names = self.heads["loss"], batch.text, batch["image_index"], batch.image.image_id
        slot = sides(self._graph, Ref.parse(loss.feature).name)[0]
        inputs, others, found = f.inputs(loss.feature), another(names).to(owner.device), {}
        for which, pictures in (("own", owner), ("other", others[owner])):
            encoded = f.run(loss.feature, **inputs | {slot: rows_of(inputs[slot], pictures)})
            found[which], found[f"{which}.told"] = loss.word_losses(f, encoded, text)
        text_of = text.masked_pos // text.ids.shape[1]
        count = torch.bincount(text_of, minlength=len(owner)).tolist()
        picture = torch.tensor([stable_key(name) for name in names], device=owner.device)
        shown = {"image_id": [names[row] for row in owner.tolist()], "other_id": [names[row] for row in others[owner].tolist()],
                 "ids": token_ids(text), "read": token_ids(text.masked()),
                 "columns": [part.tolist() for part in (text.masked_pos % text.ids.shape[1]).split(count)],
                 "losses": [part.tolist() for part in torch.stack([found["own"], found["other"]], 1).split(count)]}
        return found | {"word": text.labels, "picture": picture[owner[text_of]]} | shown

    def score(self, outputs: dict) -> dict[str, float]:
        if not len(outputs["word"]):
            raise ConfigError("MaskedWords: no word is masked: raise `mask.prob` of its data")
        own, other = outputs["own"].double(), outputs["other"].double()
        gain, error = paired(other - own, outputs["picture"])
        return {"loss": own.mean().item(), "other.loss": other.mean().item(), "gain": gain, "gain_error": error,
                "gain_in_errors": gain / error if error else 0.0,
                **{f"{part}accuracy": 100 * outputs[f"{which}.told"].double().mean().item()
                   for part, which in (("", "own"), ("other.", "other"))}}

    def floor(self, outputs: dict) -> dict[str, float]:
        share = outputs["word"].bincount().double() / len(outputs["word"])
        entropy = torch.special.entr(share).sum().item()
        most = 100 * share.max().item()
        return {"loss": entropy, "other.loss": entropy, "gain": 0.0, "accuracy": most, "other.accuracy": most}

    def examples(self, outputs: dict, shown: int = 8) -> list[dict]:
        """Texts with a masked word, spread evenly over the data: [{``image_id``, ``other_id``, ``ids``, ``read`` (ids as
        masked), ``columns`` of the masked tokens, ``losses`` [own, other] of each}]."""
        rows = spread([row for row, columns in enumerate(outputs["columns"]) if columns], shown)
        return [{key: outputs[key][row] for key in ("image_id", "other_id", "ids", "read", "columns", "losses")} for row in rows]

    def table(self, metrics: dict, floor: dict) -> tuple[list[str], list[list[str]]]:
        two = lambda side, part: [cell(side.get(f"{part}loss"), 3), cell(side.get(f"{part}accuracy"))]
        gained = f"{metrics['gain']:+.3f} ± {metrics['gain_error']:.3f} ({metrics['gain_in_errors']:.1f} standard errors)"
        rows = [["with their picture", *two(metrics, "")], ["with another picture", *two(metrics, "other.")],
                ["what the picture tells", gained, f"{metrics['accuracy'] - metrics['other.accuracy']:+.1f}"]]
        return ["masked words", "cross-entropy", "told %"], rows + ([["floor: by frequency", *two(floor, "")]] if floor else [])

    def figures(self, examples: list[dict]) -> list[dict]:
        """The texts as they are read, and the probability of each masked word with either picture."""
        said = lambda ids: decoded(self.tokenizer, ids)
        items = []
        for e in examples:
            words = [(said([read]), column in e["columns"], said([was]))
                     for column, (read, was) in enumerate(zip(e["read"], e["ids"]))]
            own, other = (" ".join(f"{said([e['ids'][column]])} {100 * torch.tensor(-losses[side]).exp():.0f} %"
                                   for column, losses in zip(e["columns"], e["losses"])) for side in (0, 1))
            items.append({"image": e["image_id"], "words": words[1:-1], "note": f"{own}; with another picture: {other}"})
        lead = "Texts spread evenly over the data, not picked. The probability of each masked word."
        return [{"title": "What the picture tells of masked words", "text": lead, "items": items}] if items else []


def another(names: list[str]) -> Tensor:
    """(I,) int64, for each picture the row of another one: a cycle through the different ones, in an order drawn by a seed
    made of their names."""
    distinct = list(dict.fromkeys(names))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(stable_key(*distinct))).tolist()
    follows = {distinct[one]: distinct[next_one] for one, next_one in zip(order, order[1:] + order[:1])}
    return torch.tensor([names.index(follows[name]) for name in names])


def paired(difference: Tensor, group: Tensor) -> tuple[float, float]:
    """The mean of (M,) float64 differences and its standard error; what has one number in ``group`` (M,) int64 is one
    observation, however many differences it has.

    Source: the variance of a ratio of sums over clusters, as in Miller, Adding Error Bars to Evals (2411.00640).
    """
    mean = difference.mean()
    _, place = group.unique(return_inverse=True)
    groups = int(place.max()) + 1
    sums = torch.zeros(groups, dtype=torch.float64).index_add(0, place, difference - mean)
    return mean.item(), ((sums**2).sum() * groups / max(groups - 1, 1)).sqrt().item() / len(difference)
