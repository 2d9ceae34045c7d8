"""summary.html: what `xtoolkit prepare` put into a folder, on one page: counts, samples with boxes, histograms."""

import io
import json
import random
import tarfile
from bisect import bisect
from itertools import accumulate, islice
from pathlib import Path

from PIL import Image

from xtoolkit.prepare.run import MANIFEST
from xtoolkit.prepare.stats import KINDS, MANY, WORDS, texts
from xtoolkit.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, label
from xtoolkit.report.figures import COLOURS, Item, jpeg
from xtoolkit.report.rendering import render, write

NAME = "summary.html"
SHOWN = 12  # samples of a conversion
REGIONS = 12  # of a sample
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
    found = {path.name: _manifest(path) for path in sorted(folder.glob("prepared-*.json"))}
    runs, others = [run for run in found.values() if run], [name for name, run in found.items() if not run]
    return write(folder / NAME, render("prepared.html", side=SIDE, name=folder.resolve().name, tiles=_tiles(runs),
                                       runs=[_run(run, folder) for run in runs], others=others))


def _manifest(path: Path) -> dict | None:
    """What a conversion noted; None where another version of it, or something else, wrote the file."""
    try:
        run = json.loads(path.read_bytes())
    except ValueError:
        return None
    return run if isinstance(run, dict) and run.get("version") == MANIFEST else None


def _tiles(runs):
    totals = {name: sum(counts[name] for run in runs for counts in run["written"].values())
              for name in ("samples", "captions", "boxes")}
    sizes = [file["bytes"] for run in runs for file in run["files"].values()]
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
    files = lambda prefix: sum(prefix in (Path(name).stem, name.rpartition("-")[0]) for name in run["files"])
    called = lambda prefix: next((name for name in run["files"] if Path(name).stem == prefix), f"{prefix}-*")
    return run | {
        "written": [[called(prefix), *(f"{counts[n]:,}" for n in ("samples", "captions", "boxes")), f"{files(prefix):,}"]
                    for prefix, counts in run["written"].items()],
        "lost": [[f"{verb}: {kind}", f"{count:,}", case] for verb, kinds in (("left out", run["left_out"]),
                 ("changed", run["changed"])) for kind, (count, case) in kinds.items()],
        "samples": [_sample(folder / name, place) for name, place in _drawn(run["files"]) if (folder / name).exists()],
        "charts": [_histogram(kind, {int(n): c for n, c in run["bins"][kind].items()})
                   for kind in KINDS if run["bins"].get(kind)]}


def _drawn(files: dict):
    """(file, place in it) of some samples: always the same of the same files."""
    names, ends = list(files), [0, *accumulate(file["samples"] for file in files.values())]
    for number in sorted(random.Random(0).sample(range(ends[-1]), min(SHOWN, ends[-1]))):
        file = bisect(ends, number) - 1
        yield names[file], number - ends[file]


def _sample(shard: Path, place: int) -> dict:
    """What the template shows of a sample: its picture with boxes, and lines of text with the class of each box."""
    try:
        return _picture(shard, place) if shard.suffix == ".tar" else _text(shard, place)
    except (tarfile.TarError, OSError, ValueError, SyntaxError) as error:
        return {"item": None, "lines": [("", f"{shard.name}: sample {place} cannot be shown: {error}")], "place": ""}


def _text(shard, place):
    with shard.open(encoding="utf-8") as lines:
        line = next(islice(lines, place, None))
    row = json.loads(line) if shard.suffix == ".jsonl" else {"": line}
    said = [*map(str, row.values())] if len(row) == 1 else [f"{key}: {value}" for key, value in row.items()]
    return {"item": None, "lines": [("", one[:400]) for one in said], "place": shard.name}


def _picture(shard, place):
    with tarfile.open(shard) as tar:
        picture, info = (tar.extractfile(member).read() for member in islice(tar, 2 * place, 2 * place + 2))
    image, info, regions = Image.open(io.BytesIO(picture)), json.loads(info), {}
    for region in info.get("regions", ())[:REGIONS]:  # of one place: drawn once
        regions.setdefault(tuple(region["box"]), []).append(texts(region)[0])
    (width, height), looks = image.size, {str(n): f"c{n % COLOURS}" for n in range(len(regions))}
    boxes = [{"box": [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], "kind": kind}
             for kind, (x, y, w, h) in zip(looks, regions)]
    lines = [("", said) for said in info.get("captions", ())[:2]]
    lines += [(look, " · ".join(said)) for look, said in zip(looks.values(), regions.values())]
    if (more := len(info.get("regions", ())) - REGIONS) > 0:
        lines.append(("", f"and {more:,} more"))
    return {"item": Item(jpeg(image, SIDE), str(info["image_id"]), boxes=boxes), "looks": looks, "lines": lines,
            "place": f"{info['image_id']} · {width} x {height} · {shard.name}"}


def _histogram(kind, bins) -> dict:
    """Bars from the lowest to the highest bin that holds something; ticks stand at lower edges."""
    what, _ = KINDS[kind]
    first, last = min(bins), max(bins)
    while last - first < 4:  # a bar as wide as the chart would say nothing
        first, last = (first - 1 if first > 0 or kind in SIGNED else first), last + 1
    numbers = range(first, last + 1)
    axis, step = Axis.over([0, max(bins.values())], linear=True), (WIDTH - LEFT - RIGHT) / len(numbers)
    top = lambda count: TOP + (FLOOR - TOP) * (1 - axis.share(count))
    bars = [{"x": LEFT + place * step + min(0.5, step / 10), "y": top(count), "width": step - min(1, step / 5),
             "height": FLOOR - top(count), "note": f"{_span(kind, number)}: {count:,}"}
            for place, number in enumerate(numbers) for count in [bins.get(number, 0)]]
    every = -(-len(numbers) // 7)
    reached, half = accumulate(bins.get(number, 0) for number in numbers), sum(bins.values()) / 2
    median = next(number for number, count in zip(numbers, reached) if count >= half)
    return {"title": what, "total": f"{sum(bins.values()):,}", "median": _span(kind, median), "bars": bars,
            "grid": [(top(tick), label(tick)) for tick in axis.ticks if tick == int(tick)],
            "steps": [(LEFT + (n - first + 0.5) * step, _edge(kind, n)) for n in numbers[::every]]}


def _span(kind, number) -> str:
    """What a bin counts: a number, or from its lower edge to the next one's."""
    low, high = _edge(kind, number), _edge(kind, number + 1)
    _, edge = KINDS[kind]
    return low if low == high or edge(number) == number else f"{low} to {high}"


def _edge(kind, number) -> str:
    _, edge = KINDS[kind]
    if kind == "box area":
        return f"{100 * edge(number):.2g} %"
    text = label(round(edge(number), 2 if kind == "aspect" else 0))
    return f"{text}+" if number == LAST.get(kind) else text
