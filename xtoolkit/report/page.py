"""report.html: a run on one self-contained page, from the files in its folder and a gallery."""

from datetime import datetime, timezone
from html import escape
from pathlib import Path

from xtoolkit.report import sections as show
from xtoolkit.report.charts import Chart, Curve, draw, number
from xtoolkit.report.record import Run, read_run
from xtoolkit.report.style import CSS
from xtoolkit.report.tables import figure, format_table, result_tables

__all__ = ["format_table", "write_report"]

NAME = "report.html"
COLOURS = 8
# What a logged number beside the losses is called, by the last part of its name.
TITLES = {"lr": "Learning rate", "norm": "Gradient norm", "samples_per_s": "Samples a second",
          "memory_gb": "Peak memory (GB)", "data_share": "Share of time spent waiting for data"}


def write_report(output, gallery: dict) -> Path:
    """Writes ``report.html`` into a run's folder: no script, nothing fetched, every picture in the page.

    Args:
        output: the folder, with ``config.yaml``, ``metrics.jsonl`` and ``environment.json``; ``results.json`` once the
            run is done.
        gallery: see ``report_gallery``; ``{}`` leaves the pictures and floors out.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    folder = Path(output)
    run = read_run(folder, gallery)
    path = folder / NAME
    unfinished = path.with_suffix(".html.unfinished")
    unfinished.write_text(page(run, folder.resolve().name), encoding="utf-8")
    unfinished.replace(path)
    return path


def page(run: Run, name: str) -> str:
    """The whole document."""
    parts = (_results, _curves, _retrieved, _boxes, _masked, _behind, _recipe, _data, _record)
    return document(name, f"{_header(run, name)}{''.join(part(run) for part in parts)}"
                    f"<footer>Written by xtoolkit {escape(_version(run))}. Hold the pointer over a hidden word to read "
                    "it.</footer>")


def document(title: str, body: str, css: str = "") -> str:
    """A page in the report's look: no script, nothing fetched.

    Args:
        title: plain.
        body: HTML, escaped already.
        css: rules beyond the report's own.
    """
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{escape(title)} · xtoolkit</title><style>{CSS}{css}</style></head><body><main>{body}"
            "</main></body></html>\n")


def section(title: str, lead: str, body: str) -> str:
    return f'<h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{body}' if body else ""


# ---- the top of the page
# ---------------------------------------------------------------------------------------------------
def _header(run, name):
    steps = run.lines[-1]["step"] if run.lines else 0
    of = run.config["train"]["steps"]
    facts = [f"{steps:,} steps" if steps >= of else f"{steps:,} of {of:,} steps"]
    if seconds := run.points("seconds"):
        facts.append(f"{duration(seconds[-1][1])} of training")
    machine = run.environment.get("machine") or {}
    facts += [str(machine[k]) for k in ("gpu", "cpu") if machine.get(k)][:1]
    facts += [run.environment["precision"]] if run.environment.get("precision") else []
    facts += [when(run.environment["started"])] if run.environment.get("started") else []
    return (f'<header><p class="over">xtoolkit run</p><h1>{escape(name)}</h1>'
            f'<p class="sub">{escape(" · ".join(facts))}</p>{_tiles(run)}</header>')


def _tiles(run):
    tiles = []
    for name, metrics in run.evaluations.items():
        floor = run.floors.get(name, {})
        ways = [m.removesuffix(".t2i_r10") for m in metrics if m.endswith(".t2i_r10")]
        named = {"t2i_r10": "Text to image, R@10", "i2t_r10": "Image to text, R@10"}
        shown = [(f"{ways[0]}.{r}", title, "chance") for r, title in named.items()] if ways else []
        if "mean_iou" in metrics:
            shown.append(("accuracy", "Boxes found", "floor"))
        for metric, title, word in shown:
            beside = f"{word} {figure(floor[metric])}" if metric in floor else ""
            tiles.append(_tile(title, f"{figure(metrics[metric])}<small> %</small>",
                               " · ".join(filter(None, [name, beside]))))
    if losses := run.points("loss"):
        tiles.append(_tile("Weighted sum of losses", number(losses[-1][1]), f"from {number(losses[0][1])}"))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tile(title, value, beside):
    return f'<div class="tile"><span>{escape(title)}</span><b>{value}</b><em>{escape(beside)}</em></div>'


def when(started: str) -> str:
    """22 November 2026, 01:00 UTC, of an ISO time in UTC."""
    return f"{datetime.fromisoformat(started).astimezone(timezone.utc):%d %B %Y, %H:%M} UTC".lstrip("0")


def duration(seconds: float) -> str:
    """8 min 12 s, 3 h 20 min, 45 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


