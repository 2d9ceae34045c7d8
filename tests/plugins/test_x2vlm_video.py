"""Video in X2-VLM: frames as pictures against a loop, decoding by seconds, and steps of a recipe over a small set that is made here."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from made_videos import write_videos

from xtoolkit import build
from xtoolkit import recipe as recipes
from xtoolkit.cli.train import main as train
from xtoolkit.data.errors import BadSample
from xtoolkit.plan import make_plan
from xtoolkit.recipe import config
from xtoolkit.recipe.plugins import PACKAGE, import_components

import_components()
RECIPE = Path(__file__).resolve().parents[2] / "projects/xfm/baselines/tiny/x2vlm_video.yaml"
SMALL = [f"encoders.{e}.{k}" for e in ("vision", "text", "fusion") for k in ("layers=1", "heads=2")] + [
    *(f"encoders.{e}.width=32" for e in ("vision", "text")), "encoders.vision.stem=[8, 8, 8]", "encoders.vision_proj.dim=32",
    "encoders.text_proj.dim=32", "streams.*.batch_size=4", "evaluate=null", "init=null", "train.log_every=1", "train.device=cpu",
    "train.precision=fp32"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


def module():
    import importlib

    return importlib.import_module(f"{PACKAGE}.x2vlm.video")


def bad(why):
    return BadSample("bad video", "here", why)


def keys_of(videos, *overrides):
    return [*SMALL, f"streams.video.data.path={videos / 'train.jsonl'}", *overrides]


def built(videos, *overrides):
    return build(config.load(str(RECIPE), keys_of(videos, *overrides)).data)


# ---- decoding -------------------------------------------------------------------------------------------------------------
def brightness(picture):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).mean()


@pytest.mark.parametrize(("count", "wanted"), [(1, [2]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_frames_are_those_of_their_seconds(videos, count, wanted):
    frames = module().decoded((videos / "4.mp4").read_bytes(), count, None, bad)
    assert [brightness(f) for f in frames] == pytest.approx([250 * (s + 1) / 6 for s in wanted], abs=6)


def test_seconds_in_training_are_drawn_and_ascend():
    draw = module().seconds
    found = {tuple(draw(5, 3, random.Random(n))) for n in range(60)}
    assert len(found) == 10 and all(list(f) == sorted(set(f)) for f in found)
    assert draw(2, 4, random.Random(0)) == [0, 0, 1, 1] and draw(1, 3, None) == [0, 0, 0]


@pytest.mark.parametrize("data", [b"", b"no video at all", b"\x00" * 4000])
def test_what_is_no_video(data):
    with pytest.raises(BadSample, match="bad video: PyAV cannot decode it"):
        module().decoded(data, 3, None, bad)


def test_a_cut_file_is_bad_or_gives_frames(videos):
    data = (videos / "0.mp4").read_bytes()
    with pytest.raises(BadSample):
        module().decoded(data[:len(data) // 3], 3, None, bad)


# ---- in the model -----------------------------------------------------------------------------------------------------------
def test_a_video_is_the_mean_of_its_frames_with_their_positions(videos):
    """Against a loop over frames and videos, value and gradients; every reader of a picture reads a video."""
    run = built(videos)
    model, batch = run.model.eval().double(), run.batch("video")
    batch = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    frames = batch["clip"].frames
    assert frames.tolist() == torch.arange(12).view(4, 3).tolist() and batch.size == 4 and batch.image.pixels.shape[0] == 12
    vision, places = model.encoders["vision"], model.encoders["seen"].absolute_frame_pos_embed
    rows = []
    for video in range(4):
        total = 0
        for place in range(3):
            alone = vision(view=None, image=batch.image.select(frames[video, place, None])).tokens[0]
            total = total + alone + places[0, place]
        rows.append(total / 3)
    wanted = torch.stack(rows)
    found = model.features(batch)["seen"].tokens
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert model.features(batch)["sim"].local.shape == (4, 4)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    named = [*vision.named_parameters(), ("places", places)]
    ours, theirs = (torch.autograd.grad((value * weight).sum(), [p for _, p in named], allow_unused=True) for value in (found, wanted))
    for (name, _), a, b in zip(named, ours, theirs, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-8, atol=1e-8)), name


def test_pictures_and_regions_pass_as_they_are(videos):
    run = built(videos)
    for stream in ("match", "region"):
        f = run.model.eval().features(run.batch(stream))
        assert f["seen"] is f["vision"], stream


def test_more_frames_than_positions(videos):
    run = built(videos, "encoders.seen.frames=2")
    with pytest.raises(ValueError, match="videos of 3 frames do not fit FramePositions' 2: raise its `frames`"):
        run.model.features(run.batch("video"))["seen"]


def test_the_plan_counts_every_frame(videos):
    """The image encoder's pass over a row of three frames costs three times that over a picture."""
    import re

    plan = str(make_plan(recipes.load(str(RECIPE), keys_of(videos), missing_files=False)))
    cost = {s.split(":")[0]: float(re.search(r"vision  +graph +([\d.]+) GFLOPs", s)[1]) for s in plan.split("stream ")[1:]
            if re.search(r"vision  +graph", s)}
    assert cost["video"] == pytest.approx(3 * cost["match"], rel=0.3) and cost["video"] > cost["match"], plan


def test_mixed_batches_of_pictures_regions_and_videos_train(videos, tmp_path):
    keys = ["--config", str(RECIPE), *SMALL, f"streams.video.data.path={videos / 'train.jsonl'}", "train.steps=3", "train.workers=0",
            "schedule.every=null", f"train.output={tmp_path / 'run'}"]
    assert train(keys) == 0
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = [line for line in logged if "loss" in line][-1]
    assert {"video.itc", "video.itm", "video.imlm", "match.itm", "region.bbp"} <= last.keys()
