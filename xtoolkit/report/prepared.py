"""summary.html: what `xtoolkit prepare` put into a folder, on one page: counts, samples with boxes, histograms."""

import io
import json
from html import escape
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from xtoolkit.prepare.stats import KINDS, MANY, WORDS
from xtoolkit.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, label
from xtoolkit.report.sections import picture, table
from xtoolkit.report.style import CSS

NAME = "summary.html"
SIDE, QUALITY = 320, 82  # of a picture on the page: pixels at most, and of its JPEG
SIGNED = ("aspect", "box area")  # their bins go below 0
FLOOR = HEIGHT - 26  # where the bars of a histogram stand
LAST = {"caption words": WORDS, "boxes": MANY}  # bins that hold everything from there on
STYLE = """
.bar{fill:var(--c0)}.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:20px 16px;
align-items:start}.samples ol,.samples ul{margin:8px 0 0;padding:0;list-style:none;font-size:13px;line-height:1.45}
.samples li{overflow-wrap:anywhere}.samples i{display:inline-block;width:16px;height:0;border-top:3px solid;
vertical-align:middle;margin-right:6px}.samples small,.texts small{color:var(--soft)}
.texts p{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;margin:0 0 10px;
overflow-wrap:anywhere}""" + "".join(f".samples i.c{n}{{border-color:var(--c{n})}}" for n in range(8))


