"""Attention with BEiT's relative position bias and its gradient: written out, by SDPA, and by FlexAttention.

Every way is first held against float64: output, and the gradients of queries, keys, values and of the bias table. Then
those that give them all are timed, forward + backward, in turns; the time is that of the process (on a GPU, between two
events), the least of several. What cannot run says why in its row. Without a GPU the GPU's rows are unmeasured.
"""

import argparse
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HELP = "attention with a learned position bias: written out, SDPA, FlexAttention"
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=None, help="images (default: 96 on a GPU, 4 on a CPU)")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--grid", type=int, default=14, help="patches a side (default: %(default)s, so 197 tokens)")
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=("bf16", "fp32"), choices=tuple(TOLERANCE))
    parser.add_argument("--repeats", type=int, default=5, help="of which the least counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="on a CPU too, where it takes minutes")
    parser.add_argument("--device", default=None, help="default: a GPU if there is one")
    parser.add_argument("--markdown", type=Path, help="write the table here too")


def main(args: argparse.Namespace) -> int:
    """Prints a row a type and way; returns 1 if a way that runs is beyond its tolerance."""
    import torch

    torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = device.type == "cuda"
    rows = args.rows or (96 if cuda else 4)
    name = torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, {args.threads} thread"
    tokens = args.grid ** 2 + 1
    lines = [f"{name}, torch {torch.__version__}, {rows} images, {args.heads} heads of {args.head_width}, {tokens} "
             f"tokens, least of {args.repeats}, forward + backward", "",
             "| type | way | ms | of written out | peak MB | error of output | of dq, dk, dv | of the table's |",
             "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    failed = False
    for dtype in args.dtypes:
        case = _Case(rows, args.heads, args.grid, args.head_width, dtype, device)
        ways = _ways(cuda, args.compile)
        checks = {way: case.check(run) for way, run in ways.items()}
        times = {way: float("inf") for way, check in checks.items() if check.problem is None}
        for _ in range(args.repeats):
            for way in times:
                times[way] = min(times[way], case.time(ways[way]))
        for way, check in checks.items():
            if way in times:
                peak = f"{case.peak(ways[way]) / 1e6:.0f}" if cuda else ""
                cells = [f"{times[way]:.2f}", f"{times[way] / times['written out']:.2f}", peak]
            else:
                cells = [check.problem, "", ""]
            errors = (check.output, check.qkv, check.table)
            cells += ["" if e is None else f"{e:.0e}" for e in errors]
            failed |= any(e is not None and not e <= TOLERANCE[dtype] for e in errors)
            lines.append(f"| {dtype} | {way} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if not cuda:
        lines += ["", "Rows of a GPU: unmeasured."]
        print("\n".join(lines[-2:]))
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")
    return int(failed)


@dataclass(frozen=True)
class _Check:
    """Why a way does not give all gradients (None: it does), and its relative errors, None where there is no result."""

    problem: str | None
    output: float | None = None
    qkv: float | None = None
    table: float | None = None


class _Case:
    """Inputs of one type, their exact results, and how a way is run on them."""

    def __init__(self, rows, heads, grid, width, dtype, device):
        import torch

        from xtoolkit.encoders.beit import relative_position_index

        g = torch.Generator().manual_seed(0)
        tokens = grid * grid + 1
        kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        self.index = relative_position_index(grid).to(device)
        draw = lambda *shape: torch.randn(*shape, generator=g).to(device)
        self.inputs = [draw(rows, heads, tokens, width).to(kind).requires_grad_() for _ in range(3)]
        self.inputs.append(draw((2 * grid - 1) ** 2 + 3, heads).requires_grad_())  # the table is a parameter: float32
        self.upstream = draw(rows, heads, tokens, width).to(kind)
        double = [t.detach().double().requires_grad_() for t in self.inputs]
        out = written_out(*double, self.index)
        self.exact = (out.detach(), *torch.autograd.grad(out, double, self.upstream.double()))

    def step(self, way, frozen=0):
        """[output, its gradients], without those of the first ``frozen`` inputs."""
        import torch

        inputs = [t.detach() for t in self.inputs[:frozen]] + self.inputs[frozen:]
        out = way(*inputs, self.index)
        return [out, *(torch.autograd.grad(out, inputs[frozen:], self.upstream) if frozen < len(inputs) else ())]

    def check(self, way):
        """Errors of as much as the way gives: all gradients, the table's alone, or the output alone."""
        problem = None
        for frozen in (0, 3, 4):
            try:
                found = self.step(way, frozen)
            except (RuntimeError, AssertionError, ValueError) as refusal:  # whatever a backend refuses with
                problem = problem or _short(refusal)
                continue
            wanted = [self.exact[0], *self.exact[1 + frozen:]]
            each = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]
            return _Check(problem, each[0], max(each[1:4]) if frozen == 0 else None, each[-1] if frozen < 4 else None)
        return _Check(problem)

    def time(self, way):
        """Milliseconds."""
        import torch

        if self.upstream.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.step(way)
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
        start = time.process_time()
        self.step(way)
        return (time.process_time() - start) * 1e3

    def peak(self, way):
        """Bytes held at the most on a GPU, beyond the inputs."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step(way)
        return torch.cuda.max_memory_allocated() - before


def position_bias(table, index):
    """(1, h, T, T) in the table's type, as BEiTv2 makes it."""
    tokens = index.shape[0]
    return table.t().index_select(1, index.flatten()).view(1, table.shape[1], tokens, tokens)


def written_out(q, k, v, table, index):
    """The formula, in the type of q."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + position_bias(table, index).to(q.dtype)
    return scores.softmax(-1) @ v


def sdpa(q, k, v, table, index):
    """PyTorch's own with the bias as an additive mask; it chooses the backend."""
    import torch.nn.functional as F

    return F.scaled_dot_product_attention(q, k, v, attn_mask=position_bias(table, index).to(q.dtype))


def padded_sdpa(q, k, v, table, index):
    """The same with rows of the mask that start at multiples of 8 elements, as the fused kernels want them."""
    import torch.nn.functional as F

    bias = position_bias(table, index).to(q.dtype)
    bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., :bias.shape[-1]]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def flex(attend):
    """FlexAttention in two forms: the bias read from a matrix made beforehand, or from the table inside the kernel."""
    def from_matrix(q, k, v, table, index):
        bias = position_bias(table, index)[0].contiguous()
        return attend(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[h, i, j])

    def from_table(q, k, v, table, index):
        return attend(q, k, v, score_mod=lambda score, b, h, i, j: score + table[index[i, j], h])

    return {"bias matrix": from_matrix, "table": from_table}


def _ways(cuda, compiled):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import flex_attention

    ways = {"written out": written_out, "SDPA": sdpa}
    if cuda:
        for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            def only(*args, backend=backend):
                with sdpa_kernel(backend):
                    return padded_sdpa(*args)
            ways[f"SDPA, {backend.name}, padded"] = only
    ways |= {f"flex, eager, {form}": way for form, way in flex(flex_attention).items()}
    if cuda or compiled:
        fused = torch.compile(flex_attention, dynamic=False)
        ways |= {f"flex, compiled, {form}": way for form, way in flex(fused).items()}
    return ways


def _short(problem):
    words = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {words[0] if words else ''}".replace("|", "/")[:160]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
