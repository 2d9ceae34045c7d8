"""tools/benchmark.py kernels: a wrong kernel is found, no figure is invented, what it prints is what it measured."""

import contextlib
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from xtoolkit.cli import benchmark
from xtoolkit.cli.benchmarks import clocks, kernels, measure, operations, report, targets
from xtoolkit.cli.benchmarks.operations import COMPILED, EAGER, KERNEL, RELEASED, Case

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def run(*arguments):
    return benchmark.main(["kernels", "--device", "cpu", "--quick", *map(str, arguments)])


# ---- the whole run ---------------------------------------------------------------------------------------------------
def test_a_run_on_a_cpu(tmp_path, capsys):
    page, data = tmp_path / "new" / "page.md", tmp_path / "figures.json"
    assert run("--markdown", page, "--json", data) == 0
    printed, written = capsys.readouterr().out, json.loads(data.read_text())
    assert page.read_text().count("<!-- begin") == 4
    for name in ("box_loss", "masked_mse"):
        rows = [r for r in written["rows"] if r["operation"] == name]
        assert {r["way"] for r in rows} >= {EAGER, RELEASED} and {r["pass_"] for r in rows} == set(operations.PASSES)
        assert all(r["way"] != KERNEL for r in rows), "an interpreted kernel has no time"
        walls = [r["times"]["wall"] for r in rows]
        assert all(0 < wall["p20"] <= wall["median"] <= wall["p80"] for wall in walls)
        assert all(r["ratios"]["wall"] == 1 for r in rows if r["way"] == EAGER)
        checked = [e for e in written["errors"] if e["operation"] == name and e["way"] == KERNEL]
        assert {e["dtype"] for e in checked} == set(operations.DTYPES) and all(e["ok"] for e in checked)
        cpu, gpu = (printed.split(f"## {device} {name}\n")[1].split("\n## ")[0] for device in ("cpu", "cuda"))
        assert cpu.strip() in page.read_text() and gpu.strip() in page.read_text()
        assert "interpreter" in cpu and "torch: " in cpu and "GB/s" in cpu
        assert report.UNMEASURED in gpu and "reduce-overhead" in gpu and " us |" not in gpu
        assert "| unmeasured |" in gpu and "met |" not in gpu
    assert written["targets"] == []


def scaled(operation, loss=1.0, gradient=1.0):
    """The reference with its losses and its gradient off by factors."""
    module = importlib.import_module(f"xtoolkit.kernels.{operation}")

    def wrong(*args):
        found = module.reference(*args)
        found = found if isinstance(found, tuple) else (found,)
        found = tuple(loss * f.detach() + gradient * (f - f.detach()) for f in found)
        return found if len(found) > 1 else found[0]
    return module, wrong


@pytest.mark.parametrize("operation, off, words", [
    ("masked_mse", {"loss": 1 + 1e-5}, r"masked_mse 2 x 31 x 17 float32, kernel: error of the loss 1.0e-05"),
    ("masked_mse", {"loss": float("nan")}, r"masked_mse 2 x 31 x 17 bfloat16, kernel: error of the loss nan"),
    ("box_loss", {"gradient": 1 + 1e-5}, r"box_loss 513 float32, kernel: .* of the gradient 1.0e-05: out of tolerance"),
])
def test_a_wrong_kernel_is_an_error(monkeypatch, capsys, operation, off, words):
    module, wrong = scaled(operation, **off)
    monkeypatch.setattr(module, "fused", wrong)
    assert run("--operation", operation) == 1
    out, err = capsys.readouterr()
    assert any(re.search(words, line) for line in err.splitlines()), err
    assert "TOO LARGE" in out


