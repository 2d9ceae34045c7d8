"""xtoolkit.load: the evaluations' figures, item by item; any kind of picture; a moved folder; clear refusals."""

import copy
import inspect
import io
import json
import pydoc
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import xtoolkit
from xtoolkit import recipe as recipes
from xtoolkit.batch import ImageField
from xtoolkit.data.text import clean_caption
from xtoolkit.weights.files import WeightsError
from xtoolkit.recipe.folder import latest
from xtoolkit.engine import checkpoint
from xtoolkit.engine.checkpoint import CheckpointError
from xtoolkit.engine.run import Run
from xtoolkit.model import Model
from xtoolkit.inference.pretrained import Pretrained
from xtoolkit.registry import TASK_REGISTRY, ConfigError
from xtoolkit.tasks import Task

CONFIG = """
tokenizer: {folder}/words
encoders:
  vision: {{type: BEiTv2, inputs: {{image: $image}}, width: 16, layers: 2, heads: 2, patch_size: 16, image_size: 48,
           init_std: 0.3, absolute_positions: 0.5}}
  text: {{type: RoBERTa, inputs: {{text: $text}}, width: 16, layers: 2, heads: 2, vocab_size: 300,
         init_std: 0.5}}
  fusion: {{type: CrossAttention, inputs: {{text: text, image: vision}}, layers: 2, heads: 2, init_std: 0.5,
           image_positions: 0.5}}
  vision_proj: {{type: Projection, inputs: {{x: vision}}, dim: 8}}
  text_proj: {{type: Projection, inputs: {{x: text}}, dim: 8}}
  sim: {{type: Similarity, inputs: {{image: vision_proj, text: text_proj}}}}
  target: {{type: Teacher, of: vision, mode: ema}}
losses:
  mim: {{type: MIM, feature: vision@mask_image, target: target}}
  itc: {{type: ITC, sim: sim}}
  itm: {{type: ITM, fusion: fusion, negatives: sim}}
  bbp: {{type: BBP, feature: fusion@whole}}
stop_gradient: {{text -> fusion: [itm, bbp]}}
streams:
  pairs: {{batch_size: 4, losses: {{itc: 1, itm: 1, mim: 1}},
          data: {{type: SyntheticPairs, size: 20, image_mask: {{patches: 3}}}}}}
  region: {{batch_size: 4, losses: {{itc: 1, bbp: 1}}, data: {{type: SyntheticRegions, size: 20, max_per_image: 2}}}}
evaluate:
  retrieval: {{type: Retrieval, sim: sim, match: itm, k: 99, pairs_per_pass: 7,
              data: {{type: Pairs, path: {folder}/data/*.tar, max_tokens: 9}}}}
  boxes: {{type: BoxAccuracy, loss: bbp, data: {{type: Regions, path: {folder}/data/*.tar, max_tokens: 9}}}}
optim: {{lr: 1e-3}}
train: {{steps: 2, output: {folder}/runs/one, workers: 0, device: cpu, precision: fp32, threads: 1}}
"""
# Longer than max_tokens, with what cleaning takes away, of several lengths.
CAPTIONS = ["A red cat, under the tree!", "tree", "the cat (red) under a red tree under the red cat and a tree",
            "under", "a cat. A tree."]


