"""COCO's own captions, and tables of pictures: what comes out, what is said of damage; every converter goes on after a kill."""

import json
import multiprocessing
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from miniature import (ROWS, captions, downloaded, genome, good, gzipped, jpeg, karpathy, objects365, openimages, packed, parquet,
                       put, read, refer, shards, tables)

from xtoolkit.prepare import coco, images, img2dataset, instances, openimages as open_images, refcoco, spans, table, text, vg
from xtoolkit.prepare.official import BadFile, BadRecord
from xtoolkit.prepare.records import coco_id
from xtoolkit.prepare.writer import LinePart, Options, TarPart

# --- COCO's own captions -------------------------------------------------------------------------------------------

def test_cocos_own_captions_are_joined_to_their_pictures(tmp_path):
    report = coco.convert(*captions(tmp_path), Options(tmp_path / "out"))
    samples = read(tmp_path / "out/train-00000.tar")
    assert list(samples) == ["000000000139", "000000000009", "000000000025"]  # in the order of the list of pictures
    assert samples["000000000139"]["json"] == {"image_id": "coco-139", "captions": ["Thing 139 1.", "Thing 139 2."]}
    assert report.written["train"] == {"samples": 3, "captions": 6, "boxes": 0} and not report.left_out


@pytest.mark.parametrize("name, prefix", [("captions_val2014.json", "val"), ("captions_minival2014.json", "val"),
                                          ("captions_test2014.json", "test"), ("latest.json", "train")])
def test_the_name_of_the_file_tells_its_split(tmp_path, name, prefix):
    annotations, pictures = captions(tmp_path)
    coco.convert(annotations.rename(tmp_path / name), pictures, Options(tmp_path / "out"))
    assert shards(tmp_path / "out") == [f"{prefix}-00000.tar"]


def test_what_karpathy_evaluates_on_can_be_left_out_of_cocos_train2017(tmp_path):
    held, _ = karpathy(tmp_path, lambda r: r[2].update(cocoid=139))
    annotations, pictures = captions(tmp_path)
    for number, names in enumerate((None, {"train": "pairs"})):  # whatever its shards are called
        other = coco.convert(annotations, pictures, Options(tmp_path / f"out{number}"), names, coco.held_out(held))
        assert other.left_out["excluded pictures"][0] == 1
    report = coco.convert(annotations, pictures, Options(tmp_path / "out"), exclude=coco.held_out(held))
    assert sorted(read(tmp_path / "out/train-00000.tar")) == ["000000000009", "000000000025"]
    assert report.left_out["excluded pictures"] == [1, "captions_train2017.json: image 139 (000000000139.jpg)"]


