"""Where words look: the maps against Grad-CAM in float64, a case whose answer is planted, what is chosen and what is kept."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from batches import Batches
from pairs import batches as pairs_of, model as small_model
from xtoolkit.batch import Batch, RegionField
from xtoolkit.registry import ConfigError
from xtoolkit.tasks.attending import attention_maps, chosen
from xtoolkit.tasks.pointing import PointingGame, centres_in, pointed

SIDE = 6
SOURCES = ("val", "testA", "testB")


class Words:
    """A tokenizer: ids below 4 are specials, an odd id goes on with the word before it."""

    def words(self, ids):
        found = []
        for place, token in enumerate(ids):
            if token >= 4 and token % 2 and found and found[-1][-1] == place - 1:
                found[-1].append(place)
            elif token >= 4:
                found.append([place])
        return [(str(ids[places[0]]), places) for places in found]

    def decode(self, ids):
        return " ".join(map(str, ids))


def regions(seed=0):
    """The pairs of ``pairs.batches``, each with a box of its own, each batch a source."""
    draw, found = torch.Generator().manual_seed(seed), Batches()
    for batch, source in zip(pairs_of(masked=False), SOURCES):
        owner = batch["image_index"]
        size = 0.3 + 0.4 * torch.rand(len(owner), 2, generator=draw)
        box = torch.cat([size / 2 + (1 - size) * torch.rand(len(owner), 2, generator=draw), size], 1)
        field = RegionField(owner, box, centres_in(box, SIDE**2), torch.ones(len(owner), dtype=torch.bool))
        found.append(Batch(text=batch.text, image=batch.image, region=field, source=[source] * len(owner)))
    return found


@pytest.fixture(scope="module")
def model():
    """Three layers, and a head whose score depends on what it reads."""
    made = small_model("encoders.fusion.layers=3")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("losses.itm") or name.startswith("encoders.text") and parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


def inputs_of(model, batch):
    with torch.no_grad():
        return model.features(batch).inputs("fusion@whole")


# ---- the maps -------------------------------------------------------------------------------------------------------
def by_hand(model, inputs, layer):
    """Grad-CAM of one layer, row by row, in float64: the fusion encoder written out, its attention a leaf of its own."""
    fusion, itm = copy.deepcopy(model.encoders["fusion"]).double(), copy.deepcopy(model.losses["itm"]).double()
    found = []
    for row, mask in enumerate(inputs["text"].mask):
        x, image = inputs["text"].tokens[row, mask].double(), inputs["image"].tokens[row].double()
        side = math.isqrt(len(image) - 1)
        kept = None
        for number, part in enumerate(fusion.layer):
            for inner in (part.attention, part.crossattention):
                heads, source = inner.self, x
                if inner is part.crossattention:
                    source = torch.cat([image[:1], image[1:] + heads.positions * places(side, image.shape[1])])
                apart = lambda t: t.view(len(t), heads.heads, -1).transpose(0, 1)
                q, k, v = apart(heads.query(x)), apart(heads.key(source)), apart(heads.value(source))
                weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
                if inner is part.crossattention and number == layer:
                    kept = weights = weights.detach().requires_grad_()
                joined = (weights @ v).transpose(0, 1).reshape(len(x), -1)
                x = inner.output.LayerNorm(inner.output.dense(joined) + x)
            x = part.output.LayerNorm(part.output.dense(F.gelu(part.intermediate.dense(x))) + x)
        score = itm.head(x[:1])[0, 1]
        slope, = torch.autograd.grad(score, kept)
        found.append((kept.detach() * slope.clamp(min=0)).mean(0)[:, 1:])
    return found


def places(side, width):
    """The fixed sine-cosine embedding that `image_positions` adds."""
    from xtoolkit.encoders.positions import positions_on

    return positions_on(torch.device("cpu"), side * side + 1, width)[1:].double()


def test_maps_are_grad_cam_in_float64(model):
    for batch in regions():
        inputs = inputs_of(model, batch)
        found, _ = attention_maps(model, model.losses["itm"], inputs)
        for layer in range(3):
            for row, expected in enumerate(by_hand(model, inputs, layer)):
                mine = found[row, layer, :len(expected)]
                assert expected[1:].max() > 1e-6 or layer == 2
                torch.testing.assert_close(mine.double(), expected, atol=1e-5 * expected.max().item(), rtol=1e-4)
    assert found[:, 2, 1:].abs().max() == 0 and found[:, 2, 0].max() > 0, "in the last layer the score reads token 0 alone"


def test_attention_alone_sums_to_what_the_summary_leaves(model):
    _, plain = attention_maps(model, model.losses["itm"], inputs_of(model, regions()[0]))
    assert plain.min() >= 0 and plain.sum(-1).max() < 1
    assert plain.sum(-1).min() > 0.5


def test_the_pass_that_keeps_attention_gives_the_same_states_and_leaves_training_alone(model):
    inputs = inputs_of(model, regions()[1])
    fusion = model.encoders["fusion"]
    plain, (kept, weights) = fusion(view=None, **inputs), fusion.attending(**inputs)
    assert torch.equal(plain.tokens, kept.tokens) and len(weights) == 3
    assert weights[0].shape == (*inputs["text"].mask.shape[:1], 2, inputs["text"].mask.shape[1], SIDE**2 + 1)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones_like(weights[0][..., 0]))
    grads = []
    for ask in (lambda read: fusion(view=None, **read), lambda read: fusion.attending(**read)[0]):
        states = ask(inputs_of(model, regions()[1]))  # anew: keys and values are kept with what is read
        grads.append(torch.autograd.grad(states.tokens.square().sum(), list(fusion.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads)), "not a bit of the gradients differs"


def test_maps_do_not_depend_on_the_batch_or_on_padding(model):
    for batch in regions():
        inputs = inputs_of(model, batch)
        together, _ = attention_maps(model, model.losses["itm"], inputs)
        for row in range(len(together)):
            alone = {slot: read.select(torch.tensor([row])) for slot, read in inputs.items()}
            length = int(alone["text"].mask.sum())
            alone["text"] = alone["text"].trim(length)
            single, _ = attention_maps(model, model.losses["itm"], alone)
            torch.testing.assert_close(single[0], together[row, :, :length], atol=1e-7, rtol=1e-4)


def test_frozen_weights_are_no_obstacle(model):
    inputs = inputs_of(model, regions()[0])
    expected, _ = attention_maps(model, model.losses["itm"], inputs)
    frozen = copy.deepcopy(model).requires_grad_(False)
    found, _ = attention_maps(frozen, frozen.losses["itm"], inputs)
    assert torch.equal(found, expected)


def test_an_encoder_that_does_not_tell_is_an_error(model):
    blind = copy.deepcopy(model)
    blind.encoders["fusion"] = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"encoder `fusion` \(Identity\) does not tell where it looks: it has no `attending`"):
        PointingGame(tokenizer=Words()).evaluate(blind, regions())


# ---- the game -------------------------------------------------------------------------------------------------------
def test_centres_and_ties_by_hand():
    box = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5], [0.5, 0.25, 0.2, 0.2]])  # of 2 by 2 patches
    inside = centres_in(box, 4)
    assert inside.tolist() == [[True] * 4, [True, False, False, False], [False] * 4]
    maps = torch.tensor([[3.0, 1, 2, 0], [1, 1, 0, 0], [0, 0, 0, 9]])
    assert pointed(maps, inside).tolist() == [1.0, 0.5, 0.0]
    assert pointed(torch.zeros(3, 4), inside).tolist() == inside.double().mean(1).tolist(), "no map is chance"
    with pytest.raises(ValueError, match="5 patches are no square"):
        centres_in(box, 5)


def planted(spots, layers=3):
    """Fake maps: those of layer 1 are highest at ``spots``, the others in the first patch. Words are every token."""
    def maps(model, loss, inputs):
        found = torch.zeros(len(inputs["text"]), layers, inputs["text"].mask.shape[1], SIDE**2)
        found[:, [0, 2], :, 0] = 1
        found[torch.arange(len(found)), 1, :, spots.pop(0)] = 1
        return found, torch.flip(found, (1,))
    return maps


def inner(box):
    """For each box the first patch whose centre lies in it."""
    return centres_in(box, SIDE**2).double().argmax(1)


def test_the_layer_is_chosen_on_one_source_and_reported_on_the_others(model, monkeypatch):
    data = regions()
    boxes = [batch.region.box for batch in data]
    monkeypatch.setattr("xtoolkit.tasks.pointing.attention_maps", planted([inner(box) for box in boxes]))
    task = PointingGame(tokenizer=Words())
    result = task.evaluate(model, data)
    metrics, floor = result["metrics"], result["floor"]
    assert metrics["layer"] == 1 and metrics["accuracy"] == metrics["val.layer1"] == metrics["testB.accuracy"] == 100
    corner = [100 * centres_in(box, SIDE**2)[:, 0].double().mean().item() for box in boxes]
    assert [metrics[f"{source}.layer0"] for source in SOURCES] == pytest.approx(corner)
    assert corner != [100] * 3
    assert floor["testA.layer2"] == pytest.approx(100 * centres_in(boxes[1], SIDE**2).double().mean().item())
    assert floor["accuracy"] == pytest.approx(100 * centres_in(torch.cat(boxes[1:]), SIDE**2).double().mean().item())
    assert floor.keys() == metrics.keys() - {"layer", "attention_layer"}
    assert json.loads(result["files"]["layers.json"]) == {"match": "itm", "chosen_on": "val", "layer": 1, "attention_layer": 1}
    rows = [json.loads(line) for line in result["files"]["samples.jsonl"].splitlines()]
    assert len(rows) == sum(map(len, boxes)) and {row["score"] for row in rows} == {1.0}
    heading, table = task.table(metrics, floor)
    assert heading == ["looks into the true box, %", *SOURCES] and table[1][0] == "layer 1: chosen on val"
    assert [row[0] for row in table[3:]] == ["attention alone, layer 1", "patch similarity (contrast)",
                                             "floor: chance, by box area"]
    figure, = task.figures(result["examples"])
    item = figure["items"][0]
    assert item["right"] and item["boxes"][0]["kind"] == "true"
    assert item["heat"].index(1.0) == inner(torch.tensor([item["boxes"][0]["box"]])).item() and sum(item["heat"]) == 1


def test_whole_pictures_count_nowhere_and_the_choice_is_another_sources(model):
    data = regions()
    whole = [batch.with_fields(region=replace(batch.region, is_box=torch.arange(len(batch.region.box)) > 0)) for batch in data]
    full, less = (PointingGame(tokenizer=Words(), choose="testA").evaluate(model, Batches(some)) for some in (data, whole))
    lines = lambda result: result["files"]["samples.jsonl"].splitlines()
    assert len(lines(full)) - len(lines(less)) == 3
    with pytest.raises(ConfigError, match="no expression with a box in the source `dev`, by which the layer is chosen; the data "
                                          "have: testA, testB, val"):
        PointingGame(tokenizer=Words(), choose="dev").evaluate(model, Batches(data))


def test_figures_do_not_depend_on_how_many_expressions_a_pass_takes(model):
    results = [PointingGame(tokenizer=Words(), pairs_per_pass=rows).evaluate(model, regions()) for rows in (1, 2, 64)]
    assert results[0]["metrics"] == results[1]["metrics"] == results[2]["metrics"]
    assert all(p.grad is None for p in model.parameters()), "an evaluation leaves no gradient behind"


def test_similarity_points_to_the_patch_that_is_most_like_the_text(model):
    """Against projecting patch by patch."""
    batch = regions()[0]
    task = PointingGame(tokenizer=Words())
    task._model = model
    with torch.no_grad():
        f = model.features(batch)
        found = task._similarity(f, batch)
        text = f["text_proj"]
        patches = f["vision@whole"].tokens[:, 1:]
        linear = model.encoders["vision_proj"].linear
        for row in range(len(found)):
            for patch in (0, 7, 35):
                vector = F.normalize(linear(patches[row, patch]), dim=0)
                torch.testing.assert_close(found[row, patch], vector @ text[row], atol=1e-5, rtol=1e-4)


def test_what_was_chosen_is_found_in_the_folder_and_beside_it(tmp_path):
    assert chosen(None, "itm") is None and chosen(tmp_path / "one", "itm") is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "layers.json").write_text('{"match": "itm", "layer": 2, "attention_layer": 1}')
    assert chosen(tmp_path / "one", "itm")["layer"] == 2 and chosen(tmp_path / "one", "itm2") is None
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "layers.json").write_text('{"match": "itm", "layer": 0, "attention_layer": 1}')
    assert chosen(tmp_path / "one", "itm")["layer"] == 0