def picture(n):
    """A JPEG larger than twice the model's size, of its own shape, with a gradient: no two crops of it are alike."""
    image = Image.linear_gradient("L").resize((130 + 20 * n, 190 - 15 * n)).rotate(40 * n)
    image = Image.merge("RGB", (image, image.transpose(0), Image.new("L", image.size, 50 * n)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps in ``runs/one``; its pictures as files; what its evaluations computed of each item."""
    import tokenizers

    folder = tmp_path_factory.mktemp("made")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a red cat under the tree"] * 9, vocab_size=280,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    for name in ("words", "data", "pictures"):
        (folder / name).mkdir()
    bpe.save(str(folder / "words" / "tokenizer.json"))
    with tarfile.open(folder / "data" / "0.tar", "w") as tar:
        for n in range(4):
            data = picture(n)
            (folder / "pictures" / f"{n}.jpg").write_bytes(data)
            meta = {"image_id": n, "captions": [CAPTIONS[n], CAPTIONS[4]],
                    "regions": [{"box": [5, 6, 40, 30], "caption": CAPTIONS[n]},
                                {"box": [0, 0, 20, 90], "caption": CAPTIONS[4]}]}
            for suffix, content in (("jpg", data), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"{n:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path = folder / "recipe.yaml"
    path.write_text(CONFIG.format(folder=folder))
    Run(recipes.load(str(path))).train(say=lambda text: None)
    return SimpleNamespace(folder=folder, run=folder / "runs" / "one", recipe=path, evaluated=evaluations(path),
                           pictures=[str(folder / "pictures" / f"{n}.jpg") for n in range(4)])


def evaluations(path):
    """Each item as the tasks compute it: vectors, similarities, both logits of every pair, boxes."""
    run, kept, logits = Run(recipes.load(str(path)), init=False), {}, []
    checkpoint.load(latest(run.recipe.train.output), run.model)
    run.model.losses["itm"].head.register_forward_hook(lambda module, given, found: logits.append(found.detach()))
    for name, task in run.tasks.items():
        kept[name] = []
        predict, score = task.predict, task.score
        task.predict = lambda f, batch, to=kept[name], inner=predict: to.append(inner(f, batch)) or to[-1]
        task.score = lambda all, name=name, inner=score: kept.update({name + " all": all}) or inner(all)
    run.evaluate(say=lambda text: None)
    of_class_1 = {float(one): float(zero) for zero, one in torch.cat(logits)}  # no two pairs have an equal float
    kept["temperature"] = float(run.model.encoders["sim"].temperature.detach())
    matched = kept["retrieval all"]["ways"]["matched"][0]
    kept["logits"] = torch.stack([matched.clone().apply_(lambda one: of_class_1[one]), matched], -1).float()
    return kept


@pytest.fixture(scope="module")
def loaded(made):
    return xtoolkit.load(made.run)


def close(a, b, within=1e-5):
    torch.testing.assert_close(a, b, atol=within, rtol=0)


# ---- the figures ----------------------------------------------------------------------------------------------------
def test_vectors_similarities_and_matches_are_those_of_retrieval(made, loaded):
    outputs, = made.evaluated["retrieval"]
    texts = [text for n in range(4) for text in (CAPTIONS[n], CAPTIONS[4])]
    images, words = loaded.encode_image(made.pictures), loaded.encode_text(texts)
    close(images, outputs["sim.image"][0])
    close(words, outputs["sim.text"][0])
    close(words.norm(dim=1), torch.ones(8))
    assert images.std(0).min() > 0.01 and words.std(0).min() > 0.01, "items that are all alike would prove nothing"
    found = loaded.similarity(made.pictures, texts)
    close(found / loaded.temperature, made.evaluated["retrieval all"]["ways"]["dual"][0], 1e-4)  # logits of up to 14
    assert loaded.temperature == pytest.approx(made.evaluated["temperature"], rel=1e-6)
    expected = made.evaluated["logits"]
    assert expected[..., 1].std() > 0.05
    for n in range(4):
        close(loaded.match(made.pictures[n], texts, logits=True), expected[n])
        close(loaded.match(made.pictures[n], texts, batch_size=3), expected[n].softmax(-1)[:, 1])
    pairs = loaded.match([p for p in made.pictures for _ in range(2)], texts)
    close(pairs, torch.stack([expected[i // 2, i].softmax(-1)[1] for i in range(8)]))


def test_boxes_are_those_of_the_evaluation_and_in_pixels_of_the_picture(made, loaded):
    outputs, = made.evaluated["boxes"]
    assert outputs["predicted"].std(0).min() > 1e-3
    for n in range(4):
        expected = outputs["predicted"][2 * n:2 * n + 2]
        close(loaded.ground(made.pictures[n], [CAPTIONS[n], CAPTIONS[4]], normalized=True), expected)
        width, height = Image.open(made.pictures[n]).size
        cx, cy, w, h = expected[0].tolist()
        close(loaded.ground(made.pictures[n], CAPTIONS[n]),
              torch.tensor([(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]), 1e-3)


def test_nothing_depends_on_the_batch_that_an_item_is_in(made, loaded):
    texts = CAPTIONS[:4]
    for size in (1, 3):
        close(loaded.encode_text(texts, batch_size=size), loaded.encode_text(texts), 1e-6)
        close(loaded.encode_image(made.pictures, batch_size=size), loaded.encode_image(made.pictures), 1e-6)
        close(loaded.match(made.pictures, texts, batch_size=size), loaded.match(made.pictures, texts), 1e-6)
        close(loaded.ground(made.pictures, texts, batch_size=size), loaded.ground(made.pictures, texts), 1e-4)
    for ask, within in ((loaded.match, 1e-6), (loaded.ground, 1e-4)):  # probabilities; pixels
        close(torch.stack([ask(p, t) for p, t in zip(made.pictures, texts)]), ask(made.pictures, texts), within)
        close(torch.stack([ask(p, texts[0]) for p in made.pictures]), ask(made.pictures, texts[0]), within)


def test_one_gives_one_and_a_list_of_one_gives_a_list(made, loaded):
    one, text = made.pictures[0], CAPTIONS[0]
    assert loaded.encode_image(one).shape == loaded.encode_text(text).shape == (8,)
    assert loaded.encode_image([one]).shape == loaded.encode_text((text,)).shape == (1, 8)
    assert loaded.similarity(one, text).shape == () and loaded.similarity([one], text).shape == (1,)
    assert loaded.similarity(one, [text] * 2).shape == (2,) and loaded.similarity([one] * 3, [text] * 2).shape == (3, 2)
    assert loaded.match(one, text).shape == () and loaded.match(one, [text]).shape == (1,)
    assert loaded.match(one, text, logits=True).shape == (2,)
    assert loaded.ground(one, text).shape == (4,) and loaded.ground([one], text).shape == (1, 4)


def test_the_precision_of_the_recipe_or_another(made):
    half = xtoolkit.load(made.run, precision="bf16")
    vectors, rough = xtoolkit.load(made.run).encode_image(made.pictures), half.encode_image(made.pictures)
    assert rough.dtype == torch.float32 and 0 < (vectors - rough).abs().max() < 0.1
    with pytest.raises(ValueError, match="'fp16' is neither bf16 nor fp32"):
        xtoolkit.load(made.run, precision="fp16")


def test_results_serve_a_probe_the_mode_is_left_and_the_callers_numbers_too(made):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded = xtoolkit.load(str(made.run), device="cpu")
    assert torch.equal(torch.rand(3), expected) and not any(m.training for m in loaded.model.modules())
    first = loaded.encode_image(made.pictures)
    loaded.model.train()
    vectors = loaded.encode_image(made.pictures)  # drop-path is on in the recipe
    assert torch.equal(vectors, first) and loaded.model.encoders["fusion"].training and not vectors.requires_grad
    probe = torch.nn.Linear(8, 1)
    probe(vectors).sum().backward()
    assert probe.weight.grad.abs().sum() > 0
    loaded.model.encoders["fusion"](view=None, text=loaded.model.features(batch(loaded))["text"],
                                    image=loaded.model.features(batch(loaded))["vision"]).tokens.sum().backward()


def batch(loaded):
    from xtoolkit.batch import Batch
    from xtoolkit.data.text import text_field
    text = text_field([loaded.tokenizer.encode("a cat")], loaded.tokenizer.pad)
    return Batch(text=text, image=ImageField(torch.zeros(1, 3, 48, 48)))


# ---- pictures -------------------------------------------------------------------------------------------------------
def test_a_picture_of_any_mode_and_kind(tmp_path, loaded):
    base = Image.open(io.BytesIO(picture(1))).convert("RGB")
    clear = base.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(base.size))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees: training does not, so nor does this
    small = base.resize((90, 80)).convert("CMYK")  # so small that it is not decoded at half its size
    for name, image, keys in (("rgba.png", clear, {}), ("l.png", base.convert("L"), {}),
                              ("p.png", base.convert("P"), {}), ("la.png", clear.convert("LA"), {}),
                              ("cmyk.jpg", small, {}), ("one.png", base.convert("1"), {}),
                              ("turned.png", base, {"exif": exif})):
        image.save(tmp_path / name, **keys)
        with Image.open(tmp_path / name) as opened:
            close(loaded.encode_image(tmp_path / name), loaded.encode_image(opened), 1e-6)
    assert torch.equal(loaded.encode_image(tmp_path / "turned.png"), loaded.encode_image(base))
    white = Image.alpha_composite(Image.new("RGBA", base.size, "white"), clear).convert("RGB")
    close(loaded.encode_image(clear), loaded.encode_image(white), 1e-6)
    grey = base.convert("L")
    close(loaded.encode_image(grey), loaded.encode_image(Image.merge("RGB", [grey] * 3)), 1e-6)
    base.save(tmp_path / "rare.tif")
    for picture_of_tiff in (tmp_path / "rare.tif", Image.open(tmp_path / "rare.tif")):
        assert torch.equal(loaded.encode_image(picture_of_tiff), loaded.encode_image(base))
    base.save(tmp_path / "drawn.eps")  # a program, for which Pillow starts an interpreter
    with pytest.raises(ValueError, match="drawn.eps: corrupt image: of no format that Pillow reads: it begins with b'%!PS-Adobe"):
        loaded.encode_image(tmp_path / "drawn.eps")


def test_tensors_are_the_picture_that_they_hold(loaded, made):
    image = Image.open(made.pictures[2]).convert("RGB")
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    levels = levels.view(image.height, image.width, 3).permute(2, 0, 1)
    expected = loaded.encode_image(image)
    for tensor in (levels, levels / 255, (levels / 255).double(), levels.half() / 255, levels / 255 + 1e-4):
        assert torch.equal(loaded.encode_image(tensor), expected)
    close(loaded.encode_image(torch.stack([levels, levels])), torch.stack([expected] * 2), 1e-6)
    pixels = loaded.transform(image)
    assert pixels.shape == (3, 48, 48) and pixels.dtype == torch.float32
    close(loaded.encode_image(ImageField(pixels[None])), expected[None], 1e-6)
    close(loaded.ground(levels, "cat"), loaded.ground(image, "cat"), 1e-4)
    box = loaded.ground(ImageField(pixels[None]), "cat", normalized=True)
    close(box, loaded.ground([image], "cat", normalized=True), 1e-6)


def test_a_lazy_jpeg_is_left_as_large_as_it_was_and_near_its_path(made, loaded):
    with Image.open(made.pictures[3]) as lazy:
        size = lazy.size
        found = loaded.encode_image(lazy)
        assert lazy.size == size and lazy.getpixel((size[0] - 1, size[1] - 1))
    close(found, loaded.encode_image(made.pictures[3]), 0.05)


@pytest.mark.parametrize("given, error, said", [
    (torch.zeros(3, 8, 8) + 1.2, ValueError, "values from 1.2 to 1.2; they must lie in 0 to 1.*ImageField"),
    (torch.full((3, 8, 8), float("nan")), ValueError, "must lie in 0 to 1"),
    (-torch.ones(3, 8, 8), ValueError, "values from -1 to -1"),
    (torch.zeros(3, 8, 8, dtype=torch.int64), ValueError, "torch.int64; give uint8"),
    (torch.zeros(8, 8, 3), ValueError, r"shape \(8, 8, 3\); a picture is \(3, H, W\)"),
    (torch.zeros(2, 1, 8, 8), ValueError, r"picture 0 is a tensor of shape \(1, 8, 8\)"),
    ([], ValueError, "no picture was given"), (torch.zeros(0, 3, 8, 8), ValueError, "no picture was given"),
    (3, TypeError, "is a int; a picture is a path, a PIL image or a tensor"),
    ([["a.jpg"]], TypeError, "picture 0 is a list"),
    ("nowhere.jpg", FileNotFoundError, "nowhere.jpg"),
    (".", ValueError, "^. is a folder; name a picture in it$"),
    ("https://x.y/z.jpg", ValueError, "^https://x.y/z.jpg is an address, not a path: fetch it first$"),
    (Path("https://x.y/z.jpg"), ValueError, "is an address, not a path"),
])
def test_what_is_no_picture_is_refused(loaded, given, error, said):
    with pytest.raises(error, match=said):
        loaded.encode_image(given)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3.5, None])
def test_a_device_that_is_none_is_one_line(tmp_path, device):
    with pytest.raises(ValueError, match="^device: .* is none; give auto, cpu, cuda or cuda:1, ...$"):
        xtoolkit.load(tmp_path, device=device)


def test_a_device_that_this_machine_lacks_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="^device: 'cuda:1': this machine has 1 CUDA device; give auto or cpu$"):
        xtoolkit.load(tmp_path, device="cuda:1")


def test_damaged_files_and_wrong_texts_are_named(tmp_path, made, loaded):
    (tmp_path / "cut.jpg").write_bytes(picture(0)[:900])
    (tmp_path / "words.jpg").write_text("no picture")
    for name in ("cut.jpg", "words.jpg"):
        with pytest.raises(ValueError, match=f"{name}: corrupt image: "):
            loaded.match(tmp_path / name, "a cat")
    with pytest.raises(ValueError, match="of no format that Pillow reads: it begins with b'no picture'"):
        loaded.match(tmp_path / "words.jpg", "a cat")
    with pytest.raises(ValueError, match=r"'\.\.\.': empty caption"):
        loaded.encode_text(["a cat", "..."])
    for texts in (3, ["a", None], {"a"}):
        with pytest.raises(TypeError, match="texts are a string or a list of strings"):
            loaded.encode_text(texts)
    with pytest.raises(TypeError, match="text 1 is of type int"):
        loaded.encode_text(["a", 3])
    with pytest.raises(ValueError, match="text 0 holds half a character"):
        loaded.encode_text("\ud800")
    for size in (0, -1, 1.5, "a", None, True):
        for ask in (loaded.match, loaded.ground, loaded.similarity):
            with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, not "):
                ask(made.pictures, ["a"] * 4, batch_size=size)
    with pytest.raises(ValueError, match="no text was given"):
        loaded.encode_text([])
    with pytest.raises(ValueError, match="4 pictures and 3 texts: give as many of both, or one of either"):
        loaded.match(made.pictures, ["a"] * 3)
    with pytest.raises(ValueError, match="ask with normalized=True"):
        loaded.ground(ImageField(torch.zeros(1, 3, 48, 48)), "a cat")


# ---- what is loaded -------------------------------------------------------------------------------------------------
def moved(made, tmp_path, name="elsewhere"):
    """The run's folder alone, as on another machine: its recipe names data, weights and words that are not there."""
    target = tmp_path / name
    shutil.copytree(made.run, target)
    for record in target.glob("checkpoints/*/checkpoint.json"):
        known = json.loads(record.read_text().replace(str(made.folder), "/gone"))
        known["config"]["encoders"]["vision"]["init"] = "weights/gone.pth"
        record.write_text(json.dumps(known))
    (target / "config.yaml").write_text((target / "config.yaml").read_text().replace(str(made.folder), "/gone"))
    return target


def test_a_folder_that_was_moved_needs_nothing_else(made, loaded, tmp_path, monkeypatch):
    folder, newest = moved(made, tmp_path), latest(made.run).name
    expected = loaded.match(made.pictures, CAPTIONS[:4])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no cache"))
    for path in (folder, "elsewhere", folder / "checkpoints", folder / "checkpoints" / newest):
        assert torch.equal(xtoolkit.load(path).match(made.pictures, CAPTIONS[:4]), expected)
    shutil.move(folder / "checkpoints" / newest, tmp_path / "alone")
    for words in (folder / "tokenizer", loaded.tokenizer):
        assert torch.equal(xtoolkit.load("alone", tokenizer=words).match(made.pictures, CAPTIONS[:4]), expected)
    with pytest.raises(ConfigError, match=r"tokenizer that the recipe names cannot be had \(/gone/words: no such file\)"
                                          r"; give one: xtoolkit.load\(path, tokenizer=FOLDER\)"):
        xtoolkit.load("alone")


def test_a_file_of_a_whole_model_with_its_recipe_beside_it_or_given(made, loaded, tmp_path):
    tensors, file = loaded.model.state_dict(), tmp_path / "xfm.safetensors"
    # Without the weights of the teacher, which nothing here reads.
    save_file({name: t.clone() for name, t in tensors.items() if not name.startswith("encoders.target.")}, file)
    with pytest.raises(ConfigError, match=r"xfm.safetensors: weights alone do not say what .*config='recipe.yaml'"):
        xtoolkit.load(file)
    expected = loaded.match(made.pictures, CAPTIONS[:4])
    assert torch.equal(xtoolkit.load(file, config=made.recipe).match(made.pictures, CAPTIONS[:4]), expected)
    shutil.copy(made.run / "config.yaml", tmp_path)
    torch.save(tensors, tmp_path / "xfm.pt")
    for path in (file, tmp_path, tmp_path / "xfm.pt"):
        assert torch.equal(xtoolkit.load(path).match(made.pictures, CAPTIONS[:4]), expected)


def test_weights_of_another_recipe_are_refused_with_every_name(made, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(f"_BASE_: {made.recipe}\nlosses: {{itm: null}}\nevaluate: {{retrieval: {{match: null}}}}\n"
                     "encoders: {vision: {layers: 1}, text_proj: {dim: 4}, vision_proj: {dim: 4}}\n")
    with pytest.raises(WeightsError) as error:
        xtoolkit.load(made.run, config=other)
    said = str(error.value)
    assert "unexpected: encoders.vision.blocks.1.norm1.weight" in said
    assert "unexpected: losses.itm.head.0.weight" in said
    assert "encoders.text_proj.linear.weight (8, 16) there, (4, 16) here" in said
    assert said.count("\n") > 20 and "xtoolkit.load(path, config='recipe.yaml')" in said


def test_folders_of_other_things_are_named(made, tmp_path):
    def said(path, error=CheckpointError):
        with pytest.raises(error) as found:
            xtoolkit.load(path)
        assert "xtoolkit.load takes a run's output folder" in str(found.value)
        return str(found.value)

    assert "nowhere: no such file or folder" in said(tmp_path / "nowhere", FileNotFoundError)
    assert "it holds nothing" in said(tmp_path)
    assert "not a run itself, but it holds some: one" in said(made.run.parent)
    (tmp_path / "photo.jpg").write_bytes(picture(0))
    assert "neither a run nor a checkpoint; it holds photo.jpg" in said(tmp_path)
    shutil.copy(made.run / "config.yaml", tmp_path)
    assert "a run without a whole checkpoint: one is written every" in said(tmp_path)
    with pytest.raises(WeightsError, match="photo.jpg: not a torch file of tensors alone"):
        xtoolkit.load(tmp_path / "photo.jpg")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/words.md").write_text("no weights")
    with pytest.raises(WeightsError, match="words.md: not a torch file of tensors alone"):
        xtoolkit.load(tmp_path / "alone/words.md")
    with pytest.raises(TypeError, match="neither a string nor a path"):
        xtoolkit.load(None)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert "several files of weights (a.safetensors, b.safetensors): name the one" in said(tmp_path)
    with pytest.raises(WeightsError, match="a.safetensors: not a whole safetensors file"):
        xtoolkit.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name, damage, said", [
    ("checkpoint.json", lambda data: data[:-9], "checkpoint.json: damaged"),
    ("checkpoint.json", lambda data: b"{}", "not the record of a run"),
    (".metadata", lambda data: data[:50], "its index `.metadata` is not one"),
    ("__0_0.distcp", lambda data: data[:1000], "its files are damaged or not all there"),
    ("__0_0.distcp", None, "its files are damaged or not all there"),
])
def test_a_damaged_checkpoint_is_one_clear_error(made, tmp_path, name, damage, said):
    folder = tmp_path / "step"
    shutil.copytree(latest(made.run), folder)
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage is not None:
        (folder / name).write_bytes(damage(data))
    with pytest.raises(CheckpointError, match=said):
        xtoolkit.load(folder, tokenizer=made.run / "tokenizer")


def test_a_recipe_that_cannot_be_read_any_more_says_so(made, tmp_path):
    folder = moved(made, tmp_path)
    record = latest(folder) / "checkpoint.json"
    known = json.loads(record.read_text())
    known["config"]["plugins"] = ["mine/loss.py"]
    record.write_text(json.dumps(known))
    with pytest.raises(ConfigError, match=r"json: plugin mine/loss.py: no such file; .*\n.*config='recipe.yaml'"):
        xtoolkit.load(folder)


def test_a_tokenizer_of_another_model_is_refused(made, tmp_path):
    words = json.loads((made.run / "tokenizer" / "tokenizer.json").read_text())
    first = words["added_tokens"][0]
    words["added_tokens"] += [{**first, "id": 1000 + n, "content": f"<more{n}>"} for n in range(60)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ConfigError, match="tokens, the text encoder a vocabulary of 300"):
        xtoolkit.load(made.run, tokenizer=tmp_path)


@pytest.mark.parametrize("without, method, said", [
    (["losses.bbp=null", "evaluate.boxes=null", "streams.region=null"], "ground",
     "no `ground`: BoxAccuracy gives it, where a recipe has a loss that predicts boxes, `losses.bbp: {type: BBP, "
     "feature: fusion@whole}`; it has: attend, encode_image, encode_text, match, similarity, temperature"),
    (["losses.itm=null", "evaluate.retrieval.match=null"], "match",
     "no `match`: Retrieval gives it, where a recipe has a loss that matches, `losses.itm: "),
    ([], "macth", "no `macth`; did you mean `match`?"),
    ([], "summary", "no `summary`; choose from: attend, encode_image, encode_text, ground, match, similarity, temperature"),
])
def test_what_a_model_cannot_is_named_with_what_it_needs(made, without, method, said):
    loaded = Pretrained(Model(recipes.load(str(made.recipe), without)), xtoolkit.load(made.run).tokenizer)
    assert loaded.encode_image(made.pictures[0]).shape == (8,)
    assert not hasattr(loaded, method) and method not in dir(loaded)
    with pytest.raises(AttributeError, match=re.escape(said)):
        getattr(loaded, method)


def test_a_model_that_nothing_evaluates_can_what_its_losses_say(made):
    loaded = Pretrained(Model(recipes.load(str(made.recipe), ["evaluate=null"])), xtoolkit.load(made.run).tokenizer)
    assert loaded.abilities == ["attend", "encode_image", "encode_text", "ground", "match", "similarity", "temperature"]
    assert loaded.match(made.pictures[0], "a cat").shape == () and 0 < loaded.temperature < 1


def test_a_model_without_contrast_has_no_vectors_and_finds_boxes(made):
    alone = ["losses.itc=null", "losses.itm=null", "losses.mim=null", "evaluate.retrieval=null", "streams.pairs=null"]
    loaded = Pretrained(Model(recipes.load(str(made.recipe), alone)), xtoolkit.load(made.run).tokenizer)
    assert loaded.ground(made.pictures[0], "a cat").shape == (4,)
    for method in ("encode_image", "encode_text", "similarity"):
        with pytest.raises(AttributeError, match=f"no `{method}`: Retrieval gives it, where a recipe has a Similarity "
                                                 r"encoder and `losses.itc: .*; it has: ground"):
            getattr(loaded, method)


def test_it_says_what_it_is_and_how_it_is_asked(loaded):
    said = repr(loaded)
    assert said.startswith("one: ") and "fp32 on cpu" in said and "fusion (CrossAttention)" in said and "itm (ITM)" in said
    assert said.endswith("abilities: attend, encode_image, encode_text, ground, match, similarity, temperature")
    assert list(inspect.signature(loaded.match).parameters) == ["images", "texts", "batch_size", "logits"]
    assert "probability that each text belongs to its picture" in pydoc.render_doc(loaded.match)
    assert "upper left" in pydoc.render_doc(loaded.ground) and {"match", "ground", "tokenizer"} <= set(dir(loaded))
    copy.copy(loaded).encode_text("a cat")


class Longest(Task):
    """Of a plugin: which text is the longest. It needs nothing of the model but what every model has."""

    @classmethod
    def suggest(cls, encoders, losses):
        return {"type": "Longest"} if "text" in encoders else None

    def __init__(self, more: int = 0, *, tokenizer, output):
        self.more, self.tokenizer, self.output = more, tokenizer, output

    def abilities(self):
        return {"longest": self.longest, "where": lambda loaded: str(self.output), "words": property(lambda loaded: self.tokenizer.vocab_size)}

    def longest(self, loaded, texts):
        """The number of tokens of the longest text."""
        batches = loaded.texts(texts).batches(2)
        return max(int(text.mask.sum(1).max()) for text in batches) + self.more


def test_an_ability_of_a_plugins_task(made, monkeypatch, tmp_path):
    monkeypatch.setitem(TASK_REGISTRY._obj_map, "Longest", Longest)
    loaded = xtoolkit.load(made.run)
    assert loaded.longest("a cat") == len(loaded.tokenizer.encode("a cat"))
    assert loaded.longest(["a", "a cat", "a red cat under the tree"]) > loaded.longest("a cat")
    assert loaded.words == loaded.tokenizer.vocab_size and "longest" in repr(loaded)
    own = shutil.copytree(made.run, tmp_path / "moved") / "evaluations" / "Longest"
    assert xtoolkit.load(own.parents[1]).model.recipe.train.output == str(made.run)
    assert xtoolkit.load(own.parents[1]).where() == str(own), "a task's own files are those of the folder loaded from"
    # What the recipe says comes before what a task suggests.
    block = "evaluate.mine={type: Longest, more: 100, data: {type: SyntheticPairs}}"
    asked = Pretrained(Model(recipes.load(str(made.recipe), [block])), loaded.tokenizer)
    assert asked.longest("a cat") == 100 + loaded.longest("a cat")


def test_the_documents_ability_works_as_it_stands(made, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs/inference.md").read_text(encoding="utf-8")
    code, = [block.partition("```")[0] for block in page.split("```python\n") if "class Novelty" in block]
    known = dict(TASK_REGISTRY._obj_map)
    try:
        exec(compile(code, "docs/inference.md", "exec"), {})
        loaded = xtoolkit.load(made.run)
    finally:
        TASK_REGISTRY._obj_map = known
    first, others = made.pictures[0], made.pictures[1:]
    close(loaded.novelty(first, others), 1 - loaded.encode_image([first]).mm(loaded.encode_image(others).t()).max())
    assert loaded.novelty(made.pictures, others).shape == (4,) and loaded.novelty(others[0], others).abs() < 1e-5


def test_importing_the_package_is_light():
    code = "import sys, xtoolkit; xtoolkit.load; print(sorted({'torch', 'numpy', 'PIL', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# ---- how texts are read ---------------------------------------------------------------------------------------------
WORDS = """
tokenizer: {folder}/words
encoders:
  text: {{type: RoBERTa, inputs: {{text: $text}}, width: 16, layers: 1, heads: 2, vocab_size: 300}}
losses: {{mlm: {{type: MLM, feature: text@mask_text}}}}
streams: {{text: {{batch_size: 4, losses: {{mlm: 1}}, data: {data}}}}}
optim: {{lr: 1e-3}}
train: {{steps: 2, output: {folder}/runs/words, workers: 0, device: cpu, precision: fp32}}
"""
SEES = ["encoders.vision={type: BEiTv2, inputs: {image: $image}, width: 16, layers: 1, heads: 2, patch_size: 16, image_size: 48}",
        "encoders.vision_proj={type: Projection, inputs: {x: vision}, dim: 8}",
        "encoders.text_proj={type: Projection, inputs: {x: text}, dim: 8}",
        "encoders.sim={type: Similarity, inputs: {image: vision_proj, text: text_proj}}", "losses.itc={type: ITC, sim: sim}"]
RAW = "{type: Text, path: a.txt, max_tokens: 7, mask: {prob: 0.5, max: 3}}"


@pytest.mark.parametrize("data, more, clean, most", [
    (RAW, [], False, 7),
    ("{type: Text, path: a.txt, max_tokens: 7, clean: true, mask: {prob: 0.5, max: 3}}", [], True, 7),
    ("{type: SyntheticText, tokens: 6, mask: {prob: 0.5, max: 3}}", [], False, 6),  # has no key `clean`, and one of its own
    (RAW, ["streams.pairs={batch_size: 2, losses: {itc: 1}, data: {type: Pairs, path: a.tar}}"], True, 30),
    (RAW, ["streams.pairs={batch_size: 2, losses: {itc: 1}, data: {type: SyntheticPairs, tokens: 9}}"], False, 9),
    (RAW, ["streams.pairs={batch_size: 2, losses: {itc: 1}, data: {type: SyntheticPairs, tokens: 9}}",
           "evaluate={r: {type: Retrieval, sim: sim, data: {type: Pairs, path: a.tar, max_tokens: 8, clean: false}}}"], False, 8),
])
def test_texts_are_read_as_the_data_of_the_recipe_are(made, tmp_path, data, more, clean, most):
    path = tmp_path / "words.yaml"
    path.write_text(WORDS.format(folder=made.folder, data=data))
    recipe = recipes.load(str(path), more and [*SEES, *more], missing_files=False)
    tokenizer = xtoolkit.load(made.run).tokenizer
    said = "A red Cat, under the tree! Under the red cat and a tree. And under a red tree the cat"
    read, = Pretrained(Model(recipe), tokenizer).texts(said).batches(4)
    assert read.ids[0].tolist() == tokenizer.encode(clean_caption(said) if clean else said, most)
