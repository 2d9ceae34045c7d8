"""base.yaml itself, every layer of it: two steps on prepared data from weights in the hubs' formats, then a third."""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 24 * 2**30
FREE_DISK = 16 * 2**30
LAYERS, WIDTH, HEADS = 12, 768, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything is in here, and gone afterwards: a checkpoint with its optimizer has 4.4 GB."""
    folder = tmp_path_factory.mktemp("base")
    if shutil.disk_usage(folder).free < FREE_DISK:
        pytest.skip(f"{folder}: fewer than {FREE_DISK >> 30} GiB free")
    yield folder
    shutil.rmtree(folder)


def picture(path, number):
    """A JPEG of 256 x 224 pixels whose colours run differently in each."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = Image.linear_gradient("L").resize((256, 224))
    turned = [ramp, ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ramp.point(lambda v: (v * (number + 2)) % 256)]
    Image.merge("RGB", turned[number % 3:] + turned[:number % 3]).save(path)


def prepare(*argv):
    from xtoolkit.cli.prepare import main

    assert main([*map(str, argv), "--workers", "1"]) == 0


def prepared(folder) -> dict:
    """A few samples a stream in their official formats, through the converters; {key of the recipe: path}."""
    raw, out, numbers = folder / "raw", folder / "data", range(1, 7)
    listed = []
    for n in numbers:
        name = f"COCO_train2014_{n:012d}.jpg"
        picture(raw / "coco/train2014" / name, n)
        picture(raw / f"vg/VG_100K/{n}.jpg", n + 10)
        picture(raw / f"imagenet/n{n:08d}/{n}.JPEG", n + 20)
        said = [{"raw": f"A {colour} thing beside thing number {n}.", "imgid": n, "sentid": 2 * n + i}
                for i, colour in enumerate(("red", "small green"))]
        listed.append({"filepath": "train2014", "filename": name, "imgid": n, "split": "train", "cocoid": n,
                       "sentids": [2 * n, 2 * n + 1], "sentences": said})
    sizes = [{"image_id": n, "url": f"https://x/VG_100K/{n}.jpg", "width": 256, "height": 224, "coco_id": None,
              "flickr_id": None} for n in numbers]
    regions = [{"id": n, "regions": [
        {"region_id": 10 * n + i, "image_id": n, "x": 20 + 30 * i, "y": 16, "width": 100, "height": 90 + n,
         "phrase": f"the {word} part of {n}"} for i, word in enumerate(("upper", "bright"))]} for n in numbers]
    for path, value in ((raw / "coco/dataset_coco.json", {"images": listed, "dataset": "coco"}),
                        (raw / "vg/image_data.json", sizes), (raw / "vg/region_descriptions.json", regions)):
        path.write_text(json.dumps(value))
    lines = [json.dumps({"text": f"Sentence {n} of a corpus is as long as it likes. " * n}) for n in numbers]
    (raw / "c4-train.00000-of-01024.json").write_text("\n".join(lines) + "\n")

    prepare("coco", "--annotations", raw / "coco/dataset_coco.json", "--images", raw / "coco", "--out", out / "coco")
    prepare("vg", "--image-data", raw / "vg/image_data.json", "--regions", raw / "vg/region_descriptions.json",
            "--images", raw / "vg", "--out", out / "vg")
    prepare("images", "--images", raw / "imagenet", "--out", out / "imagenet21k")
    prepare("text", "--input", raw / "c4-train.00000-of-01024.json", "--out", out / "c4")
    return {"streams.text.data.sources.c4.path": out / "c4/*.jsonl",
            "streams.image.data.path": out / "imagenet21k/*.tar",
            "streams.pairs.data.sources.coco.path": out / "coco/train-*.tar",
            "streams.region.data.sources.vg.path": out / "vg/*.tar"}


