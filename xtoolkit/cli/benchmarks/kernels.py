"""Measures the fused operations beside their references, what others wrote, torch.compile and the device's own copy.

Errors are against float64; the exit code is 1 where one exceeds its tolerance. Without a GPU the references are
timed, the kernels run through Triton's interpreter on small sizes for their errors alone, and the rest is said to be
unmeasured.
"""

import os
import sys
from pathlib import Path

# One float32 case of each operation: a compiler takes half a minute on a CPU for what then runs in microseconds.
COMPILED_ON_A_CPU = {("500", "float32"), ("8 x 196 x 768", "float32")}
HELP = "the fused operations: times, errors and memory beside everything comparable"


def add_arguments(parser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--markdown", type=Path, metavar="FILE",
                        help="write the tables: into a page's part for this device, or into a new file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, unrounded")
    parser.add_argument("--quick", action="store_true", help="few small cases, nothing compiled")
    parser.add_argument("--operation", choices=["box_loss", "masked_mse"], help="only this one")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")


def main(args) -> int:
    """Measures, prints, writes. Returns 0, 1 for an error out of tolerance, 2 for what cannot be done."""
    import torch
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        # Read when the kernels' modules are imported, below.
        os.environ["TRITON_INTERPRET"] = "1"
    elif problem := no_gpu(torch.cuda.is_available()):
        print(problem, file=sys.stderr)
        return 2
    from xtoolkit.cli.benchmarks import report
    from xtoolkit.cli.benchmarks.clocks import CudaClock, HostClock
    from xtoolkit.cli.benchmarks.operations import COMPILED, OPERATIONS, REDUCED
    from xtoolkit.kernels import choice
    if choice.problem(device):
        print(f"Triton {choice.problem(device)}", file=sys.stderr)
        return 2
    names = [args.operation] if args.operation else list(OPERATIONS)
    try:
        page = report.Page(args.markdown, [f"{d} {name}" for name in names for d in ("cpu", "cuda")])
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2

    if device == "cuda":
        clock, compiled = CudaClock(), (COMPILED, REDUCED)
    else:
        clock, compiled = HostClock(budget=0.02, most=20) if args.quick else HostClock(), (COMPILED,)
    facts, copy_rate = report.device_facts(device), clock.copy_rate()
    small, timed = checked_cases(args.quick), timed_cases(device, args.quick)
    results = {}
    for op in (OPERATIONS[name]() for name in names):
        result = measure_all(op, small[op.name], timed[op.name], clock, copy_rate, () if args.quick else compiled)
        sections = sections_of(op, device, facts, clock, copy_rate, result)
        for name, body in sections.items():
            print(f"## {name}\n\n{body}\n", flush=True)
        page.write(sections)
        results[op.name] = result
    if args.json:
        report.write_json(args.json, device, facts, copy_rate, list(results.values()))
    wrong = [e for result in results.values() for e in result.errors if e.held and not e.ok]
    for e in wrong:
        print(f"{e.operation} {e.size} {e.dtype}, {e.way}: error of the loss {e.loss:.1e}, of the gradient "
              f"{e.gradient:.1e}: out of tolerance", file=sys.stderr)
    return 1 if wrong else 0


def no_gpu(available: bool) -> str | None:
    """Why nothing can be measured on a GPU; None: it can."""
    if not available:
        return "--device cuda: torch sees no GPU"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set, so that the kernels would be interpreted: unset it, or add --device cpu"
    return None