# ---- results and curves
# ----------------------------------------------------------------------------------------------------
def _results(run):
    body = "".join(f"<h3>{escape(name)}</h3>{show.table(rows)}"
                   for name, rows in result_tables(run.evaluations, run.floors))
    return section("Results", "Each figure stands beside what a model that has learnt nothing would get: chance for "
                   "retrieval, and for boxes the answer that is always the biggest true box of the picture.", body)


def _curves(run):
    return section("Learning curves", "Strong lines are the trend of the faint ones; figures are the last values; "
                   "dashed lines are chance or the floor. The horizontal axis counts steps.",
                   _charts([("", _loss_charts(run)), ("Evaluations", _evaluation_charts(run))]))


def _behind(run):
    return section("Behind the curves",
                   "Parts of losses and what they log, gradients by encoder before clipping, rates.",
                   _charts([("", _part_charts(run)), ("The run", _health_charts(run))]))


def _charts(groups):
    return "".join(f'{f"<h3>{title}</h3>" if title else ""}<div class="charts">{drawn}</div>'
                   for title, charts in groups if (drawn := "".join(map(draw, charts))))


def _loss_charts(run):
    colours = {stream: i for i, stream in enumerate(run.streams)}
    losses = dict.fromkeys(loss for block in run.streams.values() for loss in block.get("losses") or {})
    charts = [Chart(loss, [Curve(s, run.points(f"{s}.{loss}"), c % COLOURS) for s, c in colours.items()])
              for loss in losses]
    return [Chart("all losses, weighted", [Curve("sum", run.points("loss"), 6)]), *charts]


def _part_charts(run):
    """``<stream>.<loss>.<part>``: a chart a part, a curve a stream."""
    charts: dict[str, Chart] = {}
    for key in run.keys:
        stream, _, rest = key.partition(".")
        if stream in run.streams and "." in rest:
            curve = Curve(stream, run.points(key), list(run.streams).index(stream) % COLOURS)
            charts.setdefault(rest, Chart(rest)).curves.append(curve)
    return [charts[name] for name in sorted(charts)]


def _evaluation_charts(run):
    charts = []
    for name, metrics in run.evaluations.items():
        floor = run.floors.get(name, {})
        wanted = [m for m in metrics if m.endswith(("_r10", "accuracy"))] or list(metrics)
        curves = [Curve(m, run.points(f"{name}.{m}"), i % COLOURS, floor.get(m)) for i, m in enumerate(wanted)]
        if any(len(c.points) > 1 for c in curves):
            charts.append(Chart(name, curves, smooth=False))
    return charts


def _health_charts(run):
    norms = [k for k in run.keys if k.startswith("norm.")]
    encoders = Chart("Gradient norm by encoder", [Curve(k.removeprefix("norm."), run.points(k), i % COLOURS)
                                                  for i, k in enumerate(norms)])
    return [encoders] + [Chart(title, [Curve(key, run.points(key), 6)], smooth=key != "lr", linear=key == "lr")
                         for key, title in TITLES.items()]


# ---- pictures
# --------------------------------------------------------------------------------------------------------------
def _several(parts, render):
    """Each evaluation's or stream's own heading only where there are several."""
    return "".join((f"<h3>{escape(name)}</h3>" if len(parts) > 1 else "") + render(examples)
                   for name, examples in parts.items())


