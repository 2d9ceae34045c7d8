"""Three recipes at toy size that lean on every contract: joint encoders, modules wired twice, two masks at once, a decoder."""

import os
from pathlib import Path

import pytest
import torch

from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch
from xtoolkit.cli.show import open_dataset
from xtoolkit.data.loader import Loader
from xtoolkit.data.text import load_tokenizer
from xtoolkit.features import Features


from xtoolkit.engine.initial import load_initial
from xtoolkit.model import Model
from xtoolkit.plan import make_plan
from xtoolkit.recipe.config import load as load_config
from xtoolkit.registry import DATASET_REGISTRY, ConfigError

HERE = Path(__file__).parent
NAMES = ("experts", "three", "decoder")


def recipe(name: str, *overrides: str):
    return recipes.load(str(HERE / f"{name}.yaml"), overrides, missing_files=False)


def batches(made, model) -> dict[str, Batch]:
    """The first batch of each stream."""
    tokenizer, found = load_tokenizer(made.tokenizer), {}
    for name, stream in made.streams.items():
        cls = DATASET_REGISTRY.get(stream.data["type"])
        data = DATASET_REGISTRY.build(stream.data, name, tokenizer=tokenizer, views=made.views(name), train=True,
                                      **model.sizes(cls.FIELDS))
        found[name] = Loader(name, data, stream.batch_size, 0, 0).at(0)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_the_one_on_record(name):
    """After a change that is meant: PLANS=write python -m pytest tests/contracts, and read the difference."""
    file, found = HERE / f"{name}.plan.txt", str(make_plan(recipe(name))) + "\n"
    if os.environ.get("PLANS") == "write":
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_finite_and_every_parameter_learns(name):
    made = recipe(name)
    model = Model(made)
    model.load_init()
    for stream, batch in batches(made, model).items():
        losses = model(stream, batch)
        assert losses.keys() == made.streams[stream].losses.keys()
        assert all(torch.isfinite(v) for v in losses.values()), losses
        sum(losses.values()).backward()
    masks = any("mask_image" in made.views(stream) for stream in made.streams)
    untouched = [n for n, p in model.named_parameters() if p.grad is None and (masks or not n.endswith("mask_token"))]
    assert untouched == []


def test_passes_are_those_of_the_plan():
    """A pass that two losses agree on runs once; what runs is what was planned."""
    made = recipe("experts")
    model, ran = Model(made), []

    class Count:
        def __init__(self, key):
            ran.append(key)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    model("pairs", batches(made, model)["pairs"], observer=Count)
    assert sorted(map(str, ran)) == sorted(str(p.run or p.node) for p in made.passes("pairs"))


def test_a_joint_encoder_is_read_by_segment():
    """MLM and MIM of both masks at once, against the same computed by hand from the backbone's own output."""
    made = recipe("experts")
    model = Model(made).eval()
    batch = batches(made, model)["pairs"]
    losses = model("pairs", batch)
    text, image = batch.text, batch.image
    joint = model.encoders["backbone"](view=None, text=text.masked(), image=image.masked())
    states = joint.tokens[:, 1:1 + text.ids.shape[1]].flatten(0, 1)[text.masked_pos]
    words = torch.nn.functional.cross_entropy(model.encoders["backbone"].lm_logits(states), text.labels)
    assert losses["mvlm"].item() == pytest.approx(words.item(), rel=1e-5)
    guessed = model.losses["mvim"].predictor(joint.tokens[:, 1 + text.ids.shape[1]:]).double()
    side = image.pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2).double()
    wanted = (side - side.mean(-1, keepdim=True)) / (side.var(-1, keepdim=True) + 1e-6).sqrt()
    squares = (guessed - wanted).square().mean(-1)[image.patch_mask].mean()
    assert losses["mvim"].item() == pytest.approx(squares.item(), rel=1e-5)