def weights(folder) -> dict:
    """Random weights under the names and in the files of the two hubs: a RoBERTa folder, unilm's BEiTv2 file."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    text = RobertaForMaskedLM(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1,
                                            pad_token_id=1, layer_norm_eps=1e-5))
    text.save_pretrained(folder / "roberta-base")
    draw = lambda *shape: torch.randn(shape) * 0.02
    names = {"cls_token": draw(1, 1, WIDTH), "mask_token": draw(1, 1, WIDTH), "lm_head.weight": draw(8192, WIDTH),
             "lm_head.bias": draw(8192), "norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH),
             "patch_embed.proj.weight": draw(WIDTH, 3, 16, 16), "patch_embed.proj.bias": draw(WIDTH),
             "rel_pos_bias.relative_position_bias_table": draw(27 * 27 + 3, HEADS),
             "rel_pos_bias.relative_position_index": torch.zeros(197, 197, dtype=torch.long)}
    for i in range(LAYERS):
        block = {"gamma_1": draw(WIDTH), "gamma_2": draw(WIDTH), "norm1.weight": torch.ones(WIDTH),
                 "norm1.bias": draw(WIDTH), "norm2.weight": torch.ones(WIDTH), "norm2.bias": draw(WIDTH),
                 "attn.q_bias": draw(WIDTH), "attn.v_bias": draw(WIDTH), "attn.qkv.weight": draw(3 * WIDTH, WIDTH),
                 "attn.proj.weight": draw(WIDTH, WIDTH), "attn.proj.bias": draw(WIDTH),
                 "mlp.fc1.weight": draw(4 * WIDTH, WIDTH), "mlp.fc1.bias": draw(4 * WIDTH),
                 "mlp.fc2.weight": draw(WIDTH, 4 * WIDTH), "mlp.fc2.bias": draw(WIDTH)}
        names |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    beit = folder / "beitv2_base_patch16_224_pt1k.pth"
    torch.save({"model": names}, beit)
    return {"encoders.text.init": folder / "roberta-base", "encoders.vision.init": beit}


def train(folder, changes, *options):
    """Runs the tool as typed; its output and seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "tools/train_net.py", "--config", "projects/xfm/base.yaml", *options,
                           *(f"{key}={value}" for key, value in changes.items())],
                          capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, time.perf_counter() - began


@pytest.mark.slow
def test_base_runs_two_steps_within_24_gib_is_kept_and_goes_on(folder, capsys):
    output = folder / "run"
    changes = weights(folder) | prepared(folder) | {
        "tokenizer": "sample://picturebook/tokenizer", "streams.*.batch_size": 2, "evaluate": "null",
        "optim.warmup": 1, "train.output": output, "train.steps": 2, "train.log_every": 1, "train.keep": 1,
        "train.workers": 1, "train.device": "cpu"}
    for stream, absent in {"text": ["roberta"], "pairs": ["sbu", "cc3m"],
                           "region": ["coco", "refcoco", "objects365", "openimages"]}.items():
        changes |= {f"streams.{stream}.data.sources.{name}": "null" for name in absent}
    told, first_seconds = train(folder, changes)
    assert "365,898,873" in told  # the paper's size: nothing was made smaller
    first = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept, = (output / "checkpoints").iterdir()
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    assert kept.name == "step_00000002" and size > 3 * 4 * 365_898_873  # weights and both moments, four bytes each

    told, second_seconds = train(folder, changes | {"train.steps": 3}, "--resume")
    assert f"resumed from {kept}: step 2 of 3" in told
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[:2] == first
    for line in lines:
        assert all(math.isfinite(line[name]) for name in ("mlm", "mim", "itc", "itm", "imlm", "bbp", "norm"))
    assert lines[2]["samples.pairs"] == 6 and [p.name for p in (output / "checkpoints").iterdir()] == ["step_00000003"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    said = ", ".join(f"{line['memory_gb']:.2f} GB at step {line['step']}" for line in lines)
    with capsys.disabled():
        print(f"\nbase.yaml, batches of 2, bf16: {said}; largest process {peak / 2**30:.2f} GiB of {LIMIT >> 30}; "
              f"checkpoint {size / 1e9:.2f} GB; {first_seconds:.0f} s and {second_seconds:.0f} s")
    assert peak < LIMIT