def _retrieved(run):
    return section("What a text brings up", "Texts spread evenly over the test set, not picked, each with the five "
                   "pictures ranked first. The picture that the text was written for is framed; where it is not among "
                   "the five it stands at the end.",
                   _several(run.gallery.get("retrieval") or {}, show.retrieval))


def _boxes(run):
    return section("Where it looks", "Expressions spread evenly over the evaluation set, not picked.",
                   _several(run.gallery.get("boxes") or {}, show.boxes))


def _masked(run):
    return section("What it is asked to fill in", "Training samples as the model reads them: masked patches are grey, "
                   "masked words are blocks, and underlined words are random replacements or words that masking left "
                   "as they are.",
                   _several(run.gallery.get("masked") or {}, show.masked))


# ---- the record
# ------------------------------------------------------------------------------------------------------------
def _recipe(run):
    short = lambda value: ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    encoders = [["encoder", "type", "reads", "keys"]]
    for name, block in (run.config.get("encoders") or {}).items():
        rest = {k: v for k, v in block.items() if k not in ("type", "inputs")}
        encoders.append([name, block.get("type", ""), short(block.get("inputs") or {}), short(rest)])
    streams = [["stream", "batch", "data", "losses and weights"]]
    for name, block in run.streams.items():
        streams.append([name, f"{block.get('batch_size', ''):,}" if isinstance(block.get("batch_size"), int) else "",
                        str((block.get("data") or {}).get("type", "")), short(block.get("losses") or {})])
    losses = [["loss", "type", "keys"]]
    for name, block in (run.config.get("losses") or {}).items():
        losses.append([name, block.get("type", ""), short({k: v for k, v in block.items() if k != "type"})])
    stops = run.config.get("stop_gradient") or {}
    cut = "".join(f"<p class=lead>Gradients stop at <code>{escape(edge)}</code> for {escape(', '.join(names))}.</p>"
                  for edge, names in stops.items())
    body = (f'{show.table(encoders, text_columns=(1, 2, 3))}<br><div class="pair">'
            f"{show.table(losses, text_columns=(1, 2))}{show.table(streams, text_columns=(2, 3))}</div><br>{cut}"
            f"<details><summary>The resolved configuration</summary><pre>{escape(run.text)}</pre></details>")
    return section("Recipe", "What was wired to what, and what each stream was asked.", body)


def _data(run):
    reports = run.results.get("data") or {}
    rows = [["stream", "samples seen", "epochs", "read", "bad", "what was wrong", "worst shard"]]
    for name, report in reports.items():
        bad = report.get("bad") or {}
        seen = [number_or_dash(run.results.get(k, {}).get(name), d) for k, d in (("samples", 0), ("epochs", 1))]
        kinds = "; ".join(f"{kind} {n}" for kind, n in bad.items())
        rows.append([name, *seen, number_or_dash(report.get("read"), 0), number_or_dash(sum(bad.values()), 0),
                     kinds or "nothing", report.get("worst_shard") or "–"])
    return section("Data", "Samples that could not be read were skipped, counted and replaced by others.",
                   show.table(rows, text_columns=(5, 6)) if reports else "")


def number_or_dash(value, places: int) -> str:
    return "–" if value is None else f"{value:,.{places}f}"


def _record(run):
    env = run.environment
    known = ("command", "git", "kernels", "ranks", "precision", "started")
    facts = [["what", ""]] + [[k, str(env[k])] for k in known if env.get(k)]
    facts += [[f"time in {what}", duration(run.results[key])]
              for key, what in (("seconds", "steps"), ("seconds_all", "all")) if run.results.get(key)]
    facts += [[k, str(v)] for k, v in (env.get("machine") or {}).items() if v is not None]
    versions = [["package", "version"]] + [[k, v or "not installed"] for k, v in (env.get("versions") or {}).items()]
    body = f'<div class="pair">{show.table(facts, text_columns=(1,))}{show.table(versions)}</div>' if env else ""
    return section("Environment", "Where and with what it ran.", body)


def _version(run):
    return str((run.environment.get("versions") or {}).get("xtoolkit") or "")
