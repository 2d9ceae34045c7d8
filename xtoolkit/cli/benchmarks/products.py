"""The three matrix products of a linear layer, by shape: what a training step could reach at best.

A layer of (in, out) channels over M tokens makes x W^T forward, and g W and g^T x backward; M x in x out multiply-adds each.
The last reads its first factor across the rows, which libraries are slower at: "transposed first" copies the narrower factor
so that it need not. Ways take turns; the median of the rounds counts, each beside a square product of the same round.
"""

import statistics
import sys
import time

HELP = "the products of linear layers by shape: forward, gradients of input and weight"
LAYERS = ((768, 768), (768, 2304), (768, 3072), (3072, 768))
TOKENS = (136, 408, 1576, 3152)  # 8 captions; 24 for matching; 8 and 16 pictures of 197 tokens
SIDE = 2048  # of the square product


def add_arguments(parser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="default: bf16")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="rounds that count (default: 7)")


def main(args) -> int:
    """Measures and prints; returns 0, or 2 for options that cannot be."""
    if args.repeats < 1:
        print("--repeats: at least 1", file=sys.stderr)
        return 2
    import torch

    from xtoolkit.report.tables import aligned

    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    table = [["tokens", "in", "out", "x W^T", "g W", "g^T x", "g^T x, transposed first", f"{SIDE} cubed"]]
    for tokens in TOKENS:
        for width, out in LAYERS:
            rates = _rates(tokens, width, out, dtype, args.repeats)
            table.append([str(tokens), str(width), str(out), *(f"{rate:,.0f}" for rate in rates)])
    print(f"GFLOP/s, {args.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(aligned(table))
    return 0


def _ways(x, w, g) -> list:
    """Forward, gradient of the input, gradient of the weight, the same with its narrower factor transposed first."""
    if g.shape[1] <= x.shape[1]:
        turned = lambda: g.t().contiguous() @ x
    else:
        turned = lambda: (x.t().contiguous() @ g).t()
    return [lambda: x @ w.t(), lambda: g @ w, lambda: g.t() @ x, turned]


def _rates(tokens, width, out, dtype, repeats) -> list[float]:
    import torch

    draw = lambda *shape: torch.randn(*shape).to(dtype)
    a, b = draw(SIDE, SIDE), draw(SIDE, SIDE)
    ways = [(way, 2e-9 * tokens * width * out) for way in _ways(draw(tokens, width), draw(out, width), draw(tokens, out))]
    ways.append((lambda: a @ b, 2e-9 * SIDE**3))
    seconds = [[] for _ in ways]
    for _ in range(repeats + 1):
        for spans, (way, _) in zip(seconds, ways):
            began = time.perf_counter()
            for _ in range(3):
                way()
            spans.append((time.perf_counter() - began) / 3)
    return [gflops / statistics.median(spans[1:]) for spans, (_, gflops) in zip(seconds, ways)]
