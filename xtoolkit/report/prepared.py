"""summary.html: what `xtoolkit prepare` put into a folder, on one page: counts, samples with boxes, histograms."""

import io
import json
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from xtoolkit.prepare.stats import KINDS, MANY, WORDS
from xtoolkit.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, label
from xtoolkit.report.figures import Figure, Item
from xtoolkit.report.rendering import render, write

NAME = "summary.html"
SIDE = 320  # of a picture on the page: pixels at most
SIGNED = ("aspect", "box area")  # their bins go below 0
FLOOR = HEIGHT - 26  # where the bars of a histogram stand
LAST = {"caption words": WORDS, "boxes": MANY}  # bins that hold everything from there on


def write_summary(folder) -> Path:
    """Writes ``summary.html`` of all the ``prepared-*.json`` in a folder: no script, nothing fetched.

    Returns:
        Its path.
    """
    folder = Path(folder)
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("prepared-*.json"))]
    return write(folder / NAME, render("prepared.html", side=SIDE, name=folder.resolve().name, tiles=_tiles(runs),
                                       runs=[_run(run, folder) for run in runs]))


def _tiles(runs):
    totals = {"samples": 0, "captions": 0, "boxes": 0}
    for counts in (c for run in runs for c in run["written"].values()):
        totals = {name: totals[name] + counts[name] for name in totals}
    sizes = [size for run in runs for _, size in run["files"].values()]
    shown = [(name.capitalize(), f"{count:,}") for name, count in totals.items() if count]
    shown += [("Shards", f"{len(sizes):,}"), ("On disk", _bytes(sum(sizes)))]
    return [{"title": title, "value": value, "unit": "", "beside": ""} for title, value in shown]


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _run(run, folder) -> dict:
    """What the template shows of one conversion."""
    files = lambda prefix: sum(name.rpartition("-")[0] == prefix for name in run["files"])
    return run | {
        "written": [[f"{prefix}-*", *(f"{counts[n]:,}" for n in ("samples", "captions", "boxes")), f"{files(prefix):,}"]
                    for prefix, counts in run["written"].items()],
        "lost": [[f"{verb}: {kind}", f"{count:,}", case] for verb, kinds in (("left out", run["left_out"]),
                 ("changed", run["changed"])) for kind, (count, case) in kinds.items()],
        "samples": [drawn for _, shown in run["shown"] if (drawn := _sample(shown, folder))],
        "infos": [shown["info"] for _, shown in run["shown"]],
        "charts": [_histogram(kind, {int(n): c for n, c in run["bins"][kind].items()})
                   for kind in KINDS if run["bins"].get(kind)]}


def _sample(shown, folder) -> dict | None:
    """A picture with its boxes and texts; None for a text, or where the shard is gone."""
    if "file" not in shown:
        return None
    try:
        with (folder / shown["file"]).open("rb") as shard:
            shard.seek(shown["at"])
            image = Image.open(io.BytesIO(shard.read(shown["bytes"])))
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            image = image.convert("RGB")
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    except FileNotFoundError:
        return None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        return {"trouble": f"{shown['file']}: a picture that does not decode: {error}"}
    info, (width, height) = shown["info"], shown["size"]
    texts: dict = {}  # of each box: regions of one place are drawn once
    for region in info.get("regions", ()):
        texts.setdefault(tuple(region["box"]), []).append(region["caption"])
    boxes = [{"box": [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], "kind": str(n)}
             for n, (x, y, w, h) in enumerate(texts)]
    return {"trouble": "", "figure": Figure(items=[Item(image, boxes=boxes)]), "image_id": str(info["image_id"]),
            "captions": info.get("captions", ()), "regions": [" · ".join(said) for said in texts.values()],
            "more": info.get("all", 0) - len(info.get("regions", ())),
            "place": f"{info['image_id']} · {width} x {height} · {shown['prefix']}"}


def _histogram(kind, bins) -> dict:
    """Bars from the lowest to the highest bin that holds something; ticks stand at lower edges."""
    what, edge = KINDS[kind]
    first, last = min(bins), max(bins)
    while last - first < 4:  # a bar as wide as the chart would say nothing
        first, last = (first - 1 if first > 0 or kind in SIGNED else first), last + 1
    axis = Axis.over([0, max(bins.values())], linear=True)
    step = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    top = lambda count: TOP + (FLOOR - TOP) * (1 - axis.share(count))
    counts = [(number, bins.get(number, 0)) for number in range(first, last + 1)]
    every = -(-(last - first + 1) // 7)
    return {"title": what, "total": f"{sum(bins.values()):,}", "median": _edge(kind, edge, _median(bins)),
            "grid": [(top(tick), label(tick)) for tick in axis.ticks if tick == int(tick)],
            "bars": [{"x": LEFT + (number - first) * step + min(0.5, step / 10), "y": top(count),
                      "width": step - min(1, step / 5), "height": FLOOR - top(count),
                      "note": f"{_edge(kind, edge, number)}: {count:,}"} for number, count in counts],
            "steps": [(LEFT + (n - first + 0.5) * step, _edge(kind, edge, n)) for n in range(first, last + 1, every)]}


def _edge(kind, edge, number):
    if kind == "box area":
        return f"{100 * edge(number):.2g} %"
    text = label(round(edge(number), 2 if kind == "aspect" else 0))
    return f"{text}+" if number == LAST.get(kind) else text


def _median(bins):
    left = sum(bins.values()) / 2
    for number in sorted(bins):
        left -= bins[number]
        if left <= 0:
            return number
