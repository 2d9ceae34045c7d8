"""The page of a stream's samples: what the model will see of each, and where it lies."""

from xtoolkit.report.figures import drawn
from xtoolkit.report.rendering import render


SIDE = 448  # of a picture on the page: pixels at most, for screens with two a point


def samples_page(title: str, facts: list[str], samples: list[tuple], bad: list[str]) -> str:
    """The whole page.

    Args:
        title: of the stream.
        facts: what was asked for.
        samples: (where it lies, items as figures have them) of each, in order. Items with words are rows, the others
            pictures before them.
        bad: what was wrong with samples that cannot be used.
    """
    shown = [(place, drawn({"items": items}, SIDE)["items"]) for place, items in samples]
    return render("samples.html", title=title, facts=facts, tiles=_tiles([items for _, items in samples]), lead=_lead(samples),
                  samples=shown, bad=bad)


def _all(several, key):
    return [item[key] for items in several for item in items if item.get(key)]


def _lead(samples) -> str:
    all_items = [item for _, items in samples for item in items]
    told, masked = ["In the order in which training draws them."], [item for item in all_items if item.get("mask")]
    if any(not item.get("words") for item in masked):
        told.append("Hidden patches are grey.")
    if any(item.get("words") for item in masked):
        told.append("In the small pictures those patches are dark that do not belong to a row's text.")
    if any(chosen for item in all_items for _, chosen, _ in item.get("words") or ()):
        told.append("A token to be predicted has its original below: hidden by the mask, replaced by another, or left "
                    "as it is.")
    return " ".join(told)


def _tiles(several) -> list[dict]:
    """What the samples shown amount to."""
    texts, shown = _all(several, "words"), []
    if texts:
        lengths = [len(t) for t in texts]
        shown.append(("Tokens a text", f"{sum(lengths) / len(texts):.1f}", "",
                      f"{min(lengths)} to {max(lengths)}, specials left out"))
        if chosen := sum(bool(c) for t in texts for _, c, _ in t):
            shown.append(("To be predicted", f"{100 * chosen / sum(lengths):.0f}", "%", f"{chosen} tokens"))
    hidden = [item["mask"] for items in several for item in items if item.get("mask") and not item.get("words")]
    if hidden:
        shown.append(("Patches hidden", f"{100 * sum(map(sum, hidden)) / sum(map(len, hidden)):.0f}", "%",
                      f"{sum(hidden[0])} of {len(hidden[0])} a picture"))
    rows = [sum(bool(item.get("words")) for item in items) for items in several]
    if boxes := len(_all([[i for i in items if i.get("words")] for items in several], "boxes")):
        shown.append(("Rows a picture", f"{sum(rows) / len(several):.1f}", "", f"{boxes} of {sum(rows)} are boxes"))
    return [dict(zip(("title", "value", "unit", "beside"), one)) for one in shown]