def test_a_page_without_a_place_is_refused_before_anything_is_measured(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Ours\n")
    assert run("--markdown", page) == 2
    out, err = capsys.readouterr()
    assert "has no lines `<!-- begin cpu box_loss -->`" in err and out == "" and page.read_text() == "# Ours\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert run("--device", "cuda") == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_an_interpreted_kernel_is_never_timed_on_a_gpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it, or add --device cpu" in kernels.no_gpu(available=True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert kernels.no_gpu(available=True) is None


def test_help_answers_without_torch():
    code = ("import runpy, sys; sys.argv = ['benchmark.py', 'kernels', '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as e: print(e.code, 'torch' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", code], cwd=TOOLS, capture_output=True, text=True, check=True).stdout
    assert "--markdown" in found and found.splitlines()[-1] == "0 False"


# ---- what is measured ------------------------------------------------------------------------------------------------
def test_floor_bytes_by_hand():
    box, mse = operations.BoxLoss(), operations.MaskedMSE()
    # A box is 4 numbers: two boxes read, then two read and a gradient written.
    assert box.floor_bytes(Case((1000,))) == {"forward": 32_000, "backward": 48_000, "both": 80_000}
    assert box.floor_bytes(Case((1000,), "bfloat16"))["both"] == 40_000
    rows, dense = 2 * 96 * 75 * 768 * 2, 96 * 196 * 768 * 2
    assert mse.floor_bytes(Case((96, 196, 768), "bfloat16")) == {
        "forward": rows, "backward": rows + dense, "both": 2 * rows + dense}
    assert rows / 4.3e6 == pytest.approx(5.1, abs=0.05) and (rows + dense) / 4.3e6 == pytest.approx(11.9, abs=0.05)


def test_percentiles_of_samples():
    assert clocks.Stats.of([11, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == clocks.Stats(6, 3, 9, 11)
    assert clocks.Stats.of([1.0, 2.0]) == clocks.Stats(1.5, pytest.approx(1.2), pytest.approx(1.8), 2)


@pytest.mark.parametrize("dtype", list(operations.DTYPES))
def test_no_edges_of_the_boxes_nearly_coincide(dtype):
    op = operations.BoxLoss()
    pred, target, valid = op.arguments(Case((20_000,), dtype, some=True), torch.Generator().manual_seed(3))
    assert pred.dtype == operations.DTYPES[dtype] and valid.any() and not valid.all()
    a, b = (operations.corners(x.double()) for x in (pred, target))
    for i, j in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1), (1, 3), (3, 1), (3, 3)):
        gap = (a[:, i] - b[:, j]).abs()
        assert not ((gap > 0) & (gap < 1e-5)).any()
    assert (a[:, :2] > 0).all() and (a[:, 2:] < 1).all()


def test_tokens_are_a_slice_with_75_in_196_masked():
    pred, target, mask = operations.MaskedMSE().arguments(Case((3, 196, 8)), torch.Generator().manual_seed(0))
    assert (mask.sum(1) == 75).all() and pred.shape == (3, 196, 8) and pred.stride() == (197 * 8, 8, 1)
    assert not torch.equal(pred, target)


@pytest.mark.parametrize("name, case", [("box_loss", Case((64,))), ("masked_mse", Case((2, 9, 5)))])
def test_every_way_computes_the_same(name, case):
    op, result = operations.OPERATIONS[name](), measure.Result()
    found = measure.check(op, case, op.ways(case, kernel=True, compiled=()), op.inputs(case, "cpu"), result)
    assert list(found)[:2] == [KERNEL, EAGER] and RELEASED in found and result.notes == []
    assert all(e.loss < 1e-5 and e.gradient < 1e-5 for e in found.values())
    assert [e.held for e in found.values()] == [True, True] + [False] * (len(found) - 2)


def test_float16_gradients_are_scaled_into_its_range():
    op, case = operations.MaskedMSE(), Case((2, 196, 768), "float16")
    x = op.inputs(case, "cpu")
    gradient = measure.both(lambda *args: (op.module.reference(*args),), x)
    assert gradient.abs().max() > 0.1 and gradient.isfinite().all()


def test_a_way_of_others_that_cannot_run_is_a_note_and_ours_is_not():
    op, case, result = operations.MaskedMSE(), Case((1, 4, 3)), measure.Result()

    def broken(*args):
        raise RuntimeError("no compiler\nsecond line")
    ways = op.ways(case, kernel=False, compiled=()) | {COMPILED: operations.Way(broken)}
    assert COMPILED not in measure.check(op, case, ways, op.inputs(case, "cpu"), result)
    assert result.notes == ["masked_mse 1 x 4 x 3 float32, torch.compile: cannot run: no compiler"]
    with pytest.raises(RuntimeError, match="no compiler"):
        measure.check(op, case, ways | {EAGER: operations.Way(broken)}, op.inputs(case, "cpu"), result)


# ---- the clocks ------------------------------------------------------------------------------------------------------
def test_slow_calls_are_sampled_less_and_in_turn_with_the_others():
    order = []
    calls = {"slow": clocks.Call(lambda _: (order.append("slow"), time.sleep(0.004))),
             "fast": clocks.Call(lambda given: order.append(given), prepare=lambda: "fast")}
    found = clocks.HostClock(budget=0.012, least=2, most=6).times(calls)
    assert found["fast"]["wall"].reps == 6 and 2 <= found["slow"]["wall"].reps <= 3
    assert found["slow"]["wall"].p20 >= 4000 and order[2:6] == ["slow", "fast"] * 2


class FakeCuda:
    """Just enough of torch.cuda to run CudaClock's code where there is no GPU; an event's time is its number."""

    def __init__(self):
        self.log, self.events = [], 0
        self.Event, self.Stream, self.CUDAGraph, self.stream = self.event, self.a_stream, self.a_graph, self.on_stream

    def event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None, synchronize=lambda: None)

        def record():
            self.events += 1
            event.at = self.events
        event.record, event.elapsed_time = record, lambda end: 0.001 * (end.at - event.at)
        return event

    def a_stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = a_stream

    def a_graph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def on_stream(self, stream):
        yield

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.log.append("capture")
        yield
        self.log.append("captured")

    def synchronize(self):
        pass

    def current_device(self):
        return 0

    def get_device_properties(self, device):
        return SimpleNamespace(L2_cache_size=1 << 20)


