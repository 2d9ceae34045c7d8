"""The committed sample pack: it is what its manifest says, and unpacks whole or not at all."""

import collections
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from PIL import Image

from xtoolkit.prepare import sample_pack

UNPACK = "from xtoolkit.prepare.sample_pack import ensure_sample_pack; print(ensure_sample_pack())"


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """The pack, unpacked into a home of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTOOLKIT_HOME", str(tmp_path_factory.mktemp("home")))
        return sample_pack.ensure_sample_pack()


@pytest.fixture(scope="session")
def about():
    return sample_pack.manifest()


def load(pack, name):
    return json.loads((pack / name).read_bytes())


def start(home):
    return subprocess.Popen([sys.executable, "-c", UNPACK], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "XTOOLKIT_HOME": str(home)})


# -- the archive and its unpacking


def test_archive_is_what_the_manifest_says(about):
    data = (sample_pack.FOLDER / about["archive"]).read_bytes()
    assert len(data) == about["size"] < 8_000_000
    assert hashlib.sha256(data).hexdigest() == about["sha256"]
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        members = tar.getmembers()
        found = {m.name: hashlib.sha256(tar.extractfile(m).read()).hexdigest() for m in members}
    assert found == about["files"]
    owners = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isfile()) for m in members}
    assert owners == {(0, 0, 0, "", "", 0o644, True)}


def test_notice_and_licences_are_in_the_package_and_in_the_pack(pack, about):
    texts = [name for name in about["files"] if name == "NOTICE" or name.startswith("licenses/")]
    assert {"NOTICE", "licenses/Apache-2.0.txt", "licenses/CC-BY-4.0.txt", "licenses/WordNet.txt"} <= set(texts)
    for name in texts:
        assert (sample_pack.FOLDER / name).read_bytes() == (pack / name).read_bytes()
    notice = (pack / "NOTICE").read_text()
    for word in ("Noto", "Fluent", "Twemoji", "EmojiTwo", "FxEmojis", "WordNet", "WordSim", "Getty"):
        assert word in notice


def test_unpacking_again_changes_nothing(pack, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in pack.rglob("*")}
    monkeypatch.setenv("XTOOLKIT_HOME", str(pack.parent))
    assert sample_pack.ensure_sample_pack() == pack
    assert {path: path.stat().st_mtime_ns for path in pack.rglob("*")} == before


def test_two_processes_at_once_get_one_whole_pack(tmp_path, about):
    both = [start(tmp_path), start(tmp_path)]
    places = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert places == {str(tmp_path / f"picturebook-{about['sha256'][:8]}")}
    assert_whole(places.pop(), about)


def test_a_killed_process_leaves_nothing_that_is_taken_for_the_pack(tmp_path, about):
    process = start(tmp_path)
    target = tmp_path / f"picturebook-{about['sha256'][:8]}"
    partial = tmp_path / f".{target.name}.partial"
    while process.poll() is None and not (partial / "coco").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not target.exists(), "the kill came too late to show anything"
    process = start(tmp_path)
    assert process.communicate()[0].strip() == str(target)
    assert not partial.exists()
    assert_whole(target, about)


def assert_whole(folder, about):
    folder = str(folder)
    for name, digest in about["files"].items():
        with open(os.path.join(folder, name), "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest, name
    assert os.path.exists(os.path.join(folder, "refcoco+", "refs(unc).p"))
    assert sorted(p for p in os.listdir(os.path.dirname(folder)) if p.endswith(".partial")) == []


def test_a_changed_archive_is_refused_by_name(tmp_path, monkeypatch, about):
    monkeypatch.setenv("XTOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sample_pack, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"MANIFEST\.json: not in this copy .*git checkout"):
        sample_pack.ensure_sample_pack()
    (tmp_path / "MANIFEST.json").write_text(json.dumps(about))
    (tmp_path / about["archive"]).write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"picturebook-v1\.tar\.xz: its sha256 is .*git checkout"):
        sample_pack.ensure_sample_pack()
    assert list((tmp_path / "home").glob("picturebook-*")) == []


def test_files_are_copied_where_hard_links_are_not_to_be_had(tmp_path, monkeypatch, pack):
    def refused(source, name):
        raise OSError("no links here")

    monkeypatch.setattr(sample_pack.os, "link", refused)
    sample_pack.same(pack / "NOTICE", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == (pack / "NOTICE").read_bytes()


# -- pictures and splits


def test_counts_are_those_of_the_manifest(pack, about):
    counts = about["counts"]
    images = load(pack, "coco/dataset_coco.json")["images"]
    assert collections.Counter(i["split"] for i in images) == counts["images"]
    assert counts["images"] == {"train": 1600, "val": 200, "test": 250}
    assert sum(len(i["sentences"]) for i in images) == counts["captions"] == 10_250
    assert {len({s["raw"] for s in i["sentences"]}) for i in images} == {5}
    assert sum(len(r["regions"]) for r in load(pack, "vg/region_descriptions.json")) == counts["regions"] > 7_000
    refs = load(pack, "refcoco+/refs(unc).json")
    assert collections.Counter(ref["split"] for ref in refs) == counts["refs"]
    for name, split in (("train2014", "train"), ("val2014", "val"), ("test2015", "test")):
        questions = load(pack, f"vqa/v2_OpenEnded_mscoco_{name}_questions.json")["questions"]
        answers = load(pack, f"vqa/v2_mscoco_{name}_annotations.json")["annotations"]
        assert [q["question_id"] for q in questions] == [a["question_id"] for a in answers]
        assert len(questions) == counts["vqa"][split]
        assert {len(a["answers"]) for a in answers} == {10}
    for split in ("train", "val"):
        assert len(list((pack / "imagenet" / split).glob("*/*.jpg"))) == counts["imagenet"][split]
        classes = {p.name for p in (pack / "imagenet" / split).iterdir()}
        assert len(classes) == counts["imagenet"]["classes"]


def test_pictures_open_and_none_is_in_two_places(pack):
    seen = {}
    for path in sorted([*pack.glob("coco/images/*/*.jpg"), *pack.glob("imagenet/*/*/*.jpg")]):
        data = path.read_bytes()
        other = seen.setdefault(hashlib.sha256(data).digest(), path)
        assert other is path, f"{path} and {other} are one picture"
        image = Image.open(io.BytesIO(data))
        image.load()
        assert image.size == ((96, 96) if "coco" in path.parts else (64, 64)) and image.mode == "RGB"


def test_web_shards_are_img2datasets(pack, about):
    for name in ("openclipart", "icons"):
        with tarfile.open(pack / "web" / f"{name}-00000.tar") as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar}
        keys = [key.partition(".")[0] for key in files]
        assert keys == sorted(keys) and len(keys) == 3 * about["counts"][f"web/{name}"]
        for key in dict.fromkeys(keys):
            info = json.loads(files[f"{key}.json"])
            caption = files[f"{key}.txt"].decode()
            assert info["key"] == key and info["status"] == "success" and info["caption"] == caption.strip() != ""
            assert Image.open(io.BytesIO(files[f"{key}.jpg"])).size == (info["width"], info["height"])
            assert not re.search(r"[#|@]|&\w+;|https?:", caption), caption


def test_glue_tables_have_the_official_columns(pack, about):
    heads = {"SST-2": ["sentence", "label"], "RTE": ["index", "sentence1", "sentence2", "label"],
             "STS-B": ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1",
                       "sentence2", "score"]}
    for task, sizes in ((task, about["counts"][f"glue/{task}"]) for task in ("SST-2", "CoLA", "RTE", "STS-B")):
        seen = set()
        for split, size in sizes.items():
            rows = [line.split("\t") for line in (pack / "glue" / task / f"{split}.tsv").read_text().splitlines()]
            if split != "test" and task == "CoLA":
                assert {len(row) for row in rows} == {4}
                assert {(row[1], row[2]) for row in rows} == {("1", ""), ("0", "*")}
            elif split != "test":
                assert rows.pop(0) == heads[task]
            else:
                assert rows.pop(0)[0] == "index"
                labels = (pack / "glue" / task / "test_labels.tsv").read_text().splitlines()[1:]
                assert len(labels) == len(rows)
            assert len(rows) == size
            texts = {row[-1] if task == "CoLA" or split == "test" else row[-2] for row in rows}
            if task in ("CoLA", "RTE"):
                assert not texts & seen
                seen |= texts


def test_tokenizer_is_robertas_kind(pack):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(str(pack / "tokenizer"))
    assert "Roberta" in type(tokenizer).__name__ and len(tokenizer) == 4000
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 3999]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.mask_token_id == 3999
    text = "A Dog to the left of two jack-o-lanterns, caf\u00e9!"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2 and 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a dog")["input_ids"]) == ["<s>", "a", "\u0120dog", "</s>"]
    assert tokenizer("a <mask> dog")["input_ids"].count(3999) == 1
