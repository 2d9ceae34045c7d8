"""A run from Python: docs/python.md block by block, and what `xtoolkit.build` promises."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xtoolkit
from xtoolkit.recipe.folder import latest, read_record
from xtoolkit.registry import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/python.md").read_text()
TINY = {
    "tokenizer": "sample://picturebook/tokenizer",
    "encoders": {"text": {"type": "RoBERTa", "inputs": {"text": "$text"}, "width": 16, "layers": 1, "heads": 2,
                          "vocab_size": 4000, "dropout": 0}},
    "losses": {"mlm": {"type": "MLM", "feature": "text@mask_text"}},
    "streams": {"words": {"batch_size": 4, "losses": {"mlm": 1},
                          "data": {"type": "SyntheticText", "size": 64, "tokens": 12, "mask": {"prob": 0.5, "max": 4}}}},
    "optim": {"type": "AdamW", "lr": 1e-3},
    "train": {"steps": 3, "workers": 0, "log_every": 1, "output": "out", "precision": "fp32", "device": "cpu"},
}


def tiny(**changes):
    return copy.deepcopy(TINY) | changes


@pytest.fixture(scope="module", autouse=True)
def pack(tmp_path_factory):
    """The sample pack, unpacked once for this module."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XTOOLKIT_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


def test_the_page_runs_from_its_first_block_to_its_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        before = sorted(tmp_path.iterdir())
        exec(compile(block, "docs/python.md", "exec"), names)
        if "train()" not in block:
            assert sorted(tmp_path.iterdir()) == before, "nothing is written before train"
    out = capsys.readouterr().out
    for said in re.findall(r"(?:#|^ +#) (torch\.Size.*?\])(?::.*)?$|^    # (losses\..*)$", PAGE, re.M):
        assert (said[0] or said[1]) in out
    assert (tmp_path / "outputs/notebook/results.json").is_file() and len(names) > 10


def test_yaml_text_and_a_file_are_the_same_run(tmp_path, monkeypatch):
    from xtoolkit.recipe.config import Config

    text = Config(tiny()).dump()
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    states = [xtoolkit.build(given).model.state_dict() for given in (tiny(), text, "mine.yaml", tmp_path / "mine.yaml")]
    assert all(torch.equal(states[0][name], state[name]) for state in states[1:] for name in states[0])
    with pytest.raises(ConfigError, match="recipe:1: unknown key `enocders` of the recipe; did you mean `encoders`?"):
        xtoolkit.build(text.replace("tokenizer:", "enocders: {}\ntokenizer:", 1))
    with pytest.raises(ConfigError, match="^xfm/tinny.yaml: no such recipe; did you mean `xfm/tiny.yaml`?"):
        xtoolkit.build("xfm/tinny.yaml")
    with pytest.raises(TypeError, match="a int is none"):
        xtoolkit.build(3)


def test_losses_are_those_of_the_step_and_building_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run = xtoolkit.build(tiny())
    assert torch.rand(1) == expected, "the caller's generator is the caller's"
    first = run.losses("words", run.batch("words"))["mlm"].item()
    assert torch.equal(run.batch("words").text.ids, run.batch("words").text.ids)
    assert list(tmp_path.iterdir()) == []
    assert run.train(say=lambda text: None) == {} and run.evaluate() == {}
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert f'"mlm": {first}' in lines[0] and len(lines) == 3
    with pytest.raises(ConfigError, match="out exists and is not empty"):
        run.train()
    fresh = xtoolkit.build(tiny())
    assert fresh.load_newest() == 3
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in fresh.model.state_dict().items())


def test_features_are_those_that_losses_read_in_the_recipe_s_precision():
    run = xtoolkit.build(tiny(train=TINY["train"] | {"precision": "bf16"}))
    batch, read = run.batch("words"), []
    own = run.model.losses["mlm"].forward
    run.model.losses["mlm"].forward = lambda f, batch: read.append(f["text@mask_text"].tokens) or own(f, batch)
    run.losses("words", batch)
    assert torch.equal(run.features(batch)["text@mask_text"].tokens, read[0])
    assert not torch.equal(run.model.features(batch)["text@mask_text"].tokens, read[0]), "fp32 is another"


