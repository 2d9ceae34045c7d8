"""The benchmarks of training and data: what is counted, how it adds up, and that base.yaml needs no file."""

import importlib
import json
import time
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.model import Model
from xtoolkit.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
BASE = str(ROOT / "projects/xfm/base.yaml")
# base.yaml with every part of it, small enough for a test.
SMALL = ["encoders.vision.width=32", "encoders.vision.layers=1", "encoders.vision.heads=2",
         "encoders.vision.image_size=32", "encoders.text.width=32", "encoders.text.layers=1", "encoders.text.heads=2",
         "encoders.text.vocab_size=4000",
         "encoders.fusion.layers=1", "encoders.fusion.heads=2", "streams.image.data.image_mask.patches=2",
         "streams.image.data.image_mask.min_block=1", "streams.pairs.data.image_mask.patches=2",
         "streams.pairs.data.image_mask.min_block=1", "streams.text.data.max_tokens=12", "train.device=cpu"]


@pytest.fixture(scope="module")
def tool():
    return {name: importlib.import_module("xtoolkit.cli." + (name if name == "benchmark" else f"benchmarks.{name}"))
            for name in ("benchmark", "setting", "step", "train", "products", "data")}


def options(tool, *argv):
    import argparse
    parser = argparse.ArgumentParser()
    tool["setting"].add_arguments(parser)
    return parser.parse_args(["--config", BASE, *argv])


@pytest.fixture(scope="module")
def small(tool):
    return tool["setting"].read_recipe(options(tool, "--synthetic", *SMALL))


@pytest.fixture(scope="module")
def found(tool, tmp_path_factory):
    """One run of the tool over all four streams, with everything it can measure."""
    out = tmp_path_factory.mktemp("benchmark") / "train.json"
    assert tool["benchmark"].main(["train", "--config", BASE, "--synthetic", "--sizes", "4", "6", "--repeats", "1",
                                   "--operators", "3", "--json", str(out), *SMALL]) == 0
    return json.loads(out.read_text())


def test_made_up_data_keeps_fields_masks_and_lengths_and_asks_for_no_file(tool, small):
    blocks = {name: stream.data for name, stream in small.streams.items()}
    assert small.tokenizer.startswith("sample://") and not small.evaluate
    assert {name: b["type"] for name, b in blocks.items()} == {
        "text": "SyntheticText", "image": "SyntheticImages", "pairs": "SyntheticPairs", "region": "SyntheticRegions"}
    assert blocks["text"]["tokens"] == 12 and (blocks["pairs"]["min_tokens"], blocks["pairs"]["tokens"]) == (8, 16)
    assert blocks["pairs"]["mask"]["prob"] == 0.5 and blocks["region"]["max_per_image"] == 5
    assert "image_mask" not in blocks["region"] and blocks["image"]["image_mask"]["patches"] == 2


def test_every_stream_and_precision_is_measured_and_adds_up(found):
    assert set(found["streams"]) == {"text", "image", "pairs", "region"}
    for figures in found["streams"].values():
        for precision in ("bf16", "fp32"):
            part = figures[precision]
            seconds = {p["part"]: p["seconds"] for p in part["parts"]}
            assert all(s >= 0 for s in seconds.values())
            assert sum(seconds.values()) == pytest.approx(part["steps"][0]["step_s"], rel=0.5)
            gflops = sum(p["gflops"] for p in part["parts"])
            assert gflops == pytest.approx(figures["sizes"][0]["gflops"])
            for row, size in zip(part["steps"], figures["sizes"]):
                assert row["gflops_per_s"] == pytest.approx(size["gflops"] / row["forward_backward_s"])
                assert row["of_matmul"] == pytest.approx(row["gflops_per_s"] / found["matmul_gflops_per_s"][precision])
                assert 1e8 < row["peak_bytes"] < 1e11 and row["cpu_s"] > 0
            assert len(part["operators"]) == 3
    parts = [p["part"] for p in found["streams"]["pairs"]["bf16"]["parts"]]
    assert {"data", "forward vision", "forward text", "forward fusion", "backward", "optimizer"} <= set(parts)