def test_a_second_wiring_is_a_node_and_no_module():
    made = recipe("experts")
    model = Model(made)
    assert set(model.encoders) == {"backbone", "words_proj", "picture_proj", "sim"}
    assert model.encoder("words") is model.encoders["backbone"]
    batch = batches(made, model)["pairs"]
    f = model.features(batch)
    assert torch.equal(f["words"].tokens, model.encoders["backbone"](view=None, text=batch.text).tokens)
    assert torch.equal(f["words@mask_image"].tokens, f["words"].tokens)  # a mark that it does not know
    with pytest.raises(ValueError, match=r"no tokens of \$image"):
        f["words"].segment("image")


def test_pictures_that_a_wiring_alone_reads_can_be_shown():
    alone = ("encoders.backbone.inputs.image=null", "losses.mim.feature=picture@mask_image", "streams.pairs.losses={itc: 1}",
             "losses.itm=null", "losses.mvlm=null", "losses.mvim=null")
    images = open_dataset(recipe("experts", *alone), "image")[0].images
    assert images.size == 32 and images.side == 4


def test_stops_name_wirings():
    """A cut behind the words alone: the picture's contrast still moves the backbone, the words' does not."""
    cut = "stop_gradient={words -> words_proj: [itc], picture -> picture_proj: [itc]}"
    only = ("streams.text=null", "streams.image=null", "streams.pairs.losses={itc: 1}", "losses.itm=null", "losses.mvlm=null",
            "losses.mvim=null", "losses.mlm=null", "losses.mim=null")
    moved = {}
    for stops in ((), (cut,)):
        made = recipe("experts", *only, *stops)
        model = Model(made)
        model("pairs", batches(made, model)["pairs"])["itc"].backward()
        moved[bool(stops)] = any(p.grad is not None for p in model.encoders["backbone"].parameters())
    assert moved == {False: True, True: False}


def test_a_decoder_starts_as_what_it_copies_once_that_is_loaded():
    made = recipe("decoder")
    model = Model(made)
    with torch.no_grad():
        for p in model.encoders["fusion"].parameters():
            p.add_(1)  # as if weights had been loaded
    model.load_init()
    own, other = model.losses["answer"].decoder.state_dict(), model.encoders["fusion"].state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)
    assert all(a is not b for a, b in zip(model.losses["answer"].decoder.parameters(), model.encoders["fusion"].parameters()))


def test_a_decoder_that_the_weights_lack_starts_as_what_it_copies_from_them(tmp_path):
    trained = Model(recipe("decoder"))
    with torch.no_grad():
        for p in trained.parameters():
            p.normal_()
    torch.save({n: t for n, t in trained.state_dict().items() if not n.startswith("losses.")}, tmp_path / "encoders.pt")
    made = recipe("decoder", f"init={{path: {tmp_path / 'encoders.pt'}, allow_missing: [losses.answer.*]}}")
    model = Model(made)
    load_initial(model, made)
    own, other = model.losses["answer"].decoder.state_dict(), trained.encoders["fusion"].state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)
    torch.save(trained.state_dict(), tmp_path / "whole.pt")
    made = recipe("decoder", f"init={tmp_path / 'whole.pt'}")
    model = Model(made)
    load_initial(model, made)
    assert all(torch.equal(t, trained.state_dict()[n]) for n, t in model.state_dict().items()), "a trained decoder stays"


@pytest.mark.parametrize("change, said", [
    ("losses.mlm.feature=backbone@mask_text+mask_image", "whose mark `@mask_image` needs $image; stream `text`"),
    ("losses.mlm.feature=backbone@mask_txt", "unknown view `@mask_txt`; did you mean `mask_text`?"),
    ("losses.mlm.feature=backbone", "write `backbone@mask_text`"),
    ("losses.mvlm.feature=backbone@mask_image", "write `backbone@mask_image+mask_text`"),
    ("encoders.words.shares=backbne", "`shares` must name an encoder with a `type` of its own, not `backbne`; did you mean `backbone`?"),
    ("encoders.words.width=8", "unknown key `width` of `words`, which shares an encoder"),
    ("encoders.words.inputs={txt: $text}", "unknown slot `txt`"),
    ("encoders.words.inputs={text: $txt}", "unknown field `$txt`; did you mean `text`?"),
    ("streams.text.losses={mim: 1}", "whose mark `@mask_image` needs $image; stream `text`"),
    ("streams.text.losses={itc: 1}", "loss `itc` reads sim, which needs $image"),
    ("optim.lr_mult={words: 2}", "`lr_mult` names neither an encoder nor a loss with parameters of its own: `words`; it shares the "
     "module of `backbone`: name that"),
    ("optim.layer_decay={picture: 0.5}", "it shares the module of `backbone`: name that"),
    ("encoders.teacher={type: Teacher, of: words}", "`of` must name an encoder with a `type` of its own: `words` shares `backbone`"),
    ("streams.pairs.data={type: SyntheticRegions, tokens: 8, mask: {prob: 0.4, max: 4}}", "nothing can be pooled from it (it has no POOLS)"),
])
def test_mistakes_are_answered_by_name(change, said):
    with pytest.raises(ConfigError) as e:
        recipe("experts", change)
    assert any(said in p for p in e.value.problems), e.value.problems


