"""classify(...) of a loaded model: what each kind of head reads, the names of the classes, and what is asked wrongly."""

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch
from xtoolkit.data.text import load_tokenizer
from xtoolkit.inference.pretrained import Pretrained
from xtoolkit.model import Model

RECIPE = """
tokenizer: sample://picturebook/tokenizer
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, width: 16, layers: 1, heads: 2, patch_size: 8, image_size: 32}}
  text: {{type: RoBERTa, inputs: {{text: $text}}, width: 16, layers: 1, heads: 2, vocab_size: 4000}}
  fusion: {{type: CrossAttention, inputs: {{text: text, image: vision}}, layers: 1, heads: 2}}
  second: {{shares: vision, inputs: {{image: $second}}}}
  fusion_second: {{shares: fusion, inputs: {{text: text, image: second}}}}
losses: {{classify: {{type: Classification, features: {features}, classes: 3}}}}
streams: {{train: {{batch_size: 4, losses: {{classify: 1}}, data: {{type: {data}, path: none.jsonl, classes: 3}}}}}}
optim: {{lr: 1e-3}}
train: {{steps: 1, precision: fp32, workers: 0, device: cpu, output: none}}
"""
HEADS = {"text": ("text", "LabelledText"), "image": ("vision", "LabelledImages"), "pair": ("fusion", "LabelledPairs"),
         "two": ("[fusion, fusion_second]", "LabelledTwoImages")}


@pytest.fixture(scope="module", params=HEADS)
def asked(request, tmp_path_factory):
    """A loaded model, what to ask it, and the probabilities of three rows from its features."""
    folder = tmp_path_factory.mktemp(request.param)
    features, data = HEADS[request.param]
    (folder / "recipe.yaml").write_text(RECIPE.format(features=features, data=data))
    torch.manual_seed(0)
    model = Model(recipes.load(str(folder / "recipe.yaml"), missing_files=False))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    loaded = Pretrained(model, load_tokenizer("sample://picturebook/tokenizer"), folder)
    texts, (left, right) = ["a red dog", "a taxi is left of two bears", "an apple"], torch.rand(2, 3, 3, 32, 32)
    reads = {"text": [texts], "image": [left], "pair": [left, texts], "two": [left, right, texts]}[request.param]
    fields = {"text": loaded.texts(texts).read(torch.arange(3))}
    if request.param != "text":
        fields |= {name: loaded.pictures(one).read(torch.arange(3))[0] for name, one in (("image", left), ("second", right))}
    with torch.no_grad():
        want = model.losses["classify"].logits(model.features(Batch(**fields))).softmax(1)
    return request.param, loaded, reads, want, folder


def test_probabilities_are_those_of_the_head_row_by_row(asked):
    kind, loaded, reads, want, _ = asked
    found = loaded.classify(*reads)
    assert [[row[name] for name in "012"] for row in found] == [pytest.approx(row, rel=1e-4) for row in want.tolist()]
    assert all(list(row.values()) == sorted(row.values(), reverse=True) for row in found)
    assert loaded.classify(*reads, batch_size=2)[2] == pytest.approx(found[2], rel=1e-4)
    one = loaded.classify(*(several[1] for several in reads))
    assert isinstance(one, dict) and one == pytest.approx(found[1], rel=1e-4)


def test_one_goes_with_all(asked):
    kind, loaded, reads, want, _ = asked
    if kind not in ("pair", "two"):
        pytest.skip("it reads one thing")
    found = loaded.classify(*reads[:-1], reads[-1][0])
    assert found[0] == pytest.approx(loaded.classify(*reads)[0], rel=1e-4) and len(found) == 3


def test_a_pair_of_texts_is_read_as_one_sequence(asked):
    kind, loaded, *_ = asked
    if kind != "text":
        pytest.skip("no head on texts alone")
    ids = loaded.texts("a dog", "an animal").read(torch.arange(1)).ids[0].tolist()
    encode = loaded.tokenizer.encode_pair
    assert ids == encode("a dog", "an animal", 128)[0].tolist()
    assert loaded.classify("a dog", ["an animal", "a car"])[0] == pytest.approx(loaded.classify("a dog", "an animal"), rel=1e-5)
    with pytest.raises(ValueError, match="2 first and 3 second texts: give as many of both, or one of either"):
        loaded.classify(["a", "b"], ["c", "d", "e"])


def test_classes_have_the_names_that_an_evaluation_left(asked):
    kind, loaded, reads, want, folder = asked
    task = loaded._abilities["classify"].__self__
    task.output.mkdir(parents=True, exist_ok=True)
    (task.output / "classes.txt").write_text("no\nperhaps\nyes\n")
    found = loaded.classify(*(several[0] for several in reads))
    assert [found[name] for name in ("no", "perhaps", "yes")] == pytest.approx(want[0].tolist(), rel=1e-4)
    (task.output / "classes.txt").unlink()


def test_what_is_asked_wrongly(asked):
    kind, loaded, reads, *_ = asked
    fields = {"text": r"\$text: give a text, or a pair of texts; 4", "image": r"\$image: give 1: image; 4",
              "pair": r"\$image, \$text: give 2: image, text; 4", "two": r"\$image, \$second, \$text: give 3: image, second, text; 4"}
    with pytest.raises(TypeError, match=f"this head reads {fields[kind]} came"):
        loaded.classify(*[reads[0]] * 4)
    if kind in ("pair", "two"):
        with pytest.raises(ValueError, match="2 of one and 3 of another"):
            loaded.classify(*reads[:-1], ["a", "b"])
