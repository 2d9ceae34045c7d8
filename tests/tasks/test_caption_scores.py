"""CaptionScores: what it says is the likeliest, whatever shares the batch; what it counts; its files, ability and errors."""

import json
from types import SimpleNamespace

import pytest
import torch

import pairs
from batches import Batches
from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, TextField
from xtoolkit.metrics.captions import bleu, cider_d, rouge_l, words
from xtoolkit.model import Model
from xtoolkit.plan import make_plan
from xtoolkit.registry import ConfigError
from xtoolkit.tasks import CaptionScores
from xtoolkit.tasks.beams import Beams

SMALL = dict(beams=2, min_length=2, max_length=5)


class Words:
    """A tokenizer of 40 words, `w5` the fifth."""

    bos, pad, eos, mask, special, vocab_size = 0, 1, 2, 4, {0, 1, 2, 3, 4}, 40

    def encode(self, text):
        return [0, *(int(word[1:]) for word in text.split()), 2]

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids if i not in self.special)


@pytest.fixture(scope="module")
def model():
    recipe = pairs.RECIPE.parent / "finetune/tiny/captioning.yaml"
    made = Model(recipes.load(str(recipe), ["train.precision=fp32", "encoders.vision.stem=null"], missing_files=False)).eval()
    with torch.no_grad():
        made.losses["imlm"].decoder.weight.mul_(20)  # so that its words are not all alike
    return made


def batches():
    found = pairs.batches(masked=False)
    for number, batch in enumerate(found):
        said = [[f"w{row + 5} w{number + 9} w7 here", f"w{row + 6} w7"] for row in range(len(batch.image.image_id))]
        batch["captions"] = [said[row] for row in batch["image_index"].tolist()]
    return found


def task(**keys):
    return CaptionScores(**SMALL | {"prompt": "w5 w6", "tokenizer": Words()} | keys)


def greedy(model, image, prompt=(0, 5, 6), least=2, most=5):
    """The likeliest word each time, a picture and a token at a time, from the encoders themselves."""
    vision, found = model.encoders["vision"](view=None, image=image), []
    loss, said = model.losses["imlm"], []
    while len(said) < most:
        ids = torch.tensor([[*prompt, *said, 4]])
        n = ids.shape[1]
        text = TextField(ids, ids >= 0, masked_pos=torch.tensor([n - 1]), attention=torch.ones(1, n, n).tril().bool())
        fused = model.encoders["fusion"](view=None, text=model.encoders["text"](view=None, text=text), image=vision)
        scores = loss.next_words(fused, text)[0]
        scores[[0, 1, 3, 4]] = scores[40:] = -torch.inf
        scores[2] = -torch.inf if len(said) < least else scores[2]
        if (word := int(scores.argmax())) == 2:
            break
        said.append(word)
    return said


def test_one_beam_says_the_likeliest_word_each_time(model):
    found = task(beams=1, ngram=0).evaluate(model, batches())
    made = {row["image_id"]: row["caption"] for row in map(json.loads, found["files"]["samples.jsonl"].splitlines())}
    with torch.no_grad():
        for batch in batches():
            for row, name in enumerate(batch.image.image_id):
                assert made[name] == Words().decode(greedy(model, batch.image.select(torch.tensor([row])))), name
    assert len(set(made.values())) > 2


def test_captions_do_not_depend_on_what_shares_the_batch(model):
    whole, alone = batches(), Batches()
    for batch in whole:
        for row, name in enumerate(batch.image.image_id):
            of = (batch["image_index"] == row).nonzero()[:, 0]
            image = batch.image.select(torch.tensor([row]))
            image.image_id.append(name)
            alone.append(Batch(image=image, text=batch.text.select(of), image_index=torch.zeros(len(of), dtype=torch.long),
                               captions=[batch["captions"][one] for one in of.tolist()]))
    together, apart = (task().evaluate(model, given) for given in (whole, alone))
    assert together["files"] == apart["files"] and together["metrics"] == apart["metrics"]
    ranks = pairs.Rank(range(0, 2))
    task().evaluate(model, whole, ranks)
    assert task().evaluate(model, whole, pairs.Rank(range(2, 3), ranks.all))["files"] == together["files"]


OUTPUTS = {"caption": ["a red dog", "two cats on a mat", "nothing here"], "image_id": ["coco-12", "COCO_val2014_000000000034", "p"],
           "references": [["A red dog.", "The dog is red!"], ["Two cats on the mat", "cats"], ["A bird's nest"]]}


def test_figures_are_those_of_the_metrics_and_the_floor_takes_other_pictures_captions():
    split = [words(c) for c in OUTPUTS["caption"]], [[words(r) for r in several] for several in OUTPUTS["references"]]
    found, floor = task().score(OUTPUTS), task().floor(OUTPUTS)
    assert found == pytest.approx({**{f"bleu{n}": 100 * v for n, v in enumerate(bleu(*split), 1)},
                                   "rouge_l": 100 * sum(rouge_l(*split)) / 3, "cider": 100 * sum(cider_d(*split)) / 3})
    assert found["rouge_l"] > 60 > 20 > floor["rouge_l"] and set(floor) == set(found)
    assert task().floor({key: value[:1] for key, value in OUTPUTS.items()}) == {}