@pytest.mark.parametrize("change, said", [
    (lambda f: f["annotations"][1].pop("image_id"), "annotation 1391: no key `image_id`"),
    (lambda f: f["annotations"][1].update(image_id="139"), "annotation 1391: `image_id` is \"139\""),
    (lambda f: f["annotations"][1].update(caption=5), "annotation 1391: `caption` is 5"),
    (lambda f: f["annotations"][1].update(caption=["a"]), r"annotation 1391: `caption` is \[\"a\"\]"),
    (lambda f: f["annotations"].append({"image_id": 7, "id": 1, "caption": "x"}), "image 7 has captions and is not in the list"),
    (lambda f: f["annotations"].append(3), "annotation 6: expected an object, found 3"),
    (lambda f: f["images"].append(f["images"][0]), "image 139: image 139 comes a second time"),
    (lambda f: f["images"].append({**f["images"][0], "id": 1.5}), "image 1.5: `id` is 1.5"),
    (lambda f: f["images"].append({"id": 1, "file_name": "../x.jpg"}), "image 1: refused: \"../x.jpg\" leads out"),
    (lambda f: f["annotations"].append({"image_id": 9, "id": 1, "caption": "half \ud83d"}), "annotation 1: half a character"),
])
def test_damage_in_cocos_own_captions_names_file_and_record(tmp_path, change, said):
    files = captions(tmp_path, change)
    with pytest.raises(BadRecord, match="captions_train2017.json: " + said):
        coco.convert(*files, Options(tmp_path / "out"))
    report = coco.convert(*files, Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["wrong records"][0] == 1 and report.written["train"]["samples"] >= 2


def test_a_picture_that_is_not_there_and_one_without_captions(tmp_path):
    annotations, pictures = captions(tmp_path, lambda f: f["annotations"].pop(0) and f["annotations"].pop(2))
    (pictures / "train2017/000000000139.jpg").unlink()
    with pytest.raises(BadRecord, match=r"image 139 \(000000000139.jpg\): .*No such file"):
        coco.convert(annotations, pictures, Options(tmp_path / "out"))
    report = coco.convert(annotations, pictures, Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["pictures without captions"] == [1, "captions_train2017.json: image 9 (000000000009.jpg)"]
    assert report.written["train"]["samples"] == 1


# --- tables --------------------------------------------------------------------------------------------------------

FORMS = ("csv", "csv of open_clip", "tsv", "jsonl", "jsonl.gz", "imagefolder", "parquet of paths", "parquet", "parquet of the hub")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_its_pictures_and_captions(tmp_path, form):
    root = None if form == "imagefolder" else tmp_path / "pictures"
    report = table.convert([tables(tmp_path)[form]], Options(tmp_path / "out"), table=table.Table(root=root))
    samples = list(read(tmp_path / "out/train-00000.tar").values())
    rows = [(name, [" ".join(caption.split())]) for name, caption in ROWS]
    if not form.startswith("parquet"):  # rows of one picture that are neighbours are one sample
        rows[:2] = [("a/one.jpg", ["a red dog", "a dog, red"])]
    assert [sample["json"]["captions"] for sample in samples] == [found for _, found in rows]
    for sample, (name, _) in zip(samples, rows):
        assert sample[name[-3:]] == (tmp_path / "pictures" / name).read_bytes()
    assert report.written["train"]["captions"] == 4 and not report.left_out
    assert len({sample["json"]["image_id"] for sample in samples}) == 3


def test_a_picture_is_known_by_what_it_shows_and_no_number_is_cocos_by_chance(tmp_path):
    for folder in "ab":
        table.convert([tables(tmp_path)["csv"]], Options(tmp_path / folder), table=table.Table(root=tmp_path / "pictures"))
    one, other = ({s["json"]["image_id"] for s in read(tmp_path / folder / "train-00000.tar").values()} for folder in "ab")
    assert one == other and len(one) == 3
    assert [coco_id(name) for name in ("000000000123.jpg", "x/COCO_train2014_000000000123.jpg", "123.jpg", "1000092795.jpg")] \
        == [123, 123, None, None]


def test_columns_are_guessed_or_named_never_taken_by_chance(tmp_path):
    row = {"image": "a.jpg", "path": "b.jpg", "alt": "a dog"}
    path = put(tmp_path / "t.jsonl", json.dumps(row).encode())
    put(tmp_path / "a.jpg", jpeg()), put(tmp_path / "b.jpg", jpeg(colour="blue"))
    for given, said in ((table.Table(), "t.jsonl: several columns may be meant, image, path; .*--image-column"),
                        (table.Table("path"), "no column captions, .*; it has image, path, alt: .*--text-column"),
                        (table.Table("path", "said"), "t.jsonl: no column said; it has image, path, alt")):
        with pytest.raises(BadFile, match=said):
            table.convert([path], Options(tmp_path / "out"), table=given)
    table.convert([path], Options(tmp_path / "out"), table=table.Table("path", "alt"))
    assert read(tmp_path / "out/train-00000.tar")["000000000"]["jpg"] == jpeg(colour="blue")
    path = parquet(tmp_path / "t.parquet", [row])
    with pytest.raises(BadFile, match="t.parquet: no column captions, .*; it has image, path, alt"):
        table.convert([path], Options(tmp_path / "out2"), table=table.Table("path"))


@pytest.mark.parametrize("name, data, said", [
    ("t.csv", b"image,caption\na.jpg,x\nno.jpg,y\n", "t.csv: line 3: .*no.jpg: No such file"),
    ("t.csv", b"image,caption\na.jpg,x\n../b.jpg,y\n", r'line 3: refused: "../b.jpg" leads out'),
    ("t.csv", b"image,caption\na.jpg,x\n/etc/b.jpg,y\n", r'line 3: refused: "/etc/b.jpg" leads out'),
    ("t.csv", b"image,caption\na.jpg,x\nhttps://x/b.jpg,y\n", "line 3: https://x/b.jpg is an address: download"),
    ("t.csv", b"image,caption\na.jpg,x\na.jpg\n", "t.csv: line 3: 1 columns, the heading has 2"),
    ("t.csv", b"image,caption\na.jpg,x\nb.jpg,\xe9t\xe9\n", "t.csv: line 3: not UTF-8: byte 0xe9 at 6"),
    ("t.jsonl", b'{"image": "a.jpg", "text": "x"}\n{"image": 5, "text": "y"}\n', "t.jsonl: line 2: `image` is 5"),
    ("t.jsonl", b'{"image": "a.jpg", "text": "x"}\n{"image": "a.jpg", "text": 5}\n', "line 2: the caption is 5, not text"),
    ("t.jsonl", b'{"image": "a.jpg", "text": "x"}\n{"image": "a.jpg", "text": ["y", 5]}\n', "line 2: the caption is 5, not"),
    ("t.jsonl", b'{"image": "a.jpg", "text": "x"}\n{"text": "y"}\n', "line 2: no key `image`"),
    ("t.jsonl", b'{"image": "a.jpg", "text": "x"}\n{"image": "a.jpg"\n', "line 2: broken JSON at column"),
    ("t.jsonl", b'{"image": "a.jpg", "text": "x"}\n[]\n', "line 2: expected an object"),
])
def test_damage_in_tables_names_file_and_row(tmp_path, name, data, said):
    put(tmp_path / "a.jpg", jpeg())
    path = put(tmp_path / name, data)
    with pytest.raises(BadRecord, match=said):
        table.convert([path], Options(tmp_path / "out"))
    report = table.convert([path], Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["wrong records"][0] == 1 and report.written["train"]["samples"] == 1


@pytest.mark.parametrize("rows, said", [
    ([{"image": jpeg(), "text": "x"}, {"image": None, "text": "y"}], "row 1: `image` is None, neither"),
    ([{"image": jpeg(), "text": "x"}, {"image": b"junk", "text": "y"}], "row 1: the picture: not a picture"),
    ([{"image": jpeg(), "text": "x"}, {"image": jpeg(), "text": None}], "row 1: the caption is null, not text"),
    ([{"image": {"bytes": jpeg(), "path": "a"}, "text": "x"}, {"image": {"bytes": None, "path": "../no.jpg"}, "text": "y"}],
     "row 1: refused: \"../no.jpg\" leads out"),
])
def test_damage_in_parquet_names_file_and_row(tmp_path, rows, said):
    path = parquet(tmp_path / "t.parquet", rows)
    with pytest.raises(BadRecord, match="t.parquet: " + said):
        table.convert([path], Options(tmp_path / "out"))
    report = table.convert([path], Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["wrong records"][0] == 1 and report.written["train"]["samples"] == 1


def test_a_table_that_is_none_is_named(tmp_path):
    for name, data, said in (("t.txt", b"x", "t.txt: not a table: its name must end in"),
                             ("t.csv", b"a,b\n1,2\n", "t.csv: no column image, .*; it has a, b: name one with --image-column"),
                             ("t.parquet", b"junk", "t.parquet: not a whole Parquet file")):
        with pytest.raises(BadFile, match=said):
            table.convert([put(tmp_path / name, data)], Options(tmp_path / "out", skip_bad=True))
    with pytest.raises(BadRecord, match="t.csv: line 2: broken CSV: unexpected end"):
        table.convert([put(tmp_path / "t.csv", b'image,caption\na.jpg,"x\n')], Options(tmp_path / "out"))
    with pytest.raises(BadFile, match="t.csv: prepare Parquet and other tables one after the other"):
        table.convert([tmp_path / "t.csv", tmp_path / "t.parquet"], Options(tmp_path / "out"))


@pytest.mark.parametrize("span", [1, 100, 500])
def test_a_parquet_file_that_is_cut_gives_each_row_once(tmp_path, monkeypatch, span):
    path = parquet(tmp_path / "t.parquet", [{"image": jpeg(colour=(n, 0, 0)), "text": f"text {n}"} for n in range(7)])
    monkeypatch.setattr(spans, "SPAN", span)
    table.convert([path], Options(tmp_path / "out"))
    found = [s["json"]["captions"][0] for name in shards(tmp_path / "out") for s in read(tmp_path / "out" / name).values()]
    assert found == [f"text {n}" for n in range(7)] and len(shards(tmp_path / "out")) == 4  # one a row group
    text.convert([path], Options(tmp_path / "text"))
    lines = [json.loads(line)["text"] for name in shards(tmp_path / "text") for line in (tmp_path / "text" / name).open()]
    assert lines == found


def test_the_tables_of_the_page_are_prepared_by_its_commands(tmp_path, monkeypatch, capsys):
    from xtoolkit.cli import prepare

    page = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text()
    section = page[page.index("**Tables.**"):page.index("All take `--workers`")]
    put(tmp_path / "raw/pairs.csv", re.search(r"```csv\n(.*?)```", section, re.S)[1].encode())
    put(tmp_path / "raw/birds/metadata.jsonl", re.search(r"```jsonl\n(.*?)```", section, re.S)[1].encode())
    for name in ("pictures/train/0001.jpg", "pictures/train/0002.png", "birds/0001.jpg"):
        put(tmp_path / "raw" / name, jpeg(kind="PNG" if name.endswith("png") else "JPEG"))
    parquet(tmp_path / "raw/flickr30k/0.parquet", [{"image": {"bytes": jpeg(), "path": "1.jpg"}, "alt_text": ["a", "b"], "n": 1}])
    monkeypatch.chdir(tmp_path)
    commands = [line for line in re.search(r"```bash\n(.*?)```", section, re.S)[1].splitlines() if line]
    for line in commands:
        assert prepare.main([*shlex.split(line)[2:], "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "train: 2 samples, 3 captions" in said and "birds: 1 samples, 1 captions" in said and "flickr: 1 samples, 2" in said
    assert len(commands) == 3 and all(f"`{name}`" in section for name in (*table.IMAGE, *table.TEXT))


# --- killed and resumed --------------------------------------------------------------------------------------------

def genome_of(root):
    files = genome(root)
    return lambda options: vg.convert(files["image_data"], files["region_descriptions"], root / "vg", options)


def refer_of(root):
    files = refer(root)
    return lambda options: refcoco.convert(*files, options)


def downloads(root):
    made = [downloaded(root / f"{n}.tar", {f"{n:09d}": good(n)}) for n in range(3)]
    return lambda options: img2dataset.convert(made, options)


def texts(root):
    made = [gzipped(root / f"{n}.json.gz", [{"text": f"text {n}"}]) for n in range(3)]
    return lambda options: text.convert(made, options)


def pictures(root):
    packed(root / "in/a.tar", {f"{n}.png": jpeg(colour=(n, 9, 9), kind="PNG") for n in range(3)})
    return lambda options: images.convert(root / "in", options)


def of(convert, make):
    def prepare(root):
        files = make(root)
        return lambda options: convert(*files, options)
    return prepare


def table_of(form):
    def prepare(root):
        path = tables(root)[form]
        return lambda options: table.convert([path], options, table=table.Table(root=root / "pictures"))
    return prepare


KILLED = {"karpathy": of(coco.convert, karpathy), "captions": of(coco.convert, captions), "vg": genome_of, "refcoco": refer_of,
          "objects": of(instances.convert, objects365), "openimages": of(open_images.convert, openimages),
          "img2dataset": downloads, "images": pictures, "text": texts, "csv": table_of("csv"), "parquet": table_of("parquet")}


@pytest.mark.parametrize("name", KILLED)
def test_a_conversion_that_is_killed_goes_on_and_gives_what_an_unbroken_one_gives(tmp_path, monkeypatch, name):
    monkeypatch.setattr(spans, "SPAN", 1)
    monkeypatch.setattr(img2dataset, "SPAN", 1, raising=False)
    convert = KILLED[name](tmp_path)
    convert(Options(tmp_path / "whole", shard_size=1))
    whole, count = shards(tmp_path / "whole"), []

    def counted(write, limit):
        def call(part, *args):
            if len(count) == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            count.append(1)
            return write(part, *args)
        return call

    def killed():
        last = len(whole) - 1
        TarPart.write, LinePart.write = counted(TarPart.write, last), counted(LinePart.write, last)
        convert(Options(tmp_path / "out", shard_size=1))

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start(), child.join()
    assert child.exitcode == -signal.SIGKILL and shards(tmp_path / "out") == []
    monkeypatch.setattr(TarPart, "write", counted(TarPart.write, None))
    monkeypatch.setattr(LinePart, "write", counted(LinePart.write, None))
    convert(Options(tmp_path / "out", shard_size=1))
    assert len(whole) > 1 and len(count) == (2 if name == "parquet" else 1), "what was done is not made again"
    for shard in whole:
        assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "whole" / shard).read_bytes()
