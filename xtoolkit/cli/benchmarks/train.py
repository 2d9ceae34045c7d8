"""Measures a recipe's training step, stream by stream: seconds, useful GFLOP/s beside the machine's own, where they go.

Every round takes one step of each stream at each batch size and precision, so that a slow moment hits all of them;
the first round is thrown away, of the others the median counts. Matrix products are timed before every step, and their
median is the machine's rate: a machine that others share may do two or three times more at one moment than at the next,
and a best product beside a usual step would compare two machines. The marginal cost of a row comes from the two sizes:
what a step costs whatever its batch (gradients, low-precision copies of the weights) drops out. Useful GFLOPs are the
plan's, at the mean length of the batch's texts: padding does not count. Weights are random, batches are made in this
process.
"""

import functools
import json
import statistics
import sys
from pathlib import Path

from xtoolkit.cli.benchmarks import setting

HELP = "a training step: seconds and GFLOP/s by stream, where they go, memory"
SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is the machine's own rate


def add_arguments(parser) -> None:
    """Options of this benchmark."""
    setting.add_arguments(parser)
    parser.add_argument("--sizes", type=int, nargs=2, default=(8, 16), metavar=("A", "B"),
                        help="rows a batch: two sizes, A below B (default: 8 16)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), nargs="+", default=("bf16", "fp32"),
                        help="default: both")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds that count (default: 3)")
    parser.add_argument("--operators", type=int, default=0, metavar="N",
                        help="also name the N operators of a step that cost most, by torch's profiler")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, unrounded")