def write_summary(folder) -> Path:
    """Writes ``summary.html`` of all the ``prepared-*.json`` in a folder: no script, nothing fetched.

    Returns:
        Its path.
    """
    folder = Path(folder)
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("prepared-*.json"))]
    body = "".join(_run(run, folder, several=len(runs) > 1) for run in runs)
    name = escape(folder.resolve().name)
    page = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
            f"<title>{name} · prepared data</title><style>{CSS}{STYLE}</style></head><body><main><header>"
            f'<p class="over">xtoolkit data</p><h1>{name}</h1><p class="sub">What xtoolkit prepare wrote here, '
            f"and what it left out.</p>{_tiles(runs)}</header>{body}</main></body></html>\n")
    path = folder / NAME
    unfinished = path.with_suffix(".html.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path


def _tiles(runs):
    totals = {"samples": 0, "captions": 0, "boxes": 0}
    for counts in (c for run in runs for c in run["written"].values()):
        totals = {name: totals[name] + counts[name] for name in totals}
    sizes = [size for run in runs for _, size in run["files"].values()]
    shown = [(name.capitalize(), f"{count:,}") for name, count in totals.items() if count]
    shown += [("Shards", f"{len(sizes):,}"), ("On disk", _bytes(sum(sizes)))]
    return ('<div class="tiles">' + "".join(f'<div class="tile"><span>{name}</span><b>{value}</b></div>'
                                            for name, value in shown) + "</div>")


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _run(run, folder, several):
    written = [["shards", "samples", "captions", "boxes", "files"]]
    for prefix, counts in run["written"].items():
        files = sum(name.rpartition("-")[0] == prefix for name in run["files"])
        written.append([f"{prefix}-*", *(f"{counts[n]:,}" for n in ("samples", "captions", "boxes")), f"{files:,}"])
    lost = [["what", "how many", "the first of them"]]
    for verb, kinds in (("left out", run["left_out"]), ("changed", run["changed"])):
        lost += [[f"{verb}: {kind}", f"{count:,}", case] for kind, (count, case) in kinds.items()]
    charts = "".join(_histogram(kind, {int(n): c for n, c in run["bins"][kind].items()})
                     for kind in KINDS if run["bins"].get(kind))
    samples = [drawn for _, shown in run["shown"] if (drawn := _sample(shown, folder))]
    texts = [f'<p>{escape(shown["info"]["text"])}</p>' for _, shown in run["shown"] if "text" in shown["info"]]
    head = f"<h2>{escape(run['label'])}</h2>" if several else ""
    return (f"{head}<h2>Written</h2>{table(written)}"
            f"<h2>Left out and changed</h2>{table(lost, (2,)) if len(lost) > 1 else '<p class=lead>Nothing.</p>'}"
            '<h2>Samples</h2><p class="lead">Drawn by a hash of their names, not picked; the first twelve regions of '
            f'a picture at most.</p>{_grid("samples", samples)}{_grid("texts", texts)}'
            f'<h2>Histograms</h2><p class="lead">Of all samples.</p><div class="charts">{charts}</div>')


def _grid(name, parts):
    return f'<div class="{name}">{"".join(parts)}</div>' if parts else ""


def _sample(shown, folder):
    """A picture with its boxes and texts; nothing for a text, or where the shard is gone."""
    if "file" not in shown:
        return ""
    try:
        with (folder / shown["file"]).open("rb") as shard:
            shard.seek(shown["at"])
            image = Image.open(io.BytesIO(shard.read(shown["bytes"])))
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            image = image.convert("RGB")
    except FileNotFoundError:
        return ""
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        said = f"{shown['file']}: a picture that does not decode: {error}"
        return f'<figure><p class="lead">{escape(said)}</p></figure>'
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out, info, (width, height) = io.BytesIO(), shown["info"], shown["size"]
    image.save(out, "JPEG", quality=QUALITY)
    texts = {}  # of each box: regions of one place are drawn once
    for region in info.get("regions", ()):
        texts.setdefault(tuple(region["box"]), []).append(region["caption"])
    boxes = "".join(_box(box, width, height, n % 8) for n, box in enumerate(texts))
    captions = "".join(f"<li>{escape(c)}</li>" for c in info.get("captions", ()))
    named = "".join(f'<li><i class="c{n % 8}"></i>{escape(" · ".join(said))}</li>'
                    for n, said in enumerate(texts.values()))
    left = info.get("all", 0) - len(info.get("regions", ()))
    more = f"<li><small>and {left:,} more</small></li>" if left > 0 else ""
    return (f'<figure>{picture(out.getvalue(), str(info["image_id"]), boxes)}<ul>{captions}{named}{more}'
            f'<li><small>{escape(str(info["image_id"]))} · {width} x {height} · {escape(shown["prefix"])}</small>'
            "</li></ul></figure>")


def _box(box, width, height, colour):
    x, y, w, h = (v / s for v, s in zip(box, (width, height, width, height)))
    place = f'x="{x:.4f}" y="{y:.4f}" width="{w:.4f}" height="{h:.4f}"'
    return f'<rect class="halo" {place}/><rect class="box c{colour}" {place}/>'


def _histogram(kind, bins):
    """Bars from the lowest to the highest bin that holds something; ticks stand at lower edges."""
    what, edge = KINDS[kind]
    first, last, total = min(bins), max(bins), sum(bins.values())
    while last - first < 4:  # a bar as wide as the chart would say nothing
        first, last = (first - 1 if first > 0 or kind in SIGNED else first), last + 1
    axis = Axis.over([0, max(bins.values())], linear=True)
    step = (WIDTH - LEFT - RIGHT) / (last - first + 1)
    top = lambda count: TOP + (FLOOR - TOP) * (1 - axis.share(count))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}">']
    for tick in (t for t in axis.ticks if t == int(t)):
        y = f"{top(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/><text class="tick" '
                     f'x="{LEFT - 6}" y="{y}" dy="3.5" text-anchor="end">{label(tick)}</text>')
    for number in range(first, last + 1):
        count = bins.get(number, 0)
        parts.append(f'<rect class="bar" x="{LEFT + (number - first) * step + min(0.5, step / 10):.2f}" '
                     f'y="{top(count):.2f}" width="{step - min(1, step / 5):.2f}" height="{FLOOR - top(count):.2f}">'
                     f"<title>{_edge(kind, edge, number)}: {count:,}</title></rect>")
    every = -(-(last - first + 1) // 7)
    parts += [f'<text class="tick" x="{LEFT + (n - first + 0.5) * step:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
              f"{_edge(kind, edge, n)}</text>" for n in range(first, last + 1, every)]
    return (f'<figure class="chart"><figcaption>{escape(what)}</figcaption>{"".join(parts)}</svg><div class="legend">'
            f"<span>{total:,} in all, median <b>{_edge(kind, edge, _median(bins))}</b></span></div></figure>")


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