def test_a_merged_type_replaces_a_wiring_and_widths_must_agree(tmp_path):
    text = "_BASE_: {}\nencoders:\n  {}\n"
    file = tmp_path / "other.yaml"
    file.write_text(text.format(HERE / "experts.yaml", "words: {type: RoBERTa, width: 16}"))
    block = load_config(str(file)).data["encoders"]["words"]
    assert block == {"type": "RoBERTa", "width": 16, "inputs": {"text": "$text"}}
    wide = ("encoders.wide={type: BEiTv2, inputs: {image: $image}, width: 24, layers: 1, heads: 2, patch_size: 8, image_size: 32}",
            "encoders.again={shares: both, inputs: {text: text, image: wide}}", "losses.mmim.feature=again@mask_text+mask_image")
    with pytest.raises(ConfigError, match="shares `both`, whose inputs have widths"):
        Model(recipe("three", *wide))


def test_a_name_means_one_class_of_fields(tmp_path):
    """A dataset may give a field of its own class under a known name, but not beside data that give the usual one."""
    (tmp_path / "own.py").write_text('''
from xtoolkit.batch import TextField
from xtoolkit.data.synthetic import SyntheticText
from xtoolkit.registry import DATASET_REGISTRY


class Marked(TextField):
    MARKS = TextField.MARKS | {"toy_mark": "masked"}


@DATASET_REGISTRY.register
class ToyMarked(SyntheticText):
    FIELDS = {"text": Marked}
''')
    data = "streams.text.data={type: ToyMarked, tokens: 10, mask: {prob: 0.3, max: 4}}"
    own = f"plugins=[{HERE / 'joint.py'}, {tmp_path / 'own.py'}]"
    made = recipe("experts", own, data, "streams.pairs=null", "losses.itc=null", "losses.itm=null",
                  "losses.mvlm=null", "losses.mvim=null")
    assert type(batches(made, Model(made))["text"].text).__name__ == "Marked"
    with pytest.raises(ConfigError, match="as TextField, other data of this recipe as Marked: a name means one class"):
        recipe("experts", own, data)


def test_a_teacher_copies_a_text_encoder_with_its_output_layer():
    """Built after the student's heads, it has what the student has, and follows it."""
    teach = ("encoders.slow={type: Teacher, of: text, mode: ema, momentum: 0.5}", "encoders.both.inputs.text=slow")
    model = Model(recipe("three", *teach))
    assert model.encoders["slow"].encoder.state_dict().keys() == model.encoders["text"].state_dict().keys()
    model.load_init()
    with torch.no_grad():
        for p in model.encoders["text"].parameters():
            p.add_(1)
    before = {n: p.clone() for n, p in model.encoders["slow"].encoder.named_parameters()}
    model.encoders["slow"].after_update()
    assert all(torch.allclose(p, before[n] + 0.5) for n, p in model.encoders["slow"].encoder.named_parameters())
    passes = {p.node.label: p.graph for p in recipe("three", *teach).passes("pairs")}
    assert passes["slow@mask_text"] is False and passes["both@mask_text+mask_image"] is True


