"""docs/tasks.md: its commands name recipes that plan and releases that are read; those on the sample pack run."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from xtoolkit.ablation.jobs import Jobs
from xtoolkit.ablation.table import read
from xtoolkit.cli import recipes
from xtoolkit.cli.main import main
from xtoolkit.cli.prepare import parser
from xtoolkit.plan import make_plan

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
LINES = [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
FOLDER = recipes.folder() / "xfm/finetune"


def test_every_command_is_one():
    seen = set()
    assert "TABLE" not in PAGE
    for line in LINES:
        if line[0] == "python":
            assert (ROOT / line[1]).is_file()
            seen.add(parser().parse_args(line[2:]).source)
        elif line[1] != "finetune_all":
            assert line[:2] in (["xtoolkit", "train"], ["xtoolkit", "evaluate"]) and line[2] == "--config"
            make_plan(recipes.read(line[3], missing_files=False, only=line[5:6]))
            seen.add(line[3])
    assert {"glue", "vqa", "vqa-answers", "nlvr2", "snli-ve", "torchvision", "refcoco", "coco"} <= seen
    ours = {f"xfm/finetune/tiny/{path.name}" for path in (FOLDER / "tiny").glob("*.yaml")} - {"xfm/finetune/tiny/all.yaml"}
    assert ours <= seen, "each small recipe has its command on the page"


def test_what_the_recipes_read_is_what_the_page_prepares():
    """Pictures lie in the folders that the page lists, also for its commands; all else is what a command writes."""
    given = lambda option: {line[line.index(option) + 1] for line in LINES if option in line}
    listed = set(re.findall(r"^\| `(data/\w+)` \|", PAGE, re.M))
    assert given("--images") <= listed | {"data/coco/train2014"}
    for path in FOLDER.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"images: (data/[\w+]+)", text)) <= listed, path
        if path.stem not in ("probe", "refcoco", "refcocog"):  # as the page's one of each kind
            folders = re.findall(r"(?:path|candidates): (data/[\w+]+)/", text)
            assert set(folders) <= given("--out") | {"data/imagenet", "data/hateful_memes"}, path


def test_the_table_has_a_row_for_each_small_recipe():
    table = read(str(FOLDER / "tiny/all.yaml"))
    used = {row.recipe for row in table.rows.values()} | {c.recipe for c in table.controls.values() if c.recipe}
    assert used == {path.name for path in (FOLDER / "tiny").glob("*.yaml")} - {"all.yaml"}
    for name, row in table.rows.items():
        for control in ("", *row.controls):
            found = Jobs(table, str(FOLDER / "tiny")).cell(next(iter(table.columns)), name, control, 1).recipe.checked
            assert {m.partition(".")[0] for m in row.metrics.values()} <= set(found.evaluate), f"{name} {control}"


def test_the_recipe_on_the_page_is_the_one_that_comes_along():
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    kept = yaml.safe_load((FOLDER / "tiny/sst2.yaml").read_text())

    def within(a, b, at):
        for key, value in a.items():
            assert key in b, f"{at}.{key}"
            within(value, b[key], f"{at}.{key}") if isinstance(value, dict) else None
            assert isinstance(value, dict) or value == b[key] or key in ("lr", "warmup", "steps"), f"{at}.{key}"

    within(shown, kept, "sst2")


@pytest.mark.slow
def test_what_is_on_the_sample_pack_runs(tmp_path, monkeypatch, capsys):
    """Each small recipe from the weights of a model as it is drawn: two steps, a few samples."""
    import safetensors.torch

    import xtoolkit

    monkeypatch.chdir(tmp_path)
    run = xtoolkit.build(str(recipes.folder() / "xfm/tiny.yaml"))
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    safetensors.torch.save_file(weights, "start.safetensors")
    small = [line for line in LINES if line[0] == "xtoolkit" and "/tiny/" in line[-1]]
    assert len(small) > 12
    for line in small:
        found = recipes.read(line[3], ["init=start.safetensors"])
        cut = ["train.steps=2", "streams.*.batch_size=8", "train.checkpoint_every=1", "optim.warmup=0"] if found.streams else []
        every = [f"evaluate.{name}.every=1" for name, block in found.evaluate.items() if found.streams and block["every"]]
        # A probe needs all of its classes, and what has an `expect` all of its pictures.
        limit = [f"evaluate.{name}.limit=12" for name, block in found.evaluate.items() if not block.get("expect")]
        assert main([*line[1:], "init=start.safetensors", *cut, *every, *limit]) == 0, (line, capsys.readouterr().err[-2000:])
        assert (Path(found.train.output) / "results.json").is_file()
