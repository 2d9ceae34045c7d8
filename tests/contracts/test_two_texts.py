"""A question beside the text, a class of texts of its own: that two fields know one mark changes nothing for who reads one of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.batch import TextField
from xtoolkit.data.items import Item
from xtoolkit.data.loader import Loader
from xtoolkit.data.synthetic import SyntheticPairs
from xtoolkit.data.text import load_tokenizer
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.model import Model
from xtoolkit.plan import make_plan
from xtoolkit.registry import DATASET_REGISTRY, LOSS_REGISTRY, ConfigError

HERE = Path(__file__).parent
ROBERTA = "type: RoBERTa, width: 16, layers: 1, heads: 2, vocab_size: 4000, max_positions: 20, dropout: 0"
RECIPE = f"""
tokenizer: sample://picturebook/tokenizer
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, width: 16, layers: 1, heads: 2, patch_size: 8, image_size: 32}}
  text:   {{inputs: {{text: $text}}, {ROBERTA}}}
  asked:  {{inputs: {{text: $question}}, {ROBERTA}}}
  fusion: {{type: CrossAttention, inputs: {{text: asked, image: vision}}, layers: 1, heads: 2}}
losses:
  words: {{type: MLM, feature: text@mask_text}}
  guess: {{type: ToyGuess, feature: fusion@mask_text, words: $question}}
streams:
  asked:
    batch_size: 4
    losses: {{guess: 1}}
    data: {{type: ToyAsked, size: 8, tokens: 12, min_tokens: 5, mask: {{prob: 0.5, max: 4}}}}
optim: {{lr: 1e-3}}
train: {{steps: 1, output: outputs/asked, precision: fp32, workers: 0, device: cpu}}
"""


class Question(TextField):
    """A question beside the text."""


class ToyAsked(SyntheticPairs):
    """Made-up pictures with captions and questions."""

    FIELDS = SyntheticPairs.FIELDS | {"question": Question}

    def load(self, source, sample, rows, rng) -> Item:
        item = super().load(source, sample, rows, rng)
        return replace(item, fields={"question": self._text(sample + 1000, rng)})


class ToyGuess(Loss):
    """The masked words of a text that the block names."""

    VIEWS = {"feature": "mask_text"}

    def __init__(self, feature: str, words: str, *, widths: dict):
        super().__init__()
        self.feature, self.words, self.out = feature, words, torch.nn.Linear(widths[feature], 4000)

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        return [Need(block["feature"]), Need(block["words"])]

    def forward(self, f, batch):
        text = f[self.words]
        return torch.nn.functional.cross_entropy(self.out(f[self.feature].tokens.flatten(0, 1)[text.masked_pos]), text.labels)


@pytest.fixture
def registered(monkeypatch):
    """Registers both, for the length of a test."""
    def register():
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, "ToyAsked", ToyAsked)
        monkeypatch.setitem(LOSS_REGISTRY._obj_map, "ToyGuess", ToyGuess)

    return register


def read(path: str, *wrong: str):
    """What each stream of a recipe reads and draws, and how its mistakes are answered."""
    made = recipes.load(str(path), missing_files=False)
    drawn = {name: (made.views(name), [(p.node.label, p.node.inputs) for p in made.passes(name)]) for name in made.streams}
    said = []
    for change in wrong:
        with pytest.raises(ConfigError) as error:
            recipes.load(str(path), [change], missing_files=False)
        said.append(error.value.problems)
    return drawn, {name: made.task_views(name) for name in made.evaluate}, said


@pytest.mark.parametrize("path, wrong", [
    (HERE.parents[1] / "projects/xfm/tiny.yaml", ["losses.mlm.feature=text", "streams.image.losses={mlm: 1}"]),
    (HERE / "experts.yaml", ["streams.image.losses={mlm: 1}", "losses.mlm.feature=backbone@mask_text+mask_image"]),
])
def test_a_dataset_that_is_only_registered_changes_nothing(registered, path, wrong):
    before = read(path, *wrong)
    registered()
    assert "question" in recipes.load(str(path), missing_files=False).graph.fields
    assert read(path, *wrong) == before


@pytest.mark.parametrize("losses", ["{guess: 1}", "{words: 1}", "{words: 1, guess: 1}"])
def test_each_encoder_reads_the_masks_of_its_own_text(registered, tmp_path, losses):
    registered()
    path = tmp_path / "asked.yaml"
    path.write_text(RECIPE)
    made = recipes.load(str(path), [f"streams.asked.losses={losses}"], missing_files=False)
    assert made.views("asked") == {"mask_text"}
    stream, = make_plan(made).streams
    assert stream.unknown is None
    model = Model(made).eval()
    data = DATASET_REGISTRY.build(made.streams["asked"].data, "here", tokenizer=load_tokenizer(made.tokenizer),
                                  views=made.views("asked"), **model.sizes(ToyAsked.FIELDS))
    batch = Loader("asked", data, 4, 0, 0).at(0)
    text, question = batch.text, batch["question"]
    assert type(question) is Question and not torch.equal(text.ids[:, :5], question.ids[:, :5])
    found, f = model("asked", batch), model.features(batch)
    assert found.keys() == made.streams["asked"].losses.keys() and all(torch.isfinite(v) for v in found.values())
    for name, field in (("text", text), ("asked", question)):
        if name in model.encoders:
            assert not torch.equal(field.masked_ids, field.ids) and field.labels.numel()
            of = model.encoders[name]
            assert torch.equal(f[f"{name}@mask_text"].tokens, of(view=None, text=field.masked()).tokens)
            assert torch.equal(f[name].tokens, of(view=None, text=field).tokens)
    if "guess" in found:
        hidden = f["fusion@mask_text"].tokens.flatten(0, 1)[question.masked_pos]
        wanted = torch.nn.functional.cross_entropy(model.losses["guess"].out(hidden), question.labels)
        assert found["guess"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_mark_needs_a_field_that_the_stream_has(registered, tmp_path):
    """What reads the question under its mask is refused where a stream has a text alone, though that knows the mark too."""
    registered()
    path = tmp_path / "asked.yaml"
    path.write_text(RECIPE)
    with pytest.raises(ConfigError, match=r"\$question"):
        recipes.load(str(path), ["streams.asked.data={type: SyntheticPairs, tokens: 9, mask: {prob: 0.5, max: 4}}"],
                     missing_files=False)