def test_the_table_names_what_was_reached(tool, found):
    text = tool["train"].as_text(found)
    assert "stream pairs: itc + itm + imlm + mim; 4 rows (mean length" in text
    assert text.count("one row more") == 8 and text.count("forward fusion") == 4 and "matrix product 2048" in text


def test_useful_gflops_are_the_plans_and_padding_is_free(tool):
    """Texts of one length: exactly the plan's count. Longer ones that only pad: no more."""
    from xtoolkit.data.loader import Loader
    from xtoolkit.engine.run import Run

    made_up = tool["setting"].made_up(recipes.load(BASE, SMALL, missing_files=False))
    even = recipes.load(BASE, [*SMALL, "evaluate=null", *made_up, "streams.pairs.data.min_tokens=null",
                               "streams.pairs.data.tokens=12"], missing_files=False)
    plan = {s.name: s for s in make_plan(even, 12).streams}
    with torch.device("meta"):
        shapes = Model(even)
    batch = Loader("pairs", Run(even, init=False).loaders["pairs"].dataset, 4, 0, 0).at(0)
    forward, gflops, mean = tool["step"].useful_gflops(shapes, "pairs", batch)
    assert mean == 12
    passes, heads = plan["pairs"].passes, plan["pairs"].head_gflops
    for encoder in ("vision", "text", "fusion", "sim"):
        planned = 4 * sum(p.gflops for p in passes if p.name.partition("@")[0] == encoder)
        assert forward[encoder] == pytest.approx(planned, rel=1e-9), encoder
    # The plan takes half of 12 tokens for masked, the loader half of the 10 that are no specials.
    assert forward[""] == pytest.approx(4 * heads * 5 / 6, rel=0.03)
    assert gflops == pytest.approx(4 * plan["pairs"].gflops - 3 * (4 * heads - forward[""]), rel=1e-9)
    pad = lambda t, value: torch.nn.functional.pad(t, (0, 9), value=value)
    text = batch.text
    padded = type(text)(pad(text.ids, 1), pad(text.mask, False), text.key, pad(text.masked_ids, 1), text.masked_pos,
                        text.labels)
    again = tool["step"].useful_gflops(shapes, "pairs", batch.with_fields(text=padded))
    assert again[1] == gflops and again[2] == 12
    half = text.mask.clone()
    half[:2, 11] = False
    shorter = type(text)(text.ids, half, text.key, text.masked_ids, text.masked_pos, text.labels)
    between = tool["step"].useful_gflops(shapes, "pairs", batch.with_fields(text=shorter))
    assert between[2] == 11.5 and between[1] < gflops


def test_what_one_row_more_costs_leaves_fixed_costs_out(tool):
    """A step of 1 s plus 0.5 s a row; three rounds of which the median counts."""
    Step = tool["step"].Step
    take = lambda rows, more: Step(0.1, 0.2 + 0.2 * rows + more, {"vision": 0.15}, 0.8 + 0.3 * rows, 0.5, 2.0 * rows, 7)
    steps = [[take(rows, more) for more in (0.3, 0, -0.2)] for rows in (8, 16)]
    counts = [({"vision": 10.0, "": 1.0}, 100.0 * rows, 12.0) for rows in (8, 16)]
    figures = tool["train"]._of_precision(steps, (8, 16), counts, 1000.0)
    assert figures["steps"][0]["forward_backward_s"] == pytest.approx(5.0)
    assert figures["marginal"]["forward_backward_s"] == pytest.approx(0.5)
    assert figures["marginal"]["gflops_per_s"] == pytest.approx(200)
    assert figures["marginal"]["of_matmul"] == pytest.approx(0.2)
    assert figures["steps"][1]["gflops_per_s"] == pytest.approx(1600 / 9)
    backward = next(p for p in figures["parts"] if p["part"] == "backward")
    assert backward == {"part": "backward", "seconds": pytest.approx(3.2), "gflops": pytest.approx(789)}


