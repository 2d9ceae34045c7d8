"""The plan of the base recipe against the paper's and the release's figures, without a weight."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe
from xtoolkit.model import Model
from xtoolkit.plan import count_parameters, make_plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def plan():
    return make_plan(recipe.load(str(ROOT / "projects/xfm/base.yaml"), missing_files=False), length=12)


def stream(plan, name):
    return next(s for s in plan.streams if s.name == name)


def test_parameters_are_the_papers(plan):
    assert plan.parameters["trainable"] == 365_898_873
    assert plan.parameters["transformer_layers"] == 283_644_864      # X-FM Table 9: 284M
    assert plan.parameters["without_output_matrix"] == 327_295_353   # X-FM Table 9: 327M
    assert sum(plan.parameters["parts"].values()) == plan.parameters["trainable"]


def test_a_pair_costs_what_the_formula_says(plan):
    """Two FLOPs a multiply-add: vision 35.13 twice with a graph, text 2.04 with and 2.04 without, fusion 5.58 + 4 x 2.47, six
    output rows of 0.0784."""
    lean = 3 * (35.13 + 35.13 + 2.04 + 5.58 + 4 * 2.47 + 6 * 0.0784) + 2.04
    assert stream(plan, "pairs").gflops == pytest.approx(lean, rel=0.01)
    assert lean == pytest.approx(267, rel=0.005)


def test_no_pass_is_wasted(plan):
    pairs = {p.name + ("x" if p.runs != 1 else ""): p for p in stream(plan, "pairs").passes}
    assert sorted(pairs) == ["fusion@mask_text", "fusionx", "sim", "text", "text@mask_text", "text_proj", "vision", "vision@mask_image",
                             "vision_proj"]
    assert pairs["vision"].readers == ["itc", "itm", "imlm", "mim"] and pairs["vision"].graph  # MIM's target is the same pass
    assert not pairs["text@mask_text"].graph                                                    # cut: nobody differentiates it
    assert pairs["fusionx"].runs == 3                                                           # one call for positives and negatives
    image = {p.name: p for p in stream(plan, "image").passes}
    assert not image["vision"].graph and image["vision@mask_image"].graph
    region = [p for p in stream(plan, "region").passes if p.name.startswith("vision")]
    assert [p.name for p in region] == ["vision", "vision_proj"]                                # one full-image pass for all losses
    assert region[0].gflops == pytest.approx(35.13 / 5, rel=0.01)                               # five regions share a picture
    keys_and_values = sum(p.gflops for p in stream(plan, "pairs").passes if p.name.startswith("fusion")) - 4 * 2.47
    assert keys_and_values == pytest.approx(5.58, rel=0.01)                                     # once an image, not four times


GUIDE = ["encoders.guide={type: BEiTv2, inputs: {image: $image}, width: 192, layers: 1, heads: 3, patch_size: 16, image_size: 96}",
         "losses.mim.target=guide"]


def test_what_no_gradient_reaches_is_frozen():
    """A teacher that is an encoder like any other; what evaluations alone read; a language encoder behind a cut."""
    def counted(*keys):
        with torch.device("meta"):
            return count_parameters(Model(recipe.load(str(ROOT / "projects/xfm/tiny.yaml"), keys, missing_files=False)))

    whole, guided = counted(), counted(*GUIDE)
    assert whole.pop("frozen") == {}
    size = guided.pop("frozen").pop("guide")
    assert 192 * 3 * 16 * 16 + 12 * 192 ** 2 < size < 192 * 3 * 16 * 16 + 13 * 192 ** 2
    assert guided["parts"].pop("guide") == 0 and guided == whole
    cut = counted("losses.mlm=null", "losses.itc=null", "losses.itm=null", "streams.text=null", "streams.pairs=null",
                  "evaluate.retrieval.match=null", "evaluate.pointing=null", "evaluate.matching=null", "schedule.every=null")
    assert cut["frozen"].keys() == {"text", "vision_proj", "text_proj", "sim"}, "all but the first are read by retrieval"


def test_a_similarity_of_encoders_without_projections():
    inputs = ["encoders.sim.inputs={image: vision, text: text}", "optim.lr_mult={fusion: 0.5}"]
    made = make_plan(recipe.load(str(ROOT / "projects/xfm/tiny.yaml"), inputs, missing_files=False))
    assert made.left_out == ["vision_proj", "text_proj"] and all(s.unknown is None for s in made.streams)


def test_cut_edges_show(plan):
    text = str(plan)
    assert "stop gradient: text -> fusion for bbp, imlm, itm" in text
    assert text.count("cut: text -> fusion") == 5


def test_the_tool_prints_json_and_takes_overrides():
    done = subprocess.run([sys.executable, "tools/plan.py", "--config", "projects/xfm/base.yaml", "--json", "encoders.vision.layers=1",
                           "encoders.text.layers=1", "encoders.fusion.layers=1",
                           "encoders.text.vocab_size=1000", "losses.mim=null", "stop_gradient=null"],
                          capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["idle"] == ["image"] and found["cuts"] == {}
    assert all(p["graph"] for s in found["streams"] for p in s["passes"] if p["name"] == "text@mask_text")
