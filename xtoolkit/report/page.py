"""report.html: a run on one self-contained page, from the files in its folder."""

from datetime import datetime, timezone
from pathlib import Path

from xtoolkit.engine.guessing import sentences
from xtoolkit.engine.records import told
from xtoolkit.recipe.folder import EVALUATIONS
from xtoolkit.report.charts import Chart, Curve, laid_out, number
from xtoolkit.report.figures import COLOURS, Figure
from xtoolkit.report.gradients import heat_maps, norm_charts
from xtoolkit.report.record import Evaluation, Run, read_run
from xtoolkit.report.rendering import render, write
from xtoolkit.report.tables import result_tables

NAME = "report.html"
# What a logged number beside the losses is called, by the last part of its name.
TITLES = {"lr": "Learning rate", "norm": "Gradient norm", "samples_per_s": "Samples a second",
          "memory_gb": "Peak memory (GB)", "memory_now_gb": "Memory now (GB)",
          "data_share": "Share of time spent waiting for data"}


def write_report(output) -> Path:
    """Writes ``report.html`` into a run's folder: no script, nothing fetched, every picture in the page.

    Args:
        output: the folder, with ``config.yaml``; and, as far as the run has come, ``metrics.jsonl``, ``environment.json``,
            ``results.json``, ``samples.json`` and ``evaluations/*.json``.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    folder = Path(output)
    run = read_run(folder)
    return write(folder / NAME, render(
        "report.html", name=folder.resolve().name, facts=_facts(run), tiles=_tiles(run),
        results=result_tables({name: one.table for name, one in run.evaluations.items()},
                              {name: f" ({at})" for name, one in run.evaluations.items() if (at := elsewhen(run, one))}),
        guessing=sentences({key: found for key, found in run.guessing.items() if key.count(".") == 1}),
        curves=laid_out([("", _loss_charts(run)), ("Evaluations", _evaluation_charts(run))]),
        behind=laid_out([("", _part_charts(run)), ("The run", _health_charts(run))]),
        maps=heat_maps(run), reaching=laid_out([("", norm_charts(run))]),
        files=[f"{EVALUATIONS}/{name}/{file}" for name, one in run.evaluations.items() for file in one.files],
        examples={name: (one.step, figures) for name, one in run.evaluations.items() if (figures := _figures(one.figures))},
        samples={stream: found for stream, figures in run.samples.items() if (found := _figures(figures))},
        text=run.text, stops=run.config.get("stop_gradient") or {}, version=_version(run),
        **_recipe(run), data=_data(run), environment=_environment(run)))


def _figures(figures) -> list[Figure]:
    figures = figures if isinstance(figures, list) else [figures]
    return [one for figure in figures if (one := Figure.read(figure))]


# ---- the top of the page
# ---------------------------------------------------------------------------------------------------
def _facts(run: Run) -> list[str]:
    steps, of = run.step, run.config["train"]["steps"] if run.streams else None
    facts = ["evaluations alone" if of is None else f"{steps:,} steps" if steps >= of else f"{steps:,} of {of:,} steps"]
    if seconds := run.points("seconds"):
        facts.append(f"{duration(seconds[-1][1])} of training")
    machine = run.environment.get("machine") or {}
    facts += [str(machine[k]) for k in ("gpu", "cpu") if machine.get(k)][:1]
    facts += [run.environment["precision"]] if run.environment.get("precision") else []
    return facts + ([when(run.environment["started"])] if run.environment.get("started") else [])


def _tiles(run: Run) -> list[dict]:
    """A tile for each headline of each evaluation, of the whole or of the first part, and one for the loss."""
    tiles = []
    for name, one in run.evaluations.items():
        for headline, title in one.headlines.items():
            metric = next((m for m in one.of_headline(headline) if one.metrics[m] is not None), None)
            if metric is None:
                continue
            title, per_cent, _ = title.partition(", %")
            floor, part = one.floor.get(metric), metric.removesuffix(headline).rstrip(".")
            beside = " · ".join([f"{name} {part}".rstrip(), *([] if floor is None else [f"floor {figure(floor)}"]),
                                 *([at] if (at := elsewhen(run, one)) else [])])
            tiles.append({"title": title, "value": figure(one.metrics[metric]), "unit": "%" if per_cent else "",
                          "beside": beside})
    if losses := run.points("loss"):
        tiles.append({"title": "Weighted sum of losses", "value": number(losses[-1][1]), "unit": "",
                      "beside": f"from {number(losses[0][1])}"})
    return tiles


def elsewhen(run: Run, one: Evaluation) -> str:
    """Of which checkpoint an evaluation is, or after which step and when it was made, where that is not the run's last step."""
    return told(vars(one)) or ("" if one.step == run.step else f"at step {one.step:,}, {when(one.time)}")