class Slow:
    """A loader whose batches take a while, as one without workers."""

    wait_s, closed = 0.0, False

    def at(self, visit):
        time.sleep(0.02)
        self.wait_s += 0.02

    def close(self):
        self.closed = True


def test_the_share_of_waiting(tool):
    loader = Slow()
    share, seconds = tool["data"].wait(loader, "pairs", 5, lambda stream, batch: time.sleep(0.02))
    assert 0.1 < share < 0.9 and seconds > 0.04 and loader.closed


def test_data_is_measured_by_workers(tool, tmp_path, capsys):
    out = tmp_path / "data.json"
    argv = ["data", "--config", BASE, "--synthetic", "--stream", "pairs", "--workers", "0", "1", "--batches", "3",
            "--steps", "2", "--json", str(out), "streams.*.batch_size=4", *SMALL]
    assert tool["benchmark"].main(argv) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(r["stream"], r["workers"], r["batch_size"]) for r in rows] == [("pairs", 0, 4), ("pairs", 1, 4)]
    assert all(r["samples_per_s"] > 0 and 0 <= r["waiting"] <= 1 and r["step_s"] > 0 for r in rows)
    assert "of it waiting" in capsys.readouterr().out
    assert tool["benchmark"].main([*argv, "--step-seconds", "0.01"]) == 0


@pytest.mark.parametrize("kind, argv, said", [
    ("train", ["--stream", "pair"], "did you mean `pairs`?"),
    ("train", ["--sizes", "8", "8"], "A must be at least 2 and below B"),
    ("train", ["encoders.vision.widht=3"], "did you mean `width`?"),
    ("data", ["--workers", "-1"], "must be 0 or more"),
    ("data", [], "data/roberta"),
])
def test_mistakes_are_answered(tool, kind, argv, said, capsys):
    made_up = ["--synthetic"] if said != "data/roberta" else ["tokenizer=sample://picturebook/tokenizer"]
    assert tool["benchmark"].main([kind, "--config", BASE, *made_up, *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("width, out", [(32, 16), (16, 32)])
def test_products_are_those_of_a_linear_layer(tool, width, out):
    """Beside autograd's own, in float64."""
    x, layer, g = torch.randn(24, width).double(), torch.nn.Linear(width, out, bias=False).double(), torch.randn(24, out)
    x.requires_grad_()
    y = layer(x)
    y.backward(g.double())
    forward, of_input, of_weight, turned = (way() for way in tool["products"]._ways(x.detach(), layer.weight.detach(),
                                                                                    g.double()))
    for ours, theirs in ((forward, y), (of_input, x.grad), (of_weight, layer.weight.grad), (turned, layer.weight.grad)):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_products_are_timed_by_shape(tool, monkeypatch, capsys):
    for name, value in {"TOKENS": (256,), "LAYERS": ((256, 128), (128, 256)), "SIDE": 256}.items():
        monkeypatch.setattr(tool["products"], name, value)
    assert tool["benchmark"].main(["products", "--precision", "fp32", "--repeats", "2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:3] for row in rows] == [["256", "256", "128"], ["256", "128", "256"]]
    assert all(float(rate.replace(",", "")) > 0 for row in rows for rate in row[3:])
    assert tool["benchmark"].main(["products", "--repeats", "0"]) == 2


def test_a_change_of_the_recipe_may_stand_behind_an_option_of_several_words(tool, capsys):
    command = ["train", "--config", BASE, "--synthetic", "--sizes", "4", "6", "--precision", "bf16", "train.bogus=1"]
    assert tool["benchmark"].main(command) == 2
    assert "unknown key `bogus` of Train" in capsys.readouterr().err