@pytest.fixture
def cuda_clock(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(clocks, "torch", SimpleNamespace(cuda=fake, int8=torch.int8,
                                                         empty=lambda size, **how: torch.empty(8, **how)))
    monkeypatch.setattr(clocks.CudaClock, "device", "cpu")
    monkeypatch.setattr(clocks.CudaClock, "REPS", 6)
    monkeypatch.setattr(clocks.CudaClock, "LEAST", 4)
    clock = clocks.CudaClock()
    clock.fake = fake
    return clock


def test_the_gpu_clock_takes_three_kinds_of_time(cuda_clock):
    log = cuda_clock.fake.log
    sets = (lambda: log.append("a"), lambda: log.append("b"))
    calls = {"step": clocks.Call(lambda _: log.append("run"), rotated=sets),
             "backward": clocks.Call(lambda given: log.append(given), prepare=lambda: "given"),
             "syncs": clocks.Call(lambda _: log.append("asks"))}
    found = cuda_clock.times(calls)
    assert {name: set(kinds) for name, kinds in found.items()} == {
        "step": {"event", "wall", "replay"}, "backward": {"event"}, "syncs": {"event", "wall"}}
    assert found["step"]["event"] == clocks.Stats(1, 1, 1, 6) and log[:6] == ["run", "given", "asks"] * 2
    assert log.count("run") == 6 + 10 * found["step"]["wall"].reps
    captured = log[log.index("capture") + 1:log.index("captured")]
    assert captured == ["a", "b"] * 8, "every set of inputs in turn"
    assert found["step"]["replay"].median == 1 / 16 and log.count("replay") == 1 + found["step"]["replay"].reps


def test_a_way_that_no_graph_holds_is_a_note(cuda_clock):
    def asks():
        raise RuntimeError("operation not permitted when stream is capturing\n...")
    found = cuda_clock.times({"step": clocks.Call(lambda _: None, rotated=(asks,))})
    assert set(found["step"]) == {"event", "wall"}
    assert cuda_clock.notes == ["step: no CUDA graph: operation not permitted when stream is capturing"]


def test_an_operation_by_the_gpu_clock_reaches_targets_and_tables(cuda_clock, monkeypatch):
    """The path that only a GPU takes, its device apart."""
    op, case, result = operations.BoxLoss(), Case((50,)), measure.Result()
    sets = measure.input_sets(op, case, "cpu", cache_bytes=6 * 400)
    assert len(sets) == 3 and not torch.equal(sets[0].args[0], sets[1].args[0]), "two boxes of 50 are 1,600 bytes"
    ways = op.ways(case, kernel=False, compiled=())
    ways[KERNEL] = ways[EAGER]  # the interpreter would take its time
    measure.time(op, case, ways, sets, measure.check(op, case, ways, sets[0], result), cuda_clock, 4e12, result)
    reached = {str(a.target): a for a in targets.answers(result.rows) if str(a.target.case) == "50"}
    assert reached["at most 8 us (replay)"].met is True
    assert reached["at least 5x eager reference (wall)"].met is not None
    assert reached["at least 1.2x torch.compile (wall)"].met is None
    text = report.text({"device": "a GPU"}, cuda_clock, 4e12, result, KERNEL, list(reached.values()))
    assert "replay us, x kernel" in text and "| met" in text and "| unmeasured" in text


# ---- targets and pages -----------------------------------------------------------------------------------------------
def row(way, size="1,000,000", dtype="float32", operation="box_loss", peak=None, floor=10.0, **medians):
    times = {kind: clocks.Stats(m, m, m, 200) for kind, m in medians.items()}
    ratios = {kind: m / 20 for kind, m in medians.items()}
    return measure.Row(operation, size, dtype, "both", way, times, ratios, floor, 0.0, peak)


def test_targets_are_held_against_the_rows():
    rows = [row(KERNEL, replay=20.0, event=25.0, peak=17 << 20), row(EAGER, replay=200.0), row(COMPILED, replay=19.0)]
    found = {str(a.target): a for a in targets.answers(rows) if str(a.target.case) == "1,000,000"}
    assert {text: a.met for text, a in found.items()} == {
        "at least 10x eager reference (replay)": True, "at least 1x torch.compile (replay)": False,
        "at least 55% of the copy rate": False, "at most 16.26 MB beyond its inputs": False}
    assert [a.figure for a in found.values()] == ["10.00x", "0.95x", "50%", "17.00 MB"]
    others = [a for a in targets.answers(rows) if str(a.target.case) != "1,000,000"]
    assert others and all(a.met is None and a.figure == "" for a in others)


def test_the_share_of_the_floor_is_of_the_time_nearest_to_the_device():
    assert row(KERNEL, wall=100.0, event=50.0, replay=20.0).share == 0.5
    assert row(KERNEL, wall=100.0, event=50.0).share == 0.2


def test_what_is_compiled_on_a_cpu_is_timed_there():
    timed = {(str(case), case.dtype) for cases in kernels.timed_cases("cpu").values() for case in cases}
    assert kernels.COMPILED_ON_A_CPU <= timed


def test_every_target_is_of_a_case_that_is_timed():
    timed = {(name, case) for name, cases in kernels.timed_cases("cuda").items() for case in cases}
    assert {(t.operation, t.case) for t in targets.targets()} <= timed


def test_a_run_replaces_its_own_part_of_a_page_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- begin cpu x -->\nold\n<!-- end cpu x -->\n\nwords\n\n"
                    "<!-- begin cuda x -->\n| 1.0 |\n<!-- end cuda x -->\nend\n")
    report.Page(page, ["cpu x", "cuda x"]).write({"cpu x": "new", "cuda x": f"{report.UNMEASURED} Run it."})
    assert page.read_text() == ("# Title\n\n<!-- begin cpu x -->\n\nnew\n\n<!-- end cpu x -->\n\nwords\n\n"
                                "<!-- begin cuda x -->\n| 1.0 |\n<!-- end cuda x -->\nend\n")
    report.Page(page, ["cuda x"]).write({"cuda x": "| 2.0 |"})
    assert "| 2.0 |" in page.read_text() and "| 1.0 |" not in page.read_text()


def test_a_table_leaves_out_columns_that_are_empty():
    assert report.table(["a", "b", "c"], [["1", "", "x"], ["22", "", "y"]]) == (
        "| a  | c |\n|----|---|\n| 1  | x |\n| 22 | y |")
