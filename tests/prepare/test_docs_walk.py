"""docs/data.md as a reader follows it: its commands run on miniatures of the releases, its recipe trains."""

import re
import shlex
from pathlib import Path

import pytest
from miniature import genome, karpathy, read, shards

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/data.md").read_text()
WALK = PAGE[PAGE.index("## COCO and Visual Genome"):PAGE.index("## Preparing the official releases")]
SMALL = ["encoders.vision.width=32", "encoders.vision.layers=1", "encoders.vision.heads=2", "encoders.text.width=32",
         "encoders.text.layers=1", "encoders.text.heads=2", "encoders.fusion.heads=2", "encoders.vision_proj.dim=32",
         "encoders.text_proj.dim=32", "streams.*.batch_size=2", "evaluate.retrieval.k=2", "schedule.every.image=1",
         "schedule.every.match=1", "train.workers=0"]


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", WALK, re.S)


def commands(tool):
    found = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    return [words[2:] for words in found if words[:2] == ["python", f"tools/{tool}.py"]]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the two releases where the page's first step puts them, and the recipes that it leans on."""
    karpathy(tmp_path / "raw"), genome(tmp_path / "raw")
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare():
    from xtoolkit.cli import prepare as prepare_data

    assert len(commands("prepare_data")) == 2
    for words in commands("prepare_data"):
        assert prepare_data.main([*words, "--workers", "1"]) == 0


def test_the_commands_of_the_page_prepare_both_releases(checkout, capsys):
    prepare()
    assert shards(checkout / "data/coco") == [f"{split}-00000.tar" for split in ("test", "train", "val")]
    assert sorted(read(checkout / "data/vg/train-00000.tar")) == ["7", "9"]  # 8 is evaluated on
    said = capsys.readouterr().out
    assert "train: 3 samples, 6 captions" in said and "see data/coco/summary.html" in said
    assert "left out: 1 excluded pictures" in said and "changed: 2 boxes clipped" in said
    assert (checkout / "data/vg/summary.html").exists()


def test_every_command_of_the_page_is_one_that_the_tool_takes(checkout):
    from xtoolkit.cli import prepare as prepare_data

    lines = re.findall(r"python tools/prepare_data\.py [^`\n]+", PAGE)
    assert len(lines) > 14
    for line in lines:
        words = shlex.split(line)[2:]
        if "--help" not in words:
            prepare_data.parser().parse_args(words)


def test_the_recipe_of_the_page_is_sound(checkout, capsys):
    prepare()
    recipe, = blocks("yaml")
    (checkout / "coco_vg.yaml").write_text(recipe)
    from xtoolkit.cli import plan

    words, = commands("plan")
    assert plan.main([*words, *SMALL]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("image", "pairs", "match", "region")) and not re.search(r"\bmlm\b", said)


@pytest.mark.slow
def test_the_recipe_of_the_page_takes_its_first_step(checkout, capsys):
    prepare()
    recipe, = blocks("yaml")
    (checkout / "coco_vg.yaml").write_text(recipe)
    from xtoolkit.cli import train

    words, = commands("train_net")
    assert train.main([*words, *SMALL]) == 1
    said = capsys.readouterr()
    assert "step 1/1" in said.out
    # The miniature's val is one picture, of which no negative can be drawn: said with its line, and the others are evaluated.
    told = "coco_vg.yaml:12: evaluation `matching`: Matching: no pair has a legal negative"
    assert f"evaluated, but for:\n  {told}" in said.err and "Traceback" not in said.err, said.err[-1500:]
    assert (checkout / "outputs/coco_vg/evaluations/retrieval.json").exists()
