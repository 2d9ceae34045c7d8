"""Output layer and cross-entropy: the scores made whole, in parts, and by torch's own chunked operator.

Each case is one forward and one backward pass, in one process, the ways taking turns; the time is that of the process
(on a GPU, between two events), the least of several; memory is what the allocator held at the most beyond the inputs,
gradients included, and what is still held between the passes. Errors are against float64.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

HELP = "output layer + cross-entropy at the masked positions, whole or in parts"
SIZES = ("480x50265", "240x50265", "48x50265", "240x4000", "64x4000")
WIDTH = 768


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="MxV", help="masked tokens x vocabulary")
    parser.add_argument("--width", type=int, default=WIDTH, help="channels (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=("bf16", "fp32"), choices=("bf16", "fp32"),
                        help="bf16: under autocast, parameters in float32, as in training")
    parser.add_argument("--words", nargs="+", type=int, default=None, metavar="C",
                        help="words of a chunk, a row each (default: the library's)")
    parser.add_argument("--ours-only", action="store_true",
                        help="without torch's own operator, which takes many seconds on a CPU in bf16")
    parser.add_argument("--repeats", type=int, default=5, help="of which the least counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=None, help="default: a GPU if there is one")
    parser.add_argument("--markdown", type=Path, help="write the table here too")


def main(args: argparse.Namespace) -> int:
    """Prints a row a case and way; returns 1 if one of ours errs more than half as much again as a plain layer."""
    import torch

    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cpu = f"{platform.machine()} CPU, {args.threads} thread"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    lines = [f"{name}, torch {torch.__version__}, width {args.width}, least of {args.repeats}, forward + backward", "",
             "| M x V | type | way | ms | of plain | peak MB | held MB | error of loss | of gradients |",
             "|---|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    failed = False
    for size in args.sizes:
        rows, words = map(int, size.split("x"))
        for dtype in args.dtypes:
            found = _case(rows, words, args, dtype, device)
            plain = found["plain"]
            for way, r in found.items():
                lines.append(f"| {rows} x {words} | {dtype} | {way} | {r.ms:.1f} | {r.ms / plain.ms:.2f} | "
                             f"{r.peak / 1e6:.0f} | {r.held / 1e6:.0f} | {r.loss:.0e} | {r.gradient:.0e} |")
                print(lines[-1], flush=True)
                bad = r.loss > 1.5 * plain.loss + 1e-6 or r.gradient > 1.5 * plain.gradient + 1e-6
                failed |= bad and way.startswith("parts")
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")
    return int(failed)


class _Result:
    """One way's figures of one case; times in ms, memory in bytes, errors relative."""

    def __init__(self):
        self.ms, self.peak, self.held, self.loss, self.gradient = float("inf"), 0, 0, 0.0, 0.0


def _case(rows, words, args, dtype, device):
    import torch

    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, args.width, generator=g)
    weight = 0.02 * torch.randn(words, args.width, generator=g)
    inputs = [t.to(device).requires_grad_() for t in (hidden, weight, torch.zeros(words))]
    labels = torch.randint(0, words, (rows,), generator=g).to(device)
    want = _exact(inputs, labels)
    ways, results = _ways(args, dtype), {}
    for name, way in ways.items():
        r = results[name] = _Result()
        loss = _forward(way, inputs, labels, dtype)
        gradients = torch.autograd.grad(loss, inputs)
        errors = [_error(a, b) for a, b in zip((loss, *gradients), want)]
        r.loss, r.gradient = errors[0], max(errors[1:])
        del loss, gradients
        r.peak, r.held = _memory(way, inputs, labels, dtype)
    for _ in range(args.repeats):
        for name, way in ways.items():
            results[name].ms = min(results[name].ms, _time(way, inputs, labels, dtype))
    return results


def _ways(args, dtype):
    """{name: function of (hidden, weight, bias, labels)}; each ``parts`` sets its words of a chunk before it runs."""
    import importlib

    import torch
    import torch.nn.functional as F

    module = importlib.import_module("xtoolkit.kernels.linear_cross_entropy")

    def plain(hidden, weight, bias, labels):
        return module.cross_entropy(F.linear(hidden, weight, bias), labels)

    def parts(words):
        def run(hidden, weight, bias, labels):
            module.WORDS, module.PLAIN_BYTES = words, -1
            return module.linear_cross_entropy(hidden, weight, bias, labels)
        return run

    def torchs(hidden, weight, bias, labels):  # knows no autocast
        if dtype == "bf16":
            hidden, weight, bias = (t.bfloat16() for t in (hidden, weight, bias))
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, options=options)

    found = {"plain": plain} | {f"parts of {n}": parts(n) for n in args.words or [module.WORDS]}
    if hasattr(F, "linear_cross_entropy") and not args.ours_only:
        found["torch's own"] = torchs
    return found


def _forward(way, inputs, labels, dtype):
    import torch

    with torch.autocast(labels.device.type, torch.bfloat16, enabled=dtype == "bf16"):
        return way(*inputs, labels)


def _time(way, inputs, labels, dtype):
    """Milliseconds of both passes."""
    import torch

    if labels.device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.autograd.grad(_forward(way, inputs, labels, dtype), inputs)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start = time.process_time()
    torch.autograd.grad(_forward(way, inputs, labels, dtype), inputs)
    return (time.process_time() - start) * 1e3


def _memory(way, inputs, labels, dtype):
    """(most bytes held at once, bytes held between the passes), beyond what was there before."""
    import torch

    if labels.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = _forward(way, inputs, labels, dtype)
        held = torch.cuda.memory_allocated() - before
        torch.autograd.grad(loss, inputs)
        return torch.cuda.max_memory_allocated() - before, held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = _forward(way, inputs, labels, dtype)
        with torch.profiler.record_function("between the passes"):
            torch.empty(1)
        gradients = torch.autograd.grad(loss, inputs)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    del gradients
    middle = next(e["ts"] for e in trace if e["name"] == "between the passes")
    events = sorted((e["ts"], e["args"]) for e in trace if e["name"] == "[memory]")
    totals = [(ts, event["Total Allocated"]) for ts, event in events]
    before = totals[0][1] - events[0][1]["Bytes"]
    return max(total for _, total in totals) - before, [total for ts, total in totals if ts < middle][-1] - before


def _exact(inputs, labels):
    import torch

    double = [t.detach().double().requires_grad_() for t in inputs]
    loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*double), labels)
    return loss.detach(), *torch.autograd.grad(loss, double)


def _error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