def measure_all(op, small, timed, clock, copy_rate, compiled):
    """Errors of the small cases, errors and times of the timed ones.

    Args:
        op: the operation.
        small: cases held against float64 by the kernel and its reference.
        timed: cases that are timed in every way; by the kernel on a GPU alone.
        clock: the device's clock.
        copy_rate: bytes a second of the device's own copy.
        compiled: names of the ways of torch.compile to time too.
    """
    import torch

    from xtoolkit.cli.benchmarks.measure import Result, check, input_sets, time
    from xtoolkit.cli.benchmarks.operations import EAGER, KERNEL
    result = Result()
    for case in small:
        ways = op.ways(case, kernel=True, compiled=())
        check(op, case, {name: ways[name] for name in (KERNEL, EAGER)}, op.inputs(case, clock.device), result)
    for case in timed:
        try:
            sets = input_sets(op, case, clock.device, clock.cache_bytes)
            gpu = clock.device == "cuda"
            compile_it = gpu or (str(case), case.dtype) in COMPILED_ON_A_CPU
            ways = op.ways(case, kernel=gpu, compiled=compiled if compile_it else ())
            time(op, case, ways, sets, check(op, case, ways, sets[0], result), clock, copy_rate, result)
        except torch.OutOfMemoryError:
            result.notes.append(f"{op.name} {case} {case.dtype} does not fit this device's memory: not measured")
    result.notes += clock.notes
    clock.notes.clear()
    return result


def sections_of(op, device, facts, clock, copy_rate, result) -> dict[str, str]:
    """What a page says of an operation: the tables of this device, and without a GPU what is therefore unmeasured."""
    from xtoolkit.cli.benchmarks import report
    from xtoolkit.cli.benchmarks.operations import COMPILED, EAGER, KERNEL, REDUCED
    from xtoolkit.cli.benchmarks.targets import answers
    reached = [a for a in answers(result.rows) if a.target.operation == op.name]
    if device == "cuda":
        return {f"cuda {op.name}": report.text(facts, clock, copy_rate, result, KERNEL, reached)}
    listed = [(case, [KERNEL, EAGER, *op.peers(case), COMPILED, REDUCED]) for case in timed_cases("cuda")[op.name]]
    return {f"cpu {op.name}": report.text(facts, clock, copy_rate, result, EAGER, []),
            f"cuda {op.name}": report.unmeasured(listed, reached)}


def checked_cases(quick: bool = False) -> dict[str, list]:
    """Sizes at which the kernels are held against float64 on every device."""
    from xtoolkit.cli.benchmarks.operations import DTYPES, Case
    # Of few numbers one rounding to a short type is the whole error, so the least sizes come in float32 alone.
    boxes = [Case((31,), dtype, some=True) for dtype in DTYPES] + [Case((513,), dtype) for dtype in DTYPES]
    tokens = [Case((2, 31, 17), dtype) for dtype in DTYPES]
    if not quick:
        boxes += [Case((n,)) for n in (1, 2)] + [Case((4097,), dtype, some=True) for dtype in DTYPES]
        tokens += [Case((1, 1, 1))] + [Case((2, n, d), dtype) for n, d in ((49, 64), (196, 768)) for dtype in DTYPES]
    return {"box_loss": boxes, "masked_mse": tokens}


def timed_cases(device: str, quick: bool = False) -> dict[str, list]:
    """Sizes that are timed: the real ones on a GPU, some that a CPU can run in seconds."""
    from xtoolkit.cli.benchmarks.operations import Case
    if quick:
        return {"box_loss": [Case((50,))], "masked_mse": [Case((2, 49, 64))]}
    if device == "cpu":
        return {"box_loss": [*(Case((n,)) for n in (50, 500, 1024, 100_000)), Case((500,), "bfloat16")],
                "masked_mse": [Case((2, 49, 64)), Case((8, 196, 768)), Case((8, 196, 768), "bfloat16")]}
    boxes = [Case((n,)) for n in (50, 500, 4096, 10_000, 100_000, 1_000_000, 10_000_000)]
    boxes += [Case((n,), "bfloat16") for n in (500, 1_000_000)] + [Case((1_000_000,), "float16")]
    tokens = [Case((96, 196, 768), dtype) for dtype in ("float32", "bfloat16", "float16")]
    return {"box_loss": boxes, "masked_mse": tokens + [Case((b, 196, 768), "bfloat16") for b in (512, 2048)]}
