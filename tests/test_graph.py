"""Identity of passes: which losses share one, which cuts separate them, which run without a graph. No weights anywhere."""

import subprocess
import sys

import pytest

from xtoolkit.graph import EncoderSpec, Graph, Need

XFM = {
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


def graph(cuts=ALL, frozen=()):
    return Graph({n: EncoderSpec(n, i, n not in frozen) for n, i in XFM.items()}, {("text", "fusion"): frozenset(cuts)})


def table(g, losses, regions=False):
    return {(p.node.label, p.by_run): (p.graph, p.readers, p.cuts)
            for p in g.passes({n: LOSSES[n] for n in losses}, regions)}


def test_masking_what_an_encoder_never_sees_changes_nothing():
    g = graph()
    assert g.node("vision@mask_text", "itc", False) is not None
    assert g.node("vision@mask_text", "itc", False) == g.node("vision", "mim", False)
    assert g.node("text@mask_text", "itc", False) != g.node("text", "itc", False)
    assert g.node("text@whole", "itc", True) == g.node("text", "itc", True)


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
    assert g.node("fusion", "a", False) != g.node("fusion", "b", False)
    assert g.node("vision", "a", False) == g.node("vision", "b", False)
    both = g.passes({"a": [Need("fusion")], "b": [Need("fusion")]}, False)
    assert sum(p.node.encoder == "fusion" for p in both) == 2
    same = graph(cuts={"a", "b"}).passes({"a": [Need("fusion")], "b": [Need("fusion")]}, False)
    assert sum(p.node.encoder == "fusion" for p in same) == 1


def test_a_cut_where_no_gradient_flows_separates_nothing():
    g = graph(cuts={"a"}, frozen={"text"})
    assert g.node("fusion", "a", False) == g.node("fusion", "b", False)


def test_regions_share_the_full_image_pass():
    g = graph()
    region, whole = g.node("vision", "itc", True), g.node("vision@whole", "bbp", True)
    assert region != whole and region.base == whole.base
    assert g.node("vision@whole", "bbp", False) == g.node("vision", "itc", False)  # identity outside a region stream
    passes = table(g, ["itc", "itm", "imlm", "bbp"], regions=True)
    assert [label for label, _ in passes].count("vision") == 1
    assert passes[("vision", None)][1] == ["itc", "itm", "imlm", "bbp"]
    assert ("fusion@whole", None) in passes


def test_a_runs_inputs_have_a_graph_only_where_they_are_not_cut():
    passes = table(graph(cuts={"itm"}), ["itm"])
    assert passes[("text", None)][0] is False and passes[("vision", None)][0] is True


def test_below_and_fields():
    g = graph()
    assert g.below(["fusion"]) == ["text", "vision", "fusion"]
    assert g.fields("sim") == {"image", "text"} and g.fields("$region") == {"region"}


def test_the_graph_needs_no_torch():
    code = "import sys, xtoolkit.graph, xtoolkit.recipe.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("weight_ref", ["vision", "vision@mask_image"])
def test_labels_read_back(weight_ref):
    assert graph().node(weight_ref, None, False).label == weight_ref