def test_the_graph_of_a_shared_pass_is_the_plans_whoever_reads_first():
    """A loss that reads under no_grad leaves the pass that others differentiate with its graph."""
    made = recipe("three")
    model = Model(made)
    batch = batches(made, model)["pairs"]
    f = Features(model.graph, model.encoders, batch, made.needs, model._with_graph["pairs"])
    with torch.no_grad():
        f.bound("mmim")["both@mask_text+mask_image"]
    assert f.bound("mmlm")["both@mask_text+mask_image"].tokens.requires_grad
    with torch.no_grad():  # but nothing has a graph where the step itself wants none
        assert not model("pairs", batch)["mmlm"].requires_grad


def test_several_fields_may_know_a_mark(tmp_path):
    """Registering data with a second text changes nothing for others; on its stream the mark reaches each field by itself."""
    (tmp_path / "asked.py").write_text('''
from xtoolkit.batch import TextField
from xtoolkit.data.items import Item
from xtoolkit.data.synthetic import SyntheticText
from xtoolkit.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register
class ToyAsked(SyntheticText):
    FIELDS = SyntheticText.FIELDS | {"question": TextField}

    def load(self, source, sample, rows, rng):
        item = super().load(source, sample, rows, rng)
        return Item(texts=item.texts, fields={"question": super().load(source, sample + 1, rows, rng).texts[0]})
''')
    own = f"plugins=[{HERE / 'joint.py'}, {tmp_path / 'asked.py'}]"
    plain, made = recipe("experts"), recipe("experts", own)
    assert [made.views(s) for s in made.streams] == [plain.views(s) for s in plain.streams]
    asks = ("encoders.asks={shares: backbone, inputs: {text: $question}}", "losses.mlm.feature=asks@mask_text",
            "streams.text.data={type: ToyAsked, tokens: 10, mask: {prob: 0.3, max: 4}}")
    made = recipe("experts", own, *asks)
    node = made.graph.node("asks@mask_text", "mlm", made.streams["text"].fields)
    assert node.view == "mask_text" and dict(node.inputs)["text"].name == "question" and made.views("text") == {"mask_text"}
    assert made.graph.node("words@mask_image", None, frozenset({"text", "image"})) == made.graph.node("words", None, frozenset({"text", "image"}))


def test_an_encoder_that_cannot_be_built_on_shapes_leaves_the_plan_without_figures(tmp_path):
    (tmp_path / "asks.py").write_text('''
import torch
from xtoolkit.encoders.roberta import RoBERTa
from xtoolkit.registry import ENCODER_REGISTRY


@ENCODER_REGISTRY.register
class ToyAsksDevice(RoBERTa):
    def __init__(self, width: int = 16):
        super().__init__(width=width, layers=1, heads=2, vocab_size=4000, max_positions=20)
        self.rates = [x.item() for x in torch.linspace(0, 1, 3)]
''')
    made = recipe("three", f"plugins=[{HERE / 'joint.py'}, {tmp_path / 'asks.py'}]", "encoders.text={type: ToyAsksDevice}")
    said = str(make_plan(made))
    assert "FLOPs unknown: cannot be built on shapes alone" in said and "ToyAsksDevice" in said and "asks.py" in said
    assert Model(made).encoders["text"].rates == [0, 0.5, 1]


def test_a_loss_that_gives_no_scalar_and_a_misspelt_reference_are_named(tmp_path):
    (tmp_path / "vague.py").write_text('''
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register
class ToyVague(Loss):
    def __init__(self, feature: str):
        super().__init__()
        self.feature = feature

    @classmethod
    def needs(cls, block):
        return [Need(block["feature"])]

    def forward(self, f, batch):
        return f[self.feature].pooled.mean(1)
''')
    own = f"plugins=[{HERE / 'joint.py'}, {tmp_path / 'vague.py'}]"
    made = recipe("three", own, "losses.mlm={type: ToyVague, feature: text@mask_text}")
    with pytest.raises(ConfigError, match=r"loss `mlm` \(ToyVague\) must return a scalar tensor.*on stream `text` it gives a tensor"):
        make_plan(made)
    made = recipe("three")
    model = Model(made)
    f = model.features(batches(made, model)["pairs"])
    with pytest.raises(KeyError, match="unknown view `@mask_txt`; did you mean `mask_text`?"):
        f["both@mask_txt"]
    with pytest.raises(KeyError, match="unknown encoder `vison`; did you mean `vision`?"):
        f["vison"]