def test_paths_are_relative_to_the_folder(tmp_path, monkeypatch):
    """Also those of plugins, of weights to start from and of what a recipe inherits."""
    lab = tmp_path / "lab"
    (lab / "data").mkdir(parents=True)
    (lab / "data" / "texts.txt").write_text("".join(f"a line of {n} words and more\n" for n in range(40)))
    (lab / "relative_plugin.py").write_text("marker = 1\n")
    monkeypatch.chdir(lab)
    run = xtoolkit.build(tiny())
    run.train(say=lambda text: None)
    (lab / "base.yaml").write_text("optim: {clip: 0.5}\n")
    monkeypatch.chdir(tmp_path)
    given = tiny(plugins=["relative_plugin.py"], init="out", _BASE_="base.yaml")
    given["train"]["output"] = "second"
    given["streams"]["words"]["data"] = {"type": "Text", "path": "data/texts.txt", "mask": {"prob": 0.5, "max": 4}}
    second = xtoolkit.build(given, folder="lab")
    assert torch.equal(second.model.state_dict()["encoders.text.roberta.embeddings.word_embeddings.weight"],
                       run.model.state_dict()["encoders.text.roberta.embeddings.word_embeddings.weight"])
    assert second.recipe.optim.clip == 0.5
    second.train(say=lambda text: None)
    assert (lab / "second/plugins/relative_plugin.py").is_file() and not (tmp_path / "second").exists()


def test_data_that_are_missing_are_an_error_when_they_are_asked_for():
    given = tiny()
    given["streams"]["gone"] = copy.deepcopy(given["streams"]["words"])
    given["streams"]["gone"]["data"] = {"type": "Text", "path": "no/where.txt", "mask": {"prob": 0.5, "max": 4}}
    run = xtoolkit.build(given)
    assert len(run.batch("words")["text"].ids) == 4
    with pytest.raises(ConfigError, match="^streams.gone.data.path: no/where.txt: no such file"):
        run.batch("gone")
    with pytest.raises(ConfigError, match="no stream `wrods`; did you mean `words`?"):
        run.batch("wrods")
    for visit in (-1, 1.5, "first"):
        with pytest.raises(ConfigError, match=f"^visit: {visit!r} is none; give an integer of at least 0"):
            run.batch("words", visit)
    with pytest.raises(ConfigError, match="^init: nowhere: no such file or folder"):
        xtoolkit.build(tiny(init="nowhere"))


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="^folder: nope: no such folder"):
        xtoolkit.build(tiny(), folder="nope")


def test_what_a_dataset_finds_in_its_block_has_the_place_of_its_key(tmp_path):
    given = tiny()
    given["encoders"]["vision"] = {"type": "BEiTv2", "inputs": {"image": "$image"}, "width": 16, "layers": 1, "heads": 2,
                                   "patch_size": 8, "image_size": 32}
    given["losses"]["mim"] = {"type": "MIM", "feature": "vision@mask_image", "target": "$image"}
    given["streams"]["maps"] = {"batch_size": 4, "losses": {"mim": 1},
                                "data": {"type": "SyntheticImages", "image_mask": {"patches": 99}}}
    said = "streams.maps.data.image_mask.patches: 99 of 16 patches cannot be masked"
    with pytest.raises(ConfigError, match=f"^{said}$"):
        xtoolkit.build(given).batch("maps")
    from xtoolkit.recipe.config import Config
    (tmp_path / "mine.yaml").write_text(Config(given).dump())
    with pytest.raises(ConfigError, match=rf"mine.yaml:\d+: {said}$"):
        xtoolkit.build(tmp_path / "mine.yaml").batch("maps")


