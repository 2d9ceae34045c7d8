"""Features: computed once, cut where declared, guarded against undeclared reads; rows that share sources."""

import pytest
import torch
from torch import nn

from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.encoded import attended
from xtoolkit.features import Encoded, Features, Source, _grad
from xtoolkit.graph import EncoderSpec, Graph, Need


class Embed(nn.Module):
    """Ids to tokens; counts its passes."""

    width = 4

    def __init__(self):
        super().__init__()
        self.table, self.passes = nn.Embedding(10, 4), 0

    def forward(self, *, view, text):
        self.passes += 1
        return Encoded.of(self.table(text.ids), text.mask)


class Patches(nn.Module):
    width = 4

    def __init__(self):
        super().__init__()
        self.linear, self.passes = nn.Linear(3, 4), 0

    def forward(self, *, view, image):
        self.passes += 1
        x = image.pixels.flatten(2).transpose(1, 2)
        if image.patch_mask is not None:
            x = x * ~image.patch_mask[..., None]
        x = self.linear(x)
        return Encoded.of(torch.cat([x.mean(1, keepdim=True), x], 1))


class Fuse(nn.Module):
    width = 4

    def __init__(self):
        super().__init__()
        self.linear, self.made = nn.Linear(4, 4), []

    def forward(self, *, view, text, image):
        def make(t):
            self.made.append(t.shape[0])
            return self.linear(t)
        keys = torch.cat([s.memo(self, make) if i is None else s.memo(self, make)[i] for s, i in image.parts], 1)
        keys = (keys * image.mask[..., None]).sum(1, keepdim=True)
        return Encoded.of(text.tokens + keys, text.mask)


CUTS = {("text", "fusion"): frozenset({"cut"})}


@pytest.fixture
def parts():
    encoders = nn.ModuleDict({"vision": Patches(), "text": Embed(), "fusion": Fuse()})
    specs = {"vision": {"image": "$image"}, "text": {"text": "$text"}, "fusion": {"text": "text", "image": "vision"}}
    fields = {"text": TextField, "image": ImageField, "region": RegionField}
    return Graph({n: EncoderSpec(n, i, pools="image") for n, i in specs.items()}, fields, dict(CUTS)), encoders


def pairs(rows=3):
    ids = torch.arange(rows * 2).reshape(rows, 2)
    text = TextField(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(rows), ids + 1, torch.tensor([0]), torch.tensor([1]))
    image = ImageField(torch.randn(rows, 3, 2, 2), torch.arange(rows), torch.rand(rows, 4) > 0.5, list(range(rows)))
    return Batch(text=text, image=image)


def regions():
    batch = pairs(3)
    box_patches = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    region = RegionField(torch.tensor([0, 0, 2]), torch.rand(3, 4), box_patches, torch.ones(3, dtype=torch.bool), torch.arange(3))
    return batch.with_fields(region=region)


def test_a_feature_is_computed_once_whoever_reads_it(parts):
    graph, encoders = parts
    f = Features(graph, encoders, pairs(), {"a": [Need("vision")], "b": [Need("vision@mask_text"), Need("vision@mask_image")]})
    assert f.bound("a")["vision"] is f.bound("b")["vision@mask_text"]
    assert not torch.equal(f.bound("b")["vision@mask_image"].tokens, f.bound("a")["vision"].tokens)
    assert encoders["vision"].passes == 2


def test_views_choose_what_is_read(parts):
    graph, encoders = parts
    batch = pairs()
    f = Features(graph, encoders, batch, {"a": [Need("text"), Need("text@mask_text")]}).bound("a")
    assert torch.equal(f["text"].tokens, encoders["text"].table(batch.text.ids))
    assert torch.equal(f["text@mask_text"].tokens, encoders["text"].table(batch.text.masked_ids))


def test_undeclared_reads_raise(parts):
    graph, encoders = parts
    f = Features(graph, encoders, pairs(), {"a": [Need("vision")], "b": [Need("fusion")]})
    with pytest.raises(KeyError, match="loss `a` reads `text` but does not declare it"):
        f.bound("a")["text"]
    with pytest.raises(KeyError, match="loss `a` reads `vision@mask_image`"):
        f.bound("a")["vision@mask_image"]
    with pytest.raises(KeyError, match="loss `b` reads runs of `fusion`"):
        f.bound("b").inputs("fusion")
    with pytest.raises(KeyError, match="head `lm_logits` of `vision`"):
        f.bound("a").head("vision")


def test_grad_false_detaches_and_a_cut_stops_exactly_its_slot(parts):
    graph, encoders = parts
    needs = {"cut": [Need("fusion")], "free": [Need("fusion"), Need("vision", grad=False)]}
    f = Features(graph, encoders, pairs(), needs)
    f.bound("cut")["fusion"].tokens.sum().backward(retain_graph=True)
    assert encoders["text"].table.weight.grad is None and encoders["vision"].linear.weight.grad is not None
    f.bound("free")["fusion"].tokens.sum().backward()
    assert encoders["text"].table.weight.grad.abs().sum() > 0
    assert not f.bound("free")["vision"].tokens.requires_grad


def test_cuts_apply_inside_run(parts):
    graph, encoders = parts
    needs = {"cut": [Need("fusion", runs=2)], "free": [Need("fusion", runs=2)]}
    for reader, reaches in (("cut", False), ("free", True)):
        encoders.zero_grad()
        f = Features(graph, encoders, pairs(), needs).bound(reader)
        slots, rows = f.inputs("fusion"), torch.tensor([2, 0, 1, 1])
        f.run("fusion", text=slots["text"].select(rows), image=slots["image"].select(rows)).tokens.sum().backward()
        assert (encoders["text"].table.weight.grad is not None) is reaches
        assert encoders["vision"].linear.weight.grad is not None


