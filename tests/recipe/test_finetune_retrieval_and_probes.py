"""The recipes of probes, retrieval and grounding: each is right, plans, and says of its sets what the sets' own papers say."""

import math
from pathlib import Path

import pytest

from xtoolkit import recipe
from xtoolkit.plan import make_plan

FOLDER = Path(__file__).resolve().parents[2] / "projects/xfm/finetune"
ALONE = ["probe", "retrieval_coco_zero_shot", "retrieval_flickr30k_zero_shot", "tiny/probe", "tiny/retrieval_zero_shot"]
TRAINED = {"retrieval_coco": {"itc", "itm"}, "retrieval_flickr30k": {"itc", "itm"}, "refcoco": {"bbp"}, "refcoco+": {"bbp"},
           "refcocog": {"bbp"}, "tiny/retrieval": {"itc", "itm"}, "tiny/grounding": {"bbp"}}
# Classes, and pictures in train (with the validation split) and in test, as the sets' papers have them.
SETS = {"food101": (101, 75750, 25250), "cifar10": (10, 50000, 10000), "cifar100": (100, 50000, 10000), "cars": (196, 8144, 8041),
        "aircraft": (100, 3334 + 3333, 3333), "dtd": (47, 2 * 47 * 40, 47 * 40), "pets": (37, 3680, 3669),
        "flowers102": (102, 2 * 102 * 10, 6149), "mnist": (10, 60000, 10000), "stl10": (10, 5000, 8000),
        "country211": (211, 211 * 200, 211 * 100), "sun397": (397, 397 * 50, 397 * 50), "sst2": (2, 6920 + 872, 1821),
        "caltech101": (101, 101 * 30, 8677 - 101 * 30), "gtsrb": (43, 26640, 12630), "pcam": (2, 262144 + 32768, 32768),
        "fer2013": (7, 28709, 7178), "eurosat": (10, 10000, 5000), "kitti": (4, 6770, 711), "ucf101": (101, 9537, 3783),
        "clevr": (8, 70000, 15000)}


def load(name, *overrides):
    return recipe.load(str(FOLDER / f"{name}.yaml"), overrides, missing_files=False)


@pytest.mark.parametrize("name", [*ALONE, *TRAINED])
def test_each_recipe_is_right_and_plans(name):
    found = load(name)
    plan = make_plan(found)
    assert found.init.parts == "shared"
    if name in ALONE:
        assert not found.streams and plan.streams == []
        return
    stream, = plan.streams
    assert stream.name == "train" and set(stream.losses) == TRAINED[name] and stream.unknown is None
    assert plan.cuts == {}, "the text encoder learns from the fusion encoder"
    assert found.train.keep_best.split(".")[0] == "val" and found.evaluate["test"]["every"] is None
    assert found.train.steps % found.evaluate["val"]["every"] == 0
    if "tiny" not in name:
        assert found.config["encoders"]["vision"]["image_size"] == 384 and found.optim.betas == (0.9, 0.999)
        assert found.streams["train"].batch_size % 8 == 0


def test_the_sets_of_probes_are_those_of_the_papers():
    sets = load("probe").evaluate
    found = {name: tuple(block["expect"].values()) for name, block in sets.items()}
    assert found.pop("imagenet") == (1000, 1281167, 50000) and found == SETS
    assert {name for name, block in sets.items() if block["metric"] == "per_class"} == {"aircraft", "caltech101", "flowers102", "pets"}
    for name, block in sets.items():
        assert list(block["expect"]) == ["classes", *block["data"]["sources"]], name


def test_retrieval_reads_karpathy_s_whole_splits():
    counts = {"coco": [(5000, 25010)] * 2, "flickr30k": [(1014, 5070), (1000, 5000)]}
    for name, (val, test) in counts.items():
        blocks = [load(f"retrieval_{name}").evaluate[split] for split in ("val", "test")]
        blocks.append(load(f"retrieval_{name}_zero_shot").evaluate["test"])
        assert [tuple(block["expect"].values()) for block in blocks] == [val, test, test]
        assert {block["k"] for block in blocks} == {256}
        assert load(f"retrieval_{name}").config["losses"]["itc"]["targets"] == "shared"


def test_the_released_probe_trains_its_head_alone():
    found = load("probe_release5")
    stream, = make_plan(found).streams
    assert [(p.name, p.graph) for p in stream.passes] == [("vision", False)] and found.train.keep_best == "best_on_test.accuracy"
    assert found.train.steps == 100 * (1281167 // 2048 + 1) and stream.head_gflops > 0.04  # 48.8 M weights


# X-FM's own, as its release has them: pictures that train where that is not the bank of a linear probe, rate, batch, epochs.
RELEASED = {"food101": {}, "cifar10": {}, "cifar100": {}, "cars": {"lr": 4e-5}, "aircraft": {"pictures": 3334},
            "dtd": {"pictures": 1880, "batch": 512}, "pets": {}, "flowers102": {"pictures": 1020, "batch": 512, "lr": 1e-4}, "mnist": {},
            "stl10": {"epochs": 200}, "country211": {"pictures": 150 * 211, "lr": 4e-5}, "sun397": {"lr": 4e-5},
            "sst2": {"pictures": 6920, "batch": 1024, "lr": 1e-4}, "caltech101": {}, "gtsrb": {},
            "pcam": {"pictures": 262144, "batch": 2048, "lr": 5e-6}, "fer2013": {}}


def test_each_other_set_has_the_released_probe_with_its_settings():
    assert {path.stem for path in (FOLDER / "probe_release5").glob("*.yaml")} == {*RELEASED, "sets"}
    linear = load("probe").evaluate
    for name, given in RELEASED.items():
        found, (classes, bank, _) = load(f"probe_release5/{name}"), SETS[name]
        stream, test, probe = found.streams["train"], found.evaluate["best_on_test"], found.config["losses"]["probe"]
        told = {"pictures": bank, "lr": 2e-5, "batch": 256, "epochs": 100} | given
        epoch = math.ceil(told["pictures"] / told["batch"])
        assert (stream.batch_size, found.optim.lr, found.train.steps) == (told["batch"], told["lr"], told["epochs"] * epoch), name
        assert test["every"] == found.train.checkpoint_every == epoch and found.optim.warmup * told["epochs"] == 10
        assert (probe["classes"], probe["head"], probe["frozen"]) == (classes, "release5", True)
        data, paths = linear[name]["data"], [linear[name]["data"]["sources"][one]["path"] for one in ("train", "test")]
        assert [stream.data["path"], test["data"]["path"]] == [paths[0] if isinstance(paths[0], str) else paths[0][0], paths[1]]
        assert stream.data["classes"] == test["data"]["classes"] == data["classes"]
        assert stream.data["mean"] == test["data"]["std"] == [0.5] * 3 and found.train.output.endswith(name)