def when(started: str) -> str:
    """22 November 2026, 01:00 UTC, of an ISO time in UTC."""
    return f"{datetime.fromisoformat(started).astimezone(timezone.utc):%d %B %Y, %H:%M} UTC".lstrip("0")


def duration(seconds: float) -> str:
    """8 min 12 s, 3 h 20 min, 45 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def figure(value) -> str:
    """A headline: per cents with one place, shares with three."""
    return number(value) if abs(value) < 1 else f"{value:.1f}"


# ---- curves
# ----------------------------------------------------------------------------------------------------------------
def _loss_charts(run):
    colours = {stream: i % COLOURS for i, stream in enumerate(run.streams)}
    losses = dict.fromkeys(loss for block in run.streams.values() for loss in block.get("losses") or {})
    charts = [Chart(loss, [_curve(run, s, f"{s}.{loss}", c) for s, c in colours.items()]) for loss in losses]
    return [Chart("all losses, weighted", [Curve("sum", run.points("loss"), 6)]), *charts]


def _curve(run, stream, key, colour):
    """What is logged of a loss of a stream, with its line of guessing."""
    return Curve(stream, run.points(key), colour, run.guessing[key]["guess"] if key in run.guessing else None)


def _evaluation_charts(run):
    """What an evaluation gave over the steps: its headlines, those of parts of the data beside them; all without any."""
    charts = []
    for name, one in run.evaluations.items():
        wanted = [m for headline in one.headlines for m in one.of_headline(headline)] or list(one.metrics)
        curves = [Curve(m, run.points(f"{name}.{m}"), i % COLOURS, one.floor.get(m)) for i, m in enumerate(wanted)]
        if any(len(c.points) > 1 for c in curves):
            charts.append(Chart(name, curves, smooth=False))
    return charts


def _part_charts(run):
    """``<stream>.<loss>.<part>``: a chart a part, a curve a stream."""
    charts: dict[str, Chart] = {}
    for key in run.logged:
        stream, _, rest = key.partition(".")
        if "." in rest:
            curve = _curve(run, stream, key, list(run.streams).index(stream) % COLOURS)
            charts.setdefault(rest, Chart(rest)).curves.append(curve)
    return [charts[name] for name in sorted(charts)]


def _health_charts(run):
    norms = [k for k in run.keys if k.startswith("norm.")]
    encoders = Chart("Gradient norm by encoder", [Curve(k.removeprefix("norm."), run.points(k), i % COLOURS)
                                                  for i, k in enumerate(norms)])
    return [encoders] + [Chart(title, [Curve(key, run.points(key), 6)], smooth=key != "lr", linear=key == "lr")
                         for key, title in TITLES.items()]


# ---- the record
# ------------------------------------------------------------------------------------------------------------
def _recipe(run) -> dict:
    """Rows of the recipe's encoders, losses and streams."""
    short = lambda value: ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    rest = lambda block, *known: short({k: v for k, v in block.items() if k not in known})
    blocks = lambda kind: (run.config.get(kind) or {}).items()
    size = lambda block: f"{block['batch_size']:,}" if isinstance(block.get("batch_size"), int) else ""
    return {
        "encoders": [[name, block.get("type", block.get("shares", "")), short(block.get("inputs") or {}),
                      rest(block, "type", "shares", "inputs")] for name, block in blocks("encoders")],
        "losses": [[name, block.get("type", ""), rest(block, "type")] for name, block in blocks("losses")],
        "streams": [[name, size(block), str((block.get("data") or {}).get("type", "")), short(block.get("losses") or {})]
                    for name, block in blocks("streams")]}


def _data(run) -> list[list[str]]:
    rows = []
    for name, report in (run.results.get("data") or {}).items():
        bad = report.get("bad") or {}
        seen = [number_or_dash(run.results.get(k, {}).get(name), d) for k, d in (("samples", 0), ("epochs", 1))]
        rows.append([name, *seen, number_or_dash(report.get("read"), 0), number_or_dash(sum(bad.values()), 0),
                     "; ".join(f"{kind} {n}" for kind, n in bad.items()) or "nothing", report.get("worst_shard") or "–"])
    return rows


def number_or_dash(value, places: int) -> str:
    return "–" if value is None else f"{value:,.{places}f}"


def _environment(run) -> dict:
    """Rows of facts and of versions; both empty where nothing is known."""
    env, times = run.environment, (("seconds", "steps"), ("seconds_all", "all"))
    facts = [[k, str(env[k])] for k in ("command", "git", "kernels", "ranks", "precision", "started") if env.get(k)]
    facts += [[f"time in {what}", duration(run.results[key])] for key, what in times if env and run.results.get(key)]
    facts += [[k, str(v)] for k, v in (env.get("machine") or {}).items() if v is not None]
    return {"facts": facts, "versions": [[k, v or "not installed"] for k, v in (env.get("versions") or {}).items()]}


def _version(run) -> str:
    return str((run.environment.get("versions") or {}).get("xtoolkit") or "")
