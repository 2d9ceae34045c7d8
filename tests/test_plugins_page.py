"""docs/plugins.md from its first block to its last: plugins of all five kinds in one recipe, planned, trained, evaluated, reported, loaded."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/plugins.md").read_text(encoding="utf-8"), re.M | re.S)
COLOURS = ("red", "green", "blue")

# In one process: importing torch, timm and transformers is what takes the seconds.
RUN = """
import json, shlex, sys
from xtoolkit.cli.main import main

names = {}
for kind, block in json.load(sys.stdin):
    if kind == "bash":
        for line in block.splitlines():
            print("$", line, flush=True)
            assert main(shlex.split(line, comments=True)[1:]) == 0, line
    else:
        exec(compile(block, "docs/plugins.md", "exec"), names)
        assert names["model"]._texts.max_tokens == 16  # as its evaluation says

import timm, torch
from xtoolkit.registry import ENCODER_REGISTRY

theirs = timm.create_model("vit_tiny_patch16_224")
torch.save(theirs.state_dict(), "vit_tiny.pth")
tower = ENCODER_REGISTRY.get("TimmViT")(init="vit_tiny.pth")
tower.load_init()
assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in tower.vit.state_dict().items())
"""


def excerpt_of(block: str) -> str | None:
    found = re.match(r"# from (\S+)\n", block)
    return found and found[1]


def file_of(block: str) -> str | None:
    found = re.match(r"# (\S+\.(?:py|yaml))\n", block)
    return found and found[1]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which the page was followed, and what it printed."""
    folder = tmp_path_factory.mktemp("lab")
    lines, noise = [], np.random.default_rng(0)
    for n in range(12):
        pixels = noise.integers(0, 90, (40, 48, 3), np.uint8)
        pixels[..., n % 3] += 150
        Image.fromarray(pixels).save(folder / f"{n}.png")
        lines.append({"image": f"{n}.png", "caption": f"a {COLOURS[n % 3]} square, number {n}", "class": n % 3})
    with open(folder / "pairs.csv", "w", newline="") as file:
        table = csv.DictWriter(file, lines[0])
        table.writeheader()
        table.writerows(lines)
    steps = []
    for kind, block in BLOCKS:
        if name := file_of(block):
            (folder / name).write_text(block, encoding="utf-8")
        elif not excerpt_of(block):
            steps.append((kind, block))
    done = subprocess.run([sys.executable, "-c", RUN], input=json.dumps(steps), cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_every_block_is_a_file_an_excerpt_or_is_run():
    assert {kind for kind, _ in BLOCKS} == {"python", "yaml", "bash"}
    assert [name for _, block in BLOCKS if (name := file_of(block))] == [
        "vit_and_bert.py", "captions.py", "classes.py", "peak.py", "system.yaml", "lab.yaml"]


@pytest.mark.parametrize("block", [block for _, block in BLOCKS if excerpt_of(block)], ids=excerpt_of)
def test_excerpts_are_what_their_files_say(block):
    rest = iter((ROOT / excerpt_of(block)).read_text(encoding="utf-8").splitlines())
    for line in filter(str.strip, block.splitlines()[1:]):
        assert line in rest, f"{excerpt_of(block)} has no line {line!r} after those before it"


def test_the_line_that_cannot_be_counted_is_the_one_that_asks():
    page = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    lines = next(block for _, block in BLOCKS if file_of(block) == "vit_and_bert.py").splitlines()
    assert "attention_mask" in lines[int(re.search(r"\(vit_and_bert\.py:(\d+)\)", page)[1]) - 1]


def test_the_plan_counts_every_pass(ran):
    said = ran[1]
    assert "siglip" in said and "vision@mask_image" in said and "text@mask_text" in said and "unknown" not in said
    assert said.count("stream pairs: siglip + mlm + mim + classify; 6 a batch, 16 tokens a text") == 4


def test_the_shortest_system_is_planned_and_trained(ran):
    folder, said = ran
    lines = [json.loads(line) for line in (folder / "system/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(line[loss] > 0 for line in lines for loss in ("mvlm", "mvim", "itc"))
    assert re.search(r"backbone@mask_\w+\+mask_\w+ +graph .* read by mvlm, mvim\n", said), "one pass for both"


def test_three_steps_are_trained_and_the_hook_goes_on_from_its_state(ran):
    folder, _ = ran
    lines = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(line[loss]) for line in lines for loss in ("siglip", "mlm", "mim", "classify"))
    assert all(line["siglip.guess"] == pytest.approx(lines[0]["siglip.guess"], rel=0.3) for line in lines)
    guesses = [line["classify.guess"] for line in lines]
    assert guesses[0] == pytest.approx(math.log(3)) and guesses[1] != guesses[0] and max(guesses) < 3
    assert "classify (pairs): " in ran[1] and ran[1].count(": the run is too short to tell") == 11  # of both starts, and of the system
    peaks = [line["peak.norm"] for line in lines]
    assert peaks == sorted(peaks) and peaks[0] == pytest.approx(lines[0]["norm"])
    assert peaks[3] >= max(line["norm"] for line in lines[:3]) * 0.999
    assert json.loads((folder / "out/checkpoints/step_00000005/checkpoint.json").read_text())["hooks"]["peak"] == {"peak": peaks[4]}


def test_the_evaluation_and_its_pictures_are_in_the_report(ran):
    folder, said = ran
    record = json.loads((folder / "out/evaluations/colours.json").read_text())
    assert record["step"] == 5 and 0 <= record["metrics"]["accuracy"] <= 100 and record["floor"]["accuracy"] == pytest.approx(100 / 3)
    assert "classes  accuracy %" in said
    page = (folder / "out/report.html").read_text(encoding="utf-8")
    assert "Which colour it is" in page and "Classes told" in page and page.count("data:image/jpeg;base64") >= 6
    assert (folder / "show_pairs.html").is_file()


def test_the_loaded_model_has_the_ability(ran):
    abilities, named = ran[1].splitlines()[-2:]
    assert "name_class" in abilities and "encode_image" in abilities
    one, several = named.split(" ", 1)
    assert one in COLOURS and several.startswith(f"['{one}'")
    assert sorted(path.name for path in (ran[0] / "out/plugins").iterdir()) == [
        "captions.py", "classes.py", "peak.py", "vit_and_bert.py"]
