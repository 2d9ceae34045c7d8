"""Hostile configurations, weights and archives: one clear error each; none runs code or touches what lies outside."""

import hashlib
import io
import json
import lzma
import pickle
import struct
import tarfile
from pathlib import Path

import pytest
import torch

from hostile import Runs, jpeg, link, outsiders, tar
from commands import SMALL, TINY, tool
from xtoolkit.recipe import config
from xtoolkit.prepare import sample_pack
from xtoolkit.prepare import coco, images, img2dataset, instances, refcoco
from xtoolkit.prepare.official import BadRecord
from xtoolkit.prepare.writer import Options
from xtoolkit.data.datasets import Images
from xtoolkit.data.loader import Loader
from xtoolkit.weights.files import WeightsError, read_weights
from xtoolkit.registry import ConfigError

ROOT = Path(__file__).resolve().parent.parent


# ---- configurations --------------------------------------------------------------------------------------------------
def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)])


YAML = {
    "a call": ("train: !!python/object/apply:os.system ['touch {marker}']", "tag !!python/object/apply:os.system is"),
    "an object": ("train: !!python/object/new:subprocess.Popen [['touch', '{marker}']]", "is refused"),
    "a name": ("? !!python/name:os.system\n: 1", "tag !!python/name:os.system is refused"),
    "a tag of one's own": ("train: !env HOME", "tag !env is refused"),
    "bytes": ("train: !!binary aGVsbG8=", "tag !!binary is refused"),
    "an alias bomb": (bomb(12), "expands to more than 100,000 values"),
    "an alias of itself": ("train: &a [*a]", "an alias holds itself"),
    "deep brackets": ("train: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(1500)), "nested too deeply"),
    "a long number": ("train: " + "9" * 10_000, "is no int"),
    "a long hexadecimal": ("train: 0x" + "f" * 10_000, "is no int"),
    "control characters": ("train: \x00", "not YAML"),
}


@pytest.mark.parametrize("kind", YAML)
def test_a_hostile_configuration_is_one_line(kind, tmp_path, capsys):
    written, said = YAML[kind]
    path, marker = tmp_path / "recipe.yaml", tmp_path / "marker"
    path.write_text(written.replace("{marker}", str(marker)))
    assert tool("plan").main(["--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err) < 600 and "Traceback" not in err and not marker.exists()


def test_so_is_a_hostile_override_and_a_hostile_base(tmp_path):
    good, base = tmp_path / "good.yaml", tmp_path / "base.yaml"
    good.write_text("_BASE_: base.yaml\n")
    base.write_text("a: 1\n")
    with pytest.raises(ConfigError, match="override `a=!!python/name:os x`: tag !!python/name:os is refused"):
        config.load(str(good), ["a=!!python/name:os x"])
    base.write_text("a: !!python/name:os.system x\n")
    with pytest.raises(ConfigError, match=r"base.yaml:1: tag !!python/name:os.system is refused"):
        config.load(str(good))


# ---- weights ---------------------------------------------------------------------------------------------------------
def safetensors(header, data=b"\0" * 8, length=None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def zipped(value) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


WEIGHTS = {
    "a pickle.bin": lambda m: pickle.dumps(Runs(m)),
    "a pickle.safetensors": lambda m: pickle.dumps(Runs(m)),
    "a pickle in a dict.pt": lambda m: pickle.dumps({"w": torch.zeros(2), "x": Runs(m)}),
    "a zip that runs.pth": lambda m: zipped({"model": {"w": torch.zeros(2)}, "args": Runs(m)}),
    "a whole module.pt": lambda m: zipped(torch.nn.Linear(2, 2)),
    "strings.pt": lambda m: zipped({"w": "no tensor"}),
    "a list.pt": lambda m: zipped([torch.zeros(2)]),
    "a huge string.bin": lambda m: b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"x",
    "huge bytes.bin": lambda m: b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x",
    "huge memo.bin": lambda m: b"\x80\x04]r\xff\xff\xff\x7f.",
    "an empty stack.bin": lambda m: b"\x80\x04.",
    "empty.bin": lambda m: b"",
    "half a zip.pt": lambda m: zipped({"w": torch.zeros(100)})[:300],
    "noise.pt": lambda m: bytes(range(256)) * 4,
    "empty.safetensors": lambda m: b"",
    "a header longer than the file.safetensors": lambda m: safetensors({"w": tensor()}, length=2**60),
    "a negative header.safetensors": lambda m: safetensors({"w": tensor()}, length=2**64 - 1),
    "no json.safetensors": lambda m: safetensors(b"{" * 10),
    "a deep header.safetensors": lambda m: safetensors(b'{"a":' * 100_000),
    "data beyond the end.safetensors": lambda m: safetensors({"w": tensor((1000,), (0, 4000))}),
    "a shape that its bytes do not fill.safetensors": lambda m: safetensors({"w": tensor((1000,))}),
    "a shape that overflows.safetensors": lambda m: safetensors({"w": tensor((2**33, 2**33))}),
    "offsets backwards.safetensors": lambda m: safetensors({"w": tensor((2,), (8, 0))}),
    "tensors that overlap.safetensors": lambda m: safetensors({"w": tensor(), "v": tensor()}),
    "an unknown type.safetensors": lambda m: safetensors({"w": tensor(dtype="F33")}),
    "bytes that nobody names.safetensors": lambda m: safetensors({"w": tensor()}, b"\0" * 100),
    "no tensor.safetensors": lambda m: safetensors({}, b""),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_none_are_one_error(kind, tmp_path):
    file, marker = tmp_path / kind.replace(" ", "-"), tmp_path / "marker"
    file.write_bytes(WEIGHTS[kind](marker))
    with pytest.raises(WeightsError) as caught:
        read_weights(file)
    said = str(caught.value)
    assert str(file) in said and len(said.splitlines()) == 1 and len(said) < 600 + len(str(file))
    assert not marker.exists()


def test_a_pickle_as_init_ends_a_run_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))
    file, marker = tmp_path / "vision.pth", tmp_path / "marker"
    file.write_bytes(pickle.dumps(Runs(marker)))
    only = [f"{k}=null" for k in ("losses.mlm", "losses.bbp", "losses.itm", "losses.imlm", "losses.itc", "evaluate",
                                  "streams.text", "streams.region", "streams.pairs", "streams.match")]
    assert tool("train_net").main(["--config", TINY, *SMALL, *only, f"train.output={tmp_path / 'run'}",
                                   "train.steps=1", f"encoders.vision.init={file}"]) == 2
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0 and str(file) in err and "nothing in it was run" in err and not marker.exists()


@pytest.mark.parametrize("source", ["xfm", "beitv2", "roberta"])
def test_and_a_conversion(source, tmp_path, capsys):
    file, marker = tmp_path / "model.th", tmp_path / "marker"
    file.write_bytes(pickle.dumps(Runs(marker)))
    base, out = ROOT / "projects/xfm/base.yaml", tmp_path / "out.safetensors"
    assert tool("convert_checkpoint").main(["--config", str(base), "--from", source, str(file), str(out)]) == 2
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0 and str(file) in err and not marker.exists() and not out.exists()


# ---- tars ------------------------------------------------------------------------------------------------------------
def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_members_of_a_shard_that_lead_out_are_counted_and_not_read(tmp_path):
    members = [m for n in range(4) for m in [(f"{n}.jpg", jpeg()), (f"{n}.json", b'{"captions": ["a dog"]}')]]
    path = tar(tmp_path / "x.tar", members + outsiders(tmp_path) + [link("3.txt", "/etc/passwd")])
    data = Images(32, 8, path=path)
    loader = Loader("image", data, 4, 1, 0, max_bad=1.0)
    assert all(loader.at(visit).size == 4 for visit in range(3))
    assert set(loader.report()["bad"]) == {"refused member"} and loader.report()["bad"]["refused member"] >= 7
    loader.close()
    assert files_in(tmp_path) == ["x.tar", "x.tar.idx"]


@pytest.mark.parametrize("number", range(7))
def test_the_sample_pack_refuses_members_that_lead_out(number, tmp_path, monkeypatch):
    path = tar(tmp_path / "pack.tar", [("inside.txt", b"good"), outsiders(tmp_path / "elsewhere")[number]])
    packed = lzma.compress(Path(path).read_bytes())
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "pack.tar.xz").write_bytes(packed)
    about = {"archive": "pack.tar.xz", "sha256": hashlib.sha256(packed).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(about))
    monkeypatch.setattr(sample_pack, "FOLDER", folder)
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match="pack.tar.xz: refused: .* leads out of the archive"):
        sample_pack.ensure_sample_pack()
    assert not [f for f in files_in(tmp_path / "home") if not f.startswith(".")]
    assert not (tmp_path / "elsewhere").exists() and not list(tmp_path.glob("*.jpg"))


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("convert", [img2dataset.convert, images.convert], ids=["img2dataset", "images"])
def test_converters_refuse_members_that_lead_out(convert, number, tmp_path):
    bad = outsiders(tmp_path / "elsewhere")[number]
    name = bad.name if isinstance(bad, tarfile.TarInfo) else bad[0]
    members = [("0.jpg", jpeg()), ("0.json", b'{"caption": "a dog"}'), bad]
    (tmp_path / "in").mkdir()
    path = tar(tmp_path / "in" / "x.tar", members)
    given = [path] if convert is img2dataset.convert else tmp_path / "in"
    with pytest.raises(BadRecord) as caught:
        convert(given, Options(tmp_path / "out"))
    assert name in str(caught.value) and "leads out of the tar" in str(caught.value)
    report = convert(given, Options(tmp_path / "skipping", skip_bad=True))
    assert report.left_out["wrong records"][0] == 1
    assert not (tmp_path / "elsewhere").exists() and not list(tmp_path.glob("*.jpg"))


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "nul\0.jpg"])
def test_annotations_that_lead_out_of_the_pictures_are_refused(name, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    listed = [{"filename": name, "split": "train", "sentences": [{"raw": "a dog"}], "imgid": 0}]
    (tmp_path / "k.json").write_text(json.dumps({"images": listed}))
    record = {"id": 1, "file_name": name, "width": 40, "height": 30}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    annotated = {"images": [record], "annotations": [box], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "i.json").write_text(json.dumps(annotated))
    ref = {"ref_id": 1, "split": "train", "image_id": 1, "ann_id": 1, "sentences": [{"sent": "the dog"}]}
    (tmp_path / "r.json").write_text(json.dumps([ref]))
    out, pictures = Options(tmp_path / "out"), tmp_path / "pictures"
    for run in (lambda: coco.convert(tmp_path / "k.json", pictures, out),
                lambda: instances.convert(tmp_path / "i.json", pictures, out),
                lambda: refcoco.convert(tmp_path / "r.json", tmp_path / "i.json", pictures, out)):
        with pytest.raises(BadRecord, match="refused: .* leads out of the folder of pictures"):
            run()


@pytest.mark.parametrize("content", [
    pickle.dumps([1])[:-1], b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1), b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
    b"\x80\x04]r\xff\xff\xff\x7f.", b"\x80\x04.", b"", b"(" * 10**6, "runs"], ids=range(8))
def test_a_refer_pickle_runs_nothing(content, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps([Runs(marker)]) if content == "runs" else content)
    with pytest.raises(BadRecord, match=r"refs\(unc\).p"):
        refcoco.convert(file, tmp_path / "i.json", tmp_path, Options(tmp_path / "out"))
    assert not marker.exists()
