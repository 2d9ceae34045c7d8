"""Identity of passes: which losses share one, which cuts separate them, which run without a graph. No weights anywhere."""

import subprocess
import sys

import pytest

from xtoolkit.batch import ImageField, RegionField, TextField
from xtoolkit.graph import EncoderSpec, Graph, Need

PARTS = {
    "vision": {"image": "$image"}, "text": {"text": "$text"}, "fusion": {"text": "text", "image": "vision"},
    "vision_proj": {"x": "vision"}, "text_proj": {"x": "text"}, "sim": {"image": "vision_proj", "text": "text_proj"},
}
LOSSES = {
    "itc": [Need("sim")],
    "itm": [Need("fusion", runs=3), Need("sim", grad=False)],
    "imlm": [Need("fusion@mask_text")],
    "mim": [Need("vision@mask_image"), Need("vision", grad=False)],
    "bbp": [Need("fusion@whole")],
    "mlm": [Need("text@mask_text", head="lm_logits")],
}
ALL = frozenset({"itm", "imlm", "bbp"})
FIELDS = {"text": TextField, "image": ImageField, "region": RegionField}
PAIRS, REGION = frozenset({"text", "image"}), frozenset(FIELDS)


def graph(cuts=ALL, frozen=()):
    specs = {n: EncoderSpec(n, i, trainable=n not in frozen, pools="image" if n == "vision" else None) for n, i in PARTS.items()}
    return Graph(specs, FIELDS, {("text", "fusion"): frozenset(cuts)})


def table(g, losses, fields=PAIRS):
    return {(p.node.label, p.run and p.run[0]): (p.graph, p.readers, p.cuts)
            for p in g.passes({n: LOSSES[n] for n in losses}, fields)}


def test_masking_what_an_encoder_never_sees_changes_nothing():
    g = graph()
    assert g.node("vision@mask_text", "itc", PAIRS) is not None
    assert g.node("vision@mask_text", "itc", PAIRS) == g.node("vision", "mim", PAIRS)
    assert g.node("text@mask_text", "itc", PAIRS) != g.node("text", "itc", PAIRS)
    assert g.node("text@whole", "itc", REGION) == g.node("text", "itc", REGION)


def test_pairs_run_each_pass_once():
    passes = table(graph(), ["itc", "itm", "imlm", "mim"])
    assert passes[("vision", None)][:2] == (True, ["itc", "itm", "imlm", "mim"])
    assert passes[("vision@mask_image", None)] == (True, ["mim"], [])
    assert passes[("text", None)][0] is True                       # ITC differentiates it, ITM only reads it
    assert passes[("text@mask_text", None)] == (False, ["imlm"], [])  # nobody differentiates the masked text pass
    assert passes[("fusion@mask_text", None)] == (True, ["imlm"], ["text -> fusion"])
    assert passes[("fusion", "itm")] == (True, ["itm"], ["text -> fusion"])
    assert len(passes) == 9


def test_the_mim_target_has_no_graph_on_the_image_stream():
    assert table(graph(), ["mim"]) == {("vision", None): (False, ["mim"], []), ("vision@mask_image", None): (True, ["mim"], [])}


def test_without_stops_the_masked_text_pass_has_a_graph():
    passes = table(graph(cuts=()), ["itc", "itm", "imlm"])
    assert passes[("text@mask_text", None)][0] is True
    assert passes[("fusion@mask_text", None)][2] == []


def test_losses_that_disagree_about_a_cut_get_passes_of_their_own():
    g = graph(cuts={"a"})
    assert g.node("fusion", "a", PAIRS) != g.node("fusion", "b", PAIRS)
    assert g.node("vision", "a", PAIRS) == g.node("vision", "b", PAIRS)
    both = g.passes({"a": [Need("fusion")], "b": [Need("fusion")]}, PAIRS)
    assert sum(p.node.encoder == "fusion" for p in both) == 2
    same = graph(cuts={"a", "b"}).passes({"a": [Need("fusion")], "b": [Need("fusion")]}, PAIRS)
    assert sum(p.node.encoder == "fusion" for p in same) == 1


def test_a_cut_where_no_gradient_flows_separates_nothing():
    g = graph(cuts={"a"}, frozen={"text"})
    assert g.node("fusion", "a", PAIRS) == g.node("fusion", "b", PAIRS)


def test_regions_share_the_full_image_pass():
    g = graph()
    region, whole = g.node("vision", "itc", REGION), g.node("vision@whole", "bbp", REGION)
    assert region != whole and region.base == whole.base
    assert g.node("vision@whole", "bbp", PAIRS) == g.node("vision", "itc", PAIRS)  # identity outside a region stream
    passes = table(g, ["itc", "itm", "imlm", "bbp"], REGION)
    assert [label for label, _ in passes].count("vision") == 1
    assert passes[("vision", None)][1] == ["itc", "itm", "imlm", "bbp"]
    assert ("fusion@whole", None) in passes


def test_a_runs_inputs_have_a_graph_only_where_they_are_not_cut():
    passes = table(graph(cuts={"itm"}), ["itm"])
    assert passes[("text", None)][0] is False and passes[("vision", None)][0] is True


def test_below_and_fields():
    g = graph()
    assert g.below(["fusion"]) == ["text", "vision", "fusion"]
    assert g.sources("sim") == {"image", "text"} and g.sources("$region") == {"region"}


def test_the_graph_needs_no_torch():
    code = "import sys, xtoolkit.graph, xtoolkit.recipe.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("weight_ref", ["vision", "vision@mask_image"])
def test_labels_read_back(weight_ref):
    assert graph().node(weight_ref, None, PAIRS).label == weight_ref