def test_samples_and_the_servers_file():
    rows = task().samples(OUTPUTS)
    assert [row["score"] for row in rows] == pytest.approx(list(cider_d(
        [words(c) for c in OUTPUTS["caption"]], [[words(r) for r in several] for several in OUTPUTS["references"]])))
    assert [row["image_id"] for row in rows] == OUTPUTS["image_id"] and rows[0]["caption"] == "a red dog"
    assert 100 * sum(row["score"] for row in rows) / 3 == pytest.approx(task().score(OUTPUTS)["cider"])
    assert json.loads(task().files(OUTPUTS)["captions.json"]) == [
        {"image_id": 12, "caption": "a red dog"}, {"image_id": 34, "caption": "two cats on a mat"},
        {"image_id": "p", "caption": "nothing here"}]


def test_a_picture_that_comes_again_brings_references_and_is_described_once():
    twice = {"caption": ["a dog", "a cat"], "image_id": ["p", "p"], "references": [["A dog"], ["One dog"]]}
    row, = task().samples(twice)
    assert row["caption"] == "a dog" and task().examples(twice)[0]["references"] == ["A dog", "One dog"]


def test_examples_and_their_figure():
    figure, = task().figures(task().examples(OUTPUTS))
    assert figure["title"] == "What it says of a picture" and len(figure["items"]) == 3
    assert figure["items"][2] == {"image": "p", "caption": "nothing here", "note": "CIDEr 0; people: A bird's nest"}
    assert task().figures([]) == []


def test_the_ability(model):
    image = batches()[0].image
    given = lambda single: SimpleNamespace(single=single, batches=lambda size: iter([image.select(torch.arange(1 if single else 3))]))
    loaded = lambda single: SimpleNamespace(model=model, pictures=lambda images: given(single))
    it = task(beams=1, ngram=0)
    one, several = it.abilities()["caption"](loaded(True), "picture"), it.caption(loaded(False), ["a", "b", "c"])
    with torch.no_grad():
        assert several == [Words().decode(greedy(model, image.select(torch.tensor([row])))) for row in range(3)]
    assert one == several[0] and len(it.caption(loaded(True), "picture", max_length=3).split()) <= 3
    assert len(it.caption(loaded(True), "picture", min_length=4, max_length=4).split()) == 4
    assert it.how == Beams(1, 2, 5, 0), "what is asked of one caption stays with it"
    with pytest.raises(ValueError, match="beams: must be at least 1"):
        it.caption(loaded(True), "picture", beams=0)


def test_what_it_reaches_is_declared_and_wrong_data_and_keys_are_told(model):
    from xtoolkit.losses.captioning import Captioning
    from xtoolkit.losses.imlm import IMLM

    assert CaptionScores.needs({}) == [] and CaptionScores.HEADS == {"loss": "next_words"}
    assert CaptionScores.suggest({}, {"a": IMLM, "b": Captioning}) == {"type": "CaptionScores", "loss": "b"}
    assert CaptionScores.suggest({}, {"a": IMLM}) is None
    with pytest.raises(ValueError, match=r"its data give no `captions`.*\{type: Pairs\}"):
        task().evaluate(model, pairs.batches(masked=False))
    with pytest.raises(ValueError, match="max_length: must be at least 5"):
        CaptionScores(min_length=5, max_length=4)


@pytest.mark.parametrize("name, size", [("captioning", 384), ("tiny/captioning", 96)])
def test_the_recipes_plan_one_pass_an_encoder_from_left_to_right(name, size):
    recipe = recipes.load(str(pairs.RECIPE.parent / f"finetune/{name}.yaml"), missing_files=False)
    plan = make_plan(recipe)
    stream, = plan.streams
    assert [(p.name, p.graph, p.runs) for p in stream.passes] == [
        ("vision", True, 1), ("text@left_to_right", True, 1), ("fusion@left_to_right", True, 1)] and stream.unknown is None
    assert recipe.init.parts == "shared" and recipe.config["encoders"]["vision"]["image_size"] == size
    assert recipe.evaluate["test"]["every"] is None and recipe.evaluate["val"]["every"]


def test_a_run_on_data_without_the_block_is_told_before_it_starts():
    path = str(pairs.RECIPE.parent / "finetune/tiny/captioning.yaml")
    with pytest.raises(ConfigError, match=r"read `@left_to_right` of this stream, which needs `left_to_right: "
                                          r"\{prob: 0.6, max: 18, prompt: a picture of\}`"):
        recipes.load(path, ["streams.train.data.left_to_right=null"], missing_files=False)
    with pytest.raises(ConfigError, match="write `fusion@left_to_right`"):
        recipes.load(path, ["losses.imlm.feature=fusion"], missing_files=False)