def test_how_to_go_on_is_said_in_words_of_python_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    xtoolkit.build(tiny()).train(say=said.append)
    with pytest.raises(ConfigError, match=r"go on from its last checkpoint with --resume \(Python: run.train\(resume=True\)\)"):
        xtoolkit.build(tiny()).train()
    xtoolkit.build(tiny()).train(resume=True, say=said.append)
    assert "run.evaluate(run.load_newest())" in said[1]
    assert said[2:] and all("guessing" in line for line in said[2:])


def test_values_that_are_not_plain_are_refused_by_their_key():
    given = tiny(optim={"type": "AdamW", "lr": torch.tensor(1.0)})
    with pytest.raises(ConfigError, match="^optim.lr: a Tensor is refused: a configuration holds plain values only"):
        xtoolkit.build(given)


PLUGIN = """
from pathlib import Path
import torch
from xtoolkit.graph import Need
from xtoolkit.losses.base import Loss
from xtoolkit.registry import LOSS_REGISTRY

Path({trace!r}).touch()


@LOSS_REGISTRY.register
class Strange(Loss):
    def __init__(self):
        super().__init__()

    @classmethod
    def needs(cls, block):
        return [Need("text")]

    def forward(self, f, batch):
        return f["text"].pooled.square().mean()
"""


def test_loading_a_model_runs_no_code_unless_it_is_trusted(tmp_path):
    trace = tmp_path / "the plugin ran"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "strange_plugin.py").write_text(PLUGIN.format(trace=str(trace)))
    given = tiny(plugins=["strange_plugin.py"], losses=TINY["losses"] | {"strange": {"type": "Strange"}})
    given["streams"]["words"]["losses"]["strange"] = 1
    run = xtoolkit.build(given, folder=tmp_path / "there")
    run.train(say=lambda text: None)
    output = tmp_path / "elsewhere"
    (tmp_path / "there" / "out").rename(output)
    for path in (tmp_path / "there").iterdir():
        path.unlink()
    trace.unlink()
    assert xtoolkit.build(output / "config.yaml").recipe.plugins[0].path == output / "plugins" / "strange_plugin.py"
    xtoolkit.load(output)  # this process has imported the same content: nothing new would run
    code = ("import sys, xtoolkit\n"
            "try:\n    xtoolkit.load(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
            "from pathlib import Path; print(Path(sys.argv[2]).exists())\n"
            "print(type(xtoolkit.load(sys.argv[1], trust_plugins=True).model.losses['strange']).__name__)")
    done = subprocess.run([sys.executable, "-c", code, str(output), str(trace)], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    refused, ran, name = done.stdout.splitlines()
    assert f"loading it would run their code: strange_plugin.py ({output}/plugins/strange_plugin.py)" in refused
    assert refused.endswith("xtoolkit.load(path, trust_plugins=True)") and ran == "False"
    assert name == "Strange" and trace.exists()
    (output / "plugins" / "strange_plugin.py").write_text("raise SystemExit\n")  # another content under the same name
    with pytest.raises(ConfigError, match="loading it would run their code"):
        xtoolkit.load(output)
    with pytest.raises(ConfigError, match="is not the `strange_plugin` that is imported already from"):
        xtoolkit.load(output, trust_plugins=True)
    known = read_record(latest(output))["plugins"]["strange_plugin.py"]
    kept = output / "plugins" / known["digest"] / known["copy"]  # where what it was trained with moves when it is edited
    kept.parent.mkdir()
    kept.write_text(PLUGIN.format(trace=str(trace)))
    assert xtoolkit.load(output).model.recipe.plugins[0].path == kept


def test_a_run_and_its_plan_say_what_they_are(tmp_path):
    run = xtoolkit.build(tiny(train=TINY["train"] | {"output": str(tmp_path / "seen")}))
    assert str(run.plan()).startswith("stream words: mlm; 4 a batch") and "trainable parameters: " in str(run.plan())
    count = f"{sum(p.numel() for p in run.model.parameters()):,} parameters"
    assert repr(run).splitlines() == [f"run in {tmp_path / 'seen'}: {count}, fp32 on cpu", "  encoders: text (RoBERTa)",
                                      "  losses: mlm (MLM)", "  streams: words (SyntheticText)", "  evaluations: none"]