def main(args) -> int:
    """Measures, prints, writes. Returns 0, or 2 for what cannot be done."""
    from xtoolkit.data.errors import BadDataError

    small, large = args.sizes
    if not 2 <= small < large or args.repeats < 1:
        print("--sizes A B: A must be at least 2 and below B; --repeats at least 1", file=sys.stderr)
        return 2
    try:
        found = measure(setting.read_recipe(args), args.stream, args.sizes, args.precision, args.repeats,
                        args.operators)
    except BadDataError as e:
        print(e, file=sys.stderr)
        return 2
    print(as_text(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(recipe, streams, sizes, precisions, repeats, operators) -> dict:
    """All figures, as JSON has them.

    Args:
        streams: names; None: all.
        sizes: rows a batch, two.
        precisions: of ``bf16``, ``fp32``.
        repeats: rounds that count.
        operators: how many operators to name; 0: the profiler is not run.
    """
    import torch

    from xtoolkit.data.loader import Loader
    from xtoolkit.engine import environment
    from xtoolkit.engine.run import Run
    from xtoolkit.engine.device import pick_device
    from xtoolkit.model import Model

    from xtoolkit.cli.benchmarks.step import Stepper, matmul_rate, useful_gflops

    run, device = Run(recipe, init=False), pick_device(recipe.train.device)
    stepper = Stepper(run.model, device)
    streams = list(streams or recipe.streams)
    loaders = {(name, size): Loader(name, run.loaders[name].dataset, size, recipe.train.seed, 0)
               for name in streams for size in sizes}
    products = {precision: [] for precision in precisions}  # GFLOP/s
    steps = {(name, size, precision): [] for name, size in loaders for precision in precisions}
    for round_ in range(repeats + 1):
        said = f"round {round_} of {repeats}" if round_ else "warm-up"
        print(said, file=sys.stderr, flush=True)
        for (name, size), loader in loaders.items():
            for precision in precisions:
                rate = matmul_rate(device, precision, stepper.marks, SIDE[device.type])
                step = stepper.take(name, functools.partial(loader.at, 0), precision)
                if round_:
                    products[precision].append(rate)
                    steps[name, size, precision].append(step)
    rates = {precision: statistics.median(found) for precision, found in products.items()}
    with torch.device("meta"):
        shapes = Model(recipe)  # to count on
    counts = {key: useful_gflops(shapes, key[0], loader.at(0)) for key, loader in loaders.items()}
    found = {"machine": environment.machine(device), "torch": environment.versions()["torch"],
             "git": environment.git_hash(), "repeats": repeats, "matmul_side": SIDE[device.type],
             "matmul_gflops_per_s": rates, "matmul_gflops_per_s_all": products, "streams": {}}
    for name in streams:
        found["streams"][name] = {
            "losses": dict(recipe.streams[name].losses),
            "sizes": [{"rows": size, "mean_tokens": counts[name, size][2], "gflops": counts[name, size][1]}
                      for size in sizes],
            **{p: _of_precision([steps[name, size, p] for size in sizes], sizes, [counts[name, s] for s in sizes],
                                rates[p]) for p in precisions}}
        if operators:
            for p in precisions:
                fetch = functools.partial(loaders[name, sizes[0]].at, 0)
                listed = stepper.operators(name, fetch, p, operators)
                found["streams"][name][p]["operators"] = [dict(zip(("name", "calls", "seconds"), o)) for o in listed]
    return found


def _of_precision(steps, sizes, counts, rate) -> dict:
    """The figures of one stream in one precision; the median of the rounds for each."""
    rows = []
    for taken, size, (_, gflops, _) in zip(steps, sizes, counts):
        both = statistics.median(s.both for s in taken)
        rows.append({"rows": size, "step_s": statistics.median(s.all for s in taken), "forward_backward_s": both,
                     "cpu_s": statistics.median(s.cpu for s in taken), "peak_bytes": max(s.peak for s in taken),
                     "gflops_per_s": gflops / both, "of_matmul": gflops / both / rate,
                     "forward_backward_s_all": [s.both for s in taken], "step_s_all": [s.all for s in taken]})
    more, (first, second) = sizes[1] - sizes[0], rows
    span = second["forward_backward_s"] - first["forward_backward_s"]
    per_row = (counts[1][1] - counts[0][1]) / more
    marginal = {"forward_backward_s": span / more, "step_s": (second["step_s"] - first["step_s"]) / more,
                "cpu_s": (second["cpu_s"] - first["cpu_s"]) / more, "gflops": per_row,
                "gflops_per_s": per_row * more / span if span > 0 else None,
                "of_matmul": per_row * more / span / rate if span > 0 else None}
    shown = sorted(steps[0], key=lambda s: s.both)[(len(steps[0]) - 1) // 2]  # the median, or the step below it
    forward, gflops, _ = counts[0]
    parts = [{"part": "data", "seconds": shown.data, "gflops": 0.0}]
    parts += [{"part": f"forward {name}", "seconds": s, "gflops": forward[name]} for name, s in shown.passes.items()]
    parts += [{"part": "forward losses", "seconds": shown.forward - sum(shown.passes.values()),
               "gflops": forward[""]},
              {"part": "backward", "seconds": shown.backward, "gflops": gflops - sum(forward.values())},
              {"part": "optimizer", "seconds": shown.optimizer, "gflops": 0.0}]
    return {"steps": rows, "marginal": marginal, "parts": parts}


# ---- as a person reads it --------------------------------------------------------------------------------------------
def as_text(found: dict) -> str:
    """The figures as tables."""
    from xtoolkit.report.tables import aligned

    machine, side = found["machine"], found["matmul_side"]
    name = machine["gpu"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"
    lines = [f"{name}; torch {found['torch']}; commit {found['git']}; the median of {found['repeats']} rounds",
             f"matrix product {side} x {side} x {side}: "
             + ", ".join(f"{p} {rate:,.0f} GFLOP/s ({min(every):,.0f} to {max(every):,.0f})" for (p, rate), every in
                         zip(found["matmul_gflops_per_s"].items(), found["matmul_gflops_per_s_all"].values()))]
    for stream, figures in found["streams"].items():
        losses = " + ".join(figures["losses"])
        sizes = " and ".join(f"{s['rows']} rows ({_tokens(s)}{s['gflops'] / s['rows']:,.1f} useful GFLOPs each)"
                             for s in figures["sizes"])
        lines += ["", f"stream {stream}: {losses}; {sizes}", aligned(_table(figures))]
        for precision in found["matmul_gflops_per_s"]:
            rows = figures["sizes"][0]["rows"]
            lines += ["", f"where a step of {rows} rows goes, {precision}",
                      aligned(_parts(figures[precision]["parts"]))]
            if "operators" in figures[precision]:
                lines += ["", f"operators, {precision}", aligned(_operators(figures[precision]["operators"]))]
    return "\n".join(lines)


def _tokens(size) -> str:
    return f"mean length {size['mean_tokens']:.1f}, " if size["mean_tokens"] else ""


def _table(figures) -> list:
    head = ["", "step s", "forward + backward s", "s a row", "GFLOP/s", "of matmul", "CPU s of step", "peak GB"]
    table = [head]
    for precision in [p for p in ("bf16", "fp32") if p in figures]:
        for row in figures[precision]["steps"]:
            both = row["forward_backward_s"]
            table.append([f"{precision}, {row['rows']} rows", f"{row['step_s']:.3f}", f"{both:.3f}",
                          f"{both / row['rows']:.4f}", f"{row['gflops_per_s']:,.0f}", f"{row['of_matmul']:.0%}",
                          f"{row['cpu_s']:.2f}", f"{row['peak_bytes'] / 1e9:.2f}"])
        m = figures[precision]["marginal"]
        rate = ["-", "-"] if m["of_matmul"] is None else [f"{m['gflops_per_s']:,.0f}", f"{m['of_matmul']:.0%}"]
        table.append([f"{precision}, one row more", f"{m['step_s']:.4f}", f"{m['forward_backward_s']:.4f}",
                      f"{m['forward_backward_s']:.4f}", *rate, f"{m['cpu_s']:.3f}", ""])
    return table


def _parts(parts) -> list:
    whole = sum(p["seconds"] for p in parts)
    rate = lambda p: f"{p['gflops'] / p['seconds']:,.0f}" if p["gflops"] and p["seconds"] > 0 else ""
    return [["part", "s", "share", "GFLOPs", "GFLOP/s"]] + [
        [p["part"], f"{p['seconds']:.3f}", f"{p['seconds'] / whole:.1%}", f"{p['gflops']:,.1f}" if p["gflops"] else "",
         rate(p)] for p in parts]


def _operators(operators) -> list:
    return [["operator", "calls", "s of its own"]] + [[o["name"], str(o["calls"]), f"{o['seconds']:.3f}"]
                                                      for o in operators]