def test_keys_and_values_are_made_once_an_image(parts):
    graph, encoders = parts
    needs = {"cut": [Need("fusion", runs=2), Need("fusion@mask_text")]}
    f = Features(graph, encoders, pairs(), needs).bound("cut")
    slots, rows = f.inputs("fusion"), torch.tensor([2, 0, 1, 1, 0])
    f.run("fusion", text=slots["text"].select(rows), image=slots["image"].select(rows))
    f["fusion@mask_text"]
    assert encoders["fusion"].made == [3]


def test_a_memo_without_a_graph_never_serves_a_pass_with_one():
    source, layer = Source(torch.ones(2, 3, 4)), nn.Linear(4, 4)
    with torch.no_grad():
        source.memo(layer, layer)
    assert source.memo(layer, layer).requires_grad


def test_a_pass_without_a_graph_does_not_poison_autocasts_weight_cache():
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with _grad(False):
            assert not layer(torch.ones(1, 4)).requires_grad
        layer(torch.ones(1, 4)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_nodes_that_nobody_differentiates_run_without_a_graph(parts):
    graph, encoders = parts
    f = Features(graph, encoders, pairs(), {"a": [Need("vision", grad=False), Need("text")]},
                 with_graph={graph.node("text", "a", frozenset({"text", "image"}))}).bound("a")
    f["vision"], f["text"]
    assert not f._memo[graph.node("vision", "a", frozenset({"text", "image"}))].tokens.requires_grad
    assert f["text"].tokens.requires_grad


def test_regions_against_a_plain_loop(parts):
    graph, encoders = parts
    batch = regions()
    f = Features(graph, encoders, batch, {"a": [Need("vision"), Need("vision@whole")]}).bound("a")
    region, whole = f["vision"], f["vision@whole"]
    full = encoders["vision"](view=None, image=batch.image.clean()).tokens
    for row, (image, patches) in enumerate(zip(batch.region.image_index, batch.region.box_patches)):
        kept = full[image, 1:][patches]
        assert torch.allclose(region.pooled[row], kept.mean(0))
        assert torch.equal(region.tokens[row, 1:][patches], kept)
        assert torch.equal(region.mask[row, 1:], patches) and region.mask[row, 0]
        assert torch.equal(whole.tokens[row], full[image]) and whole.mask[row].all()
    assert region.parts[1][0] is whole.parts[1][0]  # patches of a picture: one source, so keys and values are made once


def test_one_box_over_everything_is_the_whole_image():
    image = Encoded.of(torch.randn(2, 5, 4))
    tokens = image.tokens.clone()
    tokens[:, 0] = tokens[:, 1:].mean(1)
    image, index = Encoded.of(tokens), torch.tensor([1, 0, 1])
    region = image.subset(index, torch.ones(3, 4, dtype=torch.bool))
    assert torch.allclose(region.tokens, image.repeat(index).tokens, atol=1e-6)


def test_select_composes_and_detaches():
    tokens = torch.randn(3, 2, 4, requires_grad=True)
    e = Encoded.of(tokens * 1)
    rows = e.select(torch.tensor([2, 0])).select(torch.tensor([1, 1, 0]))
    assert torch.equal(rows.tokens, tokens[[0, 0, 2]]) and len(rows) == 3
    assert torch.equal(rows.pooled, tokens[[0, 0, 2], 0])
    assert not rows.detach().tokens.requires_grad
    assert e.detach().parts[0][0] is e.detach().parts[0][0]


def test_same_rows():
    text = TextField(torch.zeros(4, 2, dtype=torch.long), torch.ones(4, 2, dtype=torch.bool), torch.tensor([1, 2, 3, 1]))
    image = ImageField(torch.zeros(4, 3, 1, 1), torch.tensor([7, 8, 8, 9]), None, [7, 8, 8, 9])
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = expected[1, 2] = expected[2, 1] = True
    assert torch.equal(Batch(text=text, image=image).same_rows(), expected)
    region = RegionField(torch.zeros(4, dtype=torch.long), torch.zeros(4, 4), torch.ones(4, 1, dtype=torch.bool),
                         torch.ones(4, dtype=torch.bool), torch.tensor([1, 2, 3, 4]))
    expected[1, 2] = expected[2, 1] = False  # other regions of one picture stay negatives
    assert torch.equal(Batch(text=text, image=image, region=region).same_rows(), expected)


def test_an_attention_goes_with_its_rows_and_is_cut_with_them():
    attention, places = torch.rand(3, 4, 4) < 0.5, torch.arange(4).expand(3, 4)
    text = TextField(torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool), positions=places, attention=attention)
    encoded = Encoded.of(torch.randn(3, 4, 2), attention=attention)
    rows = torch.tensor([2, 0, 2])
    for whole in (text, encoded):
        assert torch.equal(whole.select(rows).attention, attention[rows])
        assert torch.equal(whole.trim(2).attention, attention[:, :2, :2]) and whole.trim(2).mask.shape == (3, 2)
        assert torch.equal(whole.to("cpu").attention, attention)
        with pytest.raises(ValueError, match="an attention of their own cannot be joined"):
            type(whole).cat([whole, whole])
    assert text.trim(2).positions.tolist() == [[0, 1]] * 3 and torch.equal(encoded.detach().attention, attention)


def test_what_is_attended_is_real_and_allowed():
    mask, attention = torch.tensor([[True, True, False]]), torch.ones(1, 3, 3).tril().bool()
    assert attended(mask, None).tolist() == [[[[True, True, False]]]]
    assert attended(mask, attention).tolist() == [[[[True, False, False], [True, True, False], [True, True, False]]]]
