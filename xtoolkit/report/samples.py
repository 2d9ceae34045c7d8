"""The page of a stream's samples: what the model will see of each, and where it lies."""

from xtoolkit.report.figures import Figure
from xtoolkit.report.rendering import render


def samples_page(title: str, facts: list[str], samples: list[tuple], bad: list[str]) -> str:
    """The whole page.

    Args:
        title: of the stream.
        facts: what was asked for.
        samples: (where it lies, items as figures have them) of each, in order. Items with words are rows, the others
            pictures before them.
        bad: what was wrong with samples that cannot be used.
    """
    shown = [(place, Figure.read({"items": items})) for place, items in samples]
    every = [item for _, figure in shown for item in figure.items]
    return render("samples.html", title=title, facts=facts, tiles=_tiles(every, len(shown)), lead=_lead(every), samples=shown,
                  bad=bad)


def _lead(items) -> str:
    told, masked = ["In the order in which training draws them."], [item for item in items if item.mask]
    if any(not item.words for item in masked):
        told.append("Hidden patches are grey.")
    if any(item.words for item in masked):
        told.append("In the small pictures those patches are dark that do not belong to a row's text.")
    if any(chosen for item in items for _, chosen, _ in item.words):
        told.append("A token to be predicted has its original below: hidden by the mask, replaced by another, or left "
                    "as it is.")
    return " ".join(told)


def _tiles(items, count: int) -> list[dict]:
    """What the samples shown amount to."""
    texts, shown = [item.words for item in items if item.words], []
    if texts:
        lengths = [len(t) for t in texts]
        shown.append(("Tokens a text", f"{sum(lengths) / len(texts):.1f}", "",
                      f"{min(lengths)} to {max(lengths)}, specials left out"))
        if chosen := sum(bool(c) for t in texts for _, c, _ in t):
            shown.append(("To be predicted", f"{100 * chosen / sum(lengths):.0f}", "%", f"{chosen} tokens"))
    hidden = [item.mask for item in items if item.mask and not item.words]
    if hidden:
        shown.append(("Patches hidden", f"{100 * sum(map(sum, hidden)) / sum(map(len, hidden)):.0f}", "%",
                      f"{sum(hidden[0])} of {len(hidden[0])} a picture"))
    if boxes := sum(bool(item.boxes and item.words) for item in items):
        shown.append(("Rows a picture", f"{len(texts) / count:.1f}", "", f"{boxes} of {len(texts)} are boxes"))
    return [dict(zip(("title", "value", "unit", "beside"), one)) for one in shown]
