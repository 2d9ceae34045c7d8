"""The recipes of VQA: each is right, plans, and has the papers' figures."""

from pathlib import Path

import pytest

from xtoolkit import recipe
from xtoolkit.plan import make_plan

FOLDER = Path(__file__).resolve().parents[2] / "projects/xfm/finetune"
KINDS = {"vqa": "AnswerGeneration", "vqa_classifier": "AnswerClassification"}


@pytest.mark.parametrize("size", ["", "tiny/"])
@pytest.mark.parametrize("name", KINDS)
def test_each_recipe_is_right_and_plans(name, size):
    found = recipe.load(str(FOLDER / f"{size}{name}.yaml"), missing_files=False)
    stream, = make_plan(found).streams
    assert stream.name == "train" and list(stream.losses) == ["answer"] and stream.unknown is None
    assert found.config["losses"]["answer"]["type"] == KINDS[name] and found.init.parts == "shared"
    assert found.train.keep_best == "val.accuracy" and found.evaluate["test"]["every"] is None
    assert found.train.steps % found.evaluate["val"]["every"] == 0
    if not size:
        assert found.config["encoders"]["vision"]["image_size"] == 480 and found.streams["train"].batch_size == 192
        assert found.train.steps == 10 * (443757 // 192) and found.optim.lr == 2e-5 and found.optim.betas == (0.9, 0.999)
        assert found.config["losses"]["answer"].get("classes", 3129) == 3129
