"""Releases and downloads as people have them: saved by other programs, put together by hand, half of another release."""

import codecs
import gzip
import io
import json
import tarfile

import pytest

from prepare.miniature import captions, downloaded, genome, good, jpeg, karpathy, objects365, openimages, packed, put, read, refer, shards
from xtoolkit.cli import prepare
from xtoolkit.prepare import coco, images, img2dataset, instances, openimages as open_images, refcoco, table, text, vg
from xtoolkit.prepare.official import BadFile, BadRecord
from xtoolkit.prepare.writer import Options


def told(capsys, *words) -> str:
    """The one line of a command that ends with 1."""
    assert prepare.main([*map(str, words), "--workers", "1"]) == 1
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xtoolkit prepare: ")]
    assert len(line) == 1 and "Traceback" not in line[0]
    return line[0]


# ---- encodings -------------------------------------------------------------------------------------------------------
def sources(root):
    """Every converter whose input is text: {name: (file, convert)}."""
    annotations, folder = karpathy(root)
    own, _ = captions(root)
    files, (refs, found, _), objects = genome(root), refer(root), objects365(root)
    refs = put(root / "refs.json", json.dumps([
        {"ref_id": 0, "image_id": 1, "ann_id": 11, "split": "train", "sentences": [{"sent": "it"}]}]).encode())
    boxes, classes, places = openimages(root)
    rows = put(root / "rows.csv", b"image,caption\nCOCO_train2014_000000000001.jpg,x\n")
    lines = put(root / "lines.jsonl", b'{"text": "x"}\n')
    plain = put(root / "plain.txt", b"first\nsecond\n")
    convert_vg = lambda out: vg.convert(files["image_data"], files["region_descriptions"], root / "vg", out, files["objects"],
                                        files["attributes"])
    return {
        "coco": (annotations, lambda out: coco.convert(annotations, folder, out)),
        "captions": (own, lambda out: coco.convert(own, folder, out)),
        **{name: (path, convert_vg) for name, path in files.items()},
        "refs": (refs, lambda out: refcoco.convert(refs, found, folder, out)),
        "instances": (found, lambda out: refcoco.convert(refs, found, folder, out)),
        "objects": (objects[0], lambda out: instances.convert(*objects, out)),
        "boxes": (boxes, lambda out: open_images.convert(boxes, classes, places, out)),
        "classes": (classes, lambda out: open_images.convert(boxes, classes, places, out)),
        "csv": (rows, lambda out: table.convert([rows], out, table=table.Table(root=folder / "train2014"))),
        "jsonl": (lines, lambda out: text.convert([lines], out)),
        "txt": (plain, lambda out: text.convert([plain], out)),
    }


NAMES = ("coco", "captions", "image_data", "region_descriptions", "objects", "attributes", "refs", "instances", "boxes", "classes",
         "csv", "jsonl", "txt")


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_order_mark_changes_nothing(name, tmp_path):
    path, convert = sources(tmp_path)[name]
    plain = convert(Options(tmp_path / "plain")).as_dict()
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert convert(Options(tmp_path / "marked")).as_dict() == plain and plain["written"]
    for shard in shards(tmp_path / "plain"):
        assert (tmp_path / "marked" / shard).read_bytes() == (tmp_path / "plain" / shard).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_another_encoding_is_one_line_or_counted(name, tmp_path):
    path, convert = sources(tmp_path)[name]
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(BadRecord, match=rf"{path.name}.*UTF-16.*iconv -f utf-16"):
        convert(Options(tmp_path / "out"))
    path, convert = sources(tmp_path)[name]
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\xe9" + whole[-4:])  # é of Latin-1, near the end
    with pytest.raises(BadRecord, match=rf"{path.name}.*not UTF-8: byte 0xe9 at [0-9]+; (it is|convert it)"):
        convert(Options(tmp_path / "out"))


def test_latin_1_lines_are_counted_and_the_others_kept(tmp_path):
    path = put(tmp_path / "a.txt", "one\ncafé\ntwo\n".encode("latin-1"))
    report = text.convert([path], Options(tmp_path / "out", skip_bad=True))
    assert report.written["train"]["samples"] == 2
    assert report.left_out["wrong records"] == [
        1, "a.txt: line 2: not UTF-8: byte 0xe9 at 3; convert it: `iconv -f latin1 -t utf-8`"]


def test_marks_and_encodings_inside_a_download(tmp_path):
    info = codecs.BOM_UTF8 + json.dumps({"caption": "a thing", "status": "success"}).encode()
    tar = downloaded(tmp_path / "0.tar", {"0": {"jpg": jpeg(), "json": info}, "1": {"jpg": jpeg(), "txt": codecs.BOM_UTF8 + b"a dog"}})
    img2dataset.convert([tar], Options(tmp_path / "out"))
    assert [s["json"]["captions"] for s in read(tmp_path / "out/train-00000.tar").values()] == [["a thing"], ["a dog"]]
    tar = downloaded(tmp_path / "1.tar", {"0": {"jpg": jpeg(), "txt": "un café".encode("latin-1")}})
    with pytest.raises(BadRecord, match="1.tar: 0.txt: not UTF-8: byte 0xe9 at 6"):
        img2dataset.convert([tar], Options(tmp_path / "out2"))


# ---- types of fields -------------------------------------------------------------------------------------------------
def test_an_id_written_as_text_lets_no_held_out_picture_through(tmp_path):
    held, _ = karpathy(tmp_path)
    files = genome(tmp_path, image_data=lambda r: r[1].update(coco_id="4"))
    convert = lambda **more: vg.convert(files["image_data"], files["region_descriptions"], tmp_path / "vg",
                                        Options(tmp_path / "out", **more), exclude=coco.held_out(held))
    with pytest.raises(BadRecord, match='image_data.json: record 1: `coco_id` is "4"'):
        convert()
    convert(skip_bad=True)
    assert sorted(read(tmp_path / "out/train-00000.tar")) == ["7", "9"]


@pytest.mark.parametrize("file, edit, said", [
    ("attributes", lambda r: r[0]["attributes"][0].update(attributes="red"), '`attributes` is "red"'),
    ("attributes", lambda r: r[0]["attributes"][0].update(attributes=[1]), r"`attributes` is \[1\]"),
    ("attributes", lambda r: r[0]["attributes"][0].update(object_id="700"), '`object_id` is "700"'),
    ("objects", lambda r: r[2]["objects"][0].update(names="dog"), '`names` is "dog"'),
    ("objects", lambda r: r[2]["objects"][0].update(object_id=[7]), r"`object_id` is \[7\]"),
    ("objects", lambda r: r[2]["objects"][0].update(x="5"), '`x` is "5"'),
    ("region_descriptions", lambda r: r[0]["regions"][0].update(phrase=5), "`phrase` is 5"),
    ("region_descriptions", lambda r: r[0].update(regions={"0": {}}), "`regions` is "),
    ("image_data", lambda r: r[0].update(coco_id=1.0), "`coco_id` is 1.0"),
    ("image_data", lambda r: r[0].update(coco_id=True), "`coco_id` is true"),
])
def test_fields_of_visual_genome_have_types(file, edit, said, tmp_path):
    files = genome(tmp_path, **{file: edit})
    with pytest.raises(BadRecord, match=rf"^{file}.json: .*{said}"):
        vg.convert(files["image_data"], files["region_descriptions"], tmp_path / "vg", Options(tmp_path / "out"), files["objects"],
                   files["attributes"])


@pytest.mark.parametrize("crowd, said", [("0", "`iscrowd` is '0'"), ([], r"`iscrowd` is '\[\]'"), (2, "`iscrowd` is '2'")])
def test_a_crowd_is_0_or_1(crowd, said, tmp_path):
    files = objects365(tmp_path, lambda f: f["annotations"][0].update(iscrowd=crowd))
    with pytest.raises(BadRecord, match=f"annotation 5: {said}"):
        instances.convert(*files, Options(tmp_path / "out"))


def test_a_group_of_open_images_is_0_or_1(tmp_path):
    files = openimages(tmp_path, lambda rows: rows.__setitem__(2, rows[2].replace(",0,0,0,0.1", ",True,0,0,0.1")))
    with pytest.raises(BadRecord, match="line 3: image 000002b66c9c498e: IsGroupOf is 'True'"):
        open_images.convert(*files, Options(tmp_path / "out"))


@pytest.mark.parametrize("change, said", [
    ({"split": ["val"]}, '`split` is \\["val"\\]'), ({"split": "dev"}, "unknown split 'dev'"), ({"cocoid": "3"}, '`cocoid` is "3"'),
    ({"split": None}, "`split` is null")])
def test_a_list_of_what_must_not_be_seen_is_read_whole_or_not_at_all(change, said, tmp_path, capsys):
    held, _ = karpathy(tmp_path, lambda r: r[2].update(change))
    files = genome(tmp_path)
    line = told(capsys, "vg", "--image-data", files["image_data"], "--regions", files["region_descriptions"], "--images",
                tmp_path / "vg", "--exclude-coco-karpathy", held, "--out", tmp_path / "out", "--skip-bad")
    assert "dataset_coco.json: image " in line and "--skip-bad` counts" not in line
    with pytest.raises(BadFile, match=said):
        coco.held_out(held)


def test_a_renumbered_file_is_known_by_the_names_of_its_pictures(tmp_path):
    def renumber(found):
        for n, image in enumerate(found["images"]):
            found["annotations"] = [{**a, "image_id": n} if a["image_id"] == image["id"] else a for a in found["annotations"]]
            image["id"], image["file_name"] = n, f"train2017/{image['file_name']}"
    files = captions(tmp_path, renumber)
    coco.convert(*files, Options(tmp_path / "out"), exclude=frozenset({139}))
    assert [s["json"]["image_id"] for s in read(tmp_path / "out/train-00000.tar").values()] == ["coco-9", "coco-25"]


# ---- commands --------------------------------------------------------------------------------------------------------
def test_a_split_that_there_is_not_is_one_line_with_the_nearest(tmp_path, capsys):
    refs, found, pictures = refer(tmp_path)
    line = told(capsys, "refcoco", "--refs", refs, "--instances", found, "--images", pictures, "--out", tmp_path / "out",
                "--splits", "testa")
    assert line == ("xtoolkit prepare: refs(unc).p: no split `testa` in it; it has testA, train; did you mean `testA`?")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["00000.tar.gz", "00000.tgz", "00000.TAR.GZ"])
def test_a_folder_of_compressed_tars_says_how_to_unpack_them(name, tmp_path, capsys):
    put(tmp_path / "raw" / name, gzip.compress(downloaded(tmp_path / "x.tar", {"0": good(0)}).read_bytes()))
    for shards_ in (tmp_path / "raw", tmp_path / "raw" / name):
        line = told(capsys, "img2dataset", "--shards", shards_, "--out", tmp_path / "out")
        assert f"{name}: a compressed archive cannot be read at any place: unpack it, `" in line


def test_boxes_given_for_captions_and_the_other_way_round(tmp_path):
    own, folder = captions(tmp_path)
    with pytest.raises(BadFile, match="captions_train2017.json: no key `categories`"):
        instances.convert(own, folder, Options(tmp_path / "out"))
    boxes, _ = objects365(tmp_path)
    with pytest.raises(BadRecord, match="zhiyuan_objv2_train.json: annotation 5: no key `caption`"):
        coco.convert(boxes, folder, Options(tmp_path / "out"))


# ---- names, tars, pictures -------------------------------------------------------------------------------------------
def pairs(name, count, ending="jpg", kind="JPEG"):
    return {name.format(n): {ending: jpeg(colour=(n, 9, 9), kind=kind), "txt": f"text {n}".encode()} for n in range(count)}


def count(tar, out) -> int:
    return img2dataset.convert([tar], Options(out)).written["train"]["samples"]


def test_names_with_dots_are_samples_of_their_own(tmp_path):
    tar = downloaded(tmp_path / "0.tar", {**pairs("pic{:03d}", 4), **pairs("pic{:03d}.v1", 4), **pairs("2024.01.{:02d}", 4)})
    assert count(tar, tmp_path / "out") == 12
    for name, files in pairs("a.b.{}", 3).items():
        for ending, data in files.items():
            put(tmp_path / f"files/00000/{name}.{ending}", data)
    assert count(tmp_path / "files", tmp_path / "out2") == 3


def test_tars_put_one_behind_the_other_are_read_through(tmp_path):
    a, b = (downloaded(tmp_path / f"{n}.tar", pairs(n + "{:04d}", 5)) for n in "ab")
    whole = put(tmp_path / "cat.tar", a.read_bytes() + b.read_bytes() + a.read_bytes()[:0] + b"\0" * 4096)
    assert count(whole, tmp_path / "out") == 10
    assert images.convert(whole, Options(tmp_path / "images")).written["train"]["samples"] == 10
    put(whole, a.read_bytes() + b"<html>404</html>" * 200)
    with pytest.raises(BadRecord, match="cat.tar: broken after a0004.txt: no header at byte"):
        count(whole, tmp_path / "out2")
    report = img2dataset.convert([whole], Options(tmp_path / "out2", skip_bad=True))
    assert report.written["train"]["samples"] == 5


def test_a_sample_that_was_added_again_is_the_last_one(tmp_path):
    tar = downloaded(tmp_path / "0.tar", pairs("{:04d}", 3))
    with tarfile.open(tar, "a") as more:
        entry = tarfile.TarInfo("0001.txt")
        entry.size = 3
        more.addfile(entry, io.BytesIO(b"new"))
    report = img2dataset.convert([tar], Options(tmp_path / "out"))
    found = [s["json"]["captions"] for s in read(tmp_path / "out/train-00000.tar").values()]
    assert found == [["text 0"], ["new"], ["text 2"]]
    assert report.changed["names that come twice: the last counts"] == [1, "0.tar: 0001.txt"]


@pytest.mark.parametrize("ending, kind", [("gif", "GIF"), ("bmp", "BMP"), ("tiff", "TIFF"), ("ppm", "PPM"), ("JFIF", "JPEG"), ("tga", "TGA")])
def test_every_format_is_a_picture(ending, kind, tmp_path):
    assert count(downloaded(tmp_path / "0.tar", pairs("{:04d}", 2, ending, kind)), tmp_path / "out") == 2
    put(tmp_path / f"in/x.{ending}", jpeg(kind=kind))
    assert images.convert(tmp_path / "in", Options(tmp_path / "images")).written["train"]["samples"] == 1


@pytest.mark.parametrize("data, said", [
    (b"<html>404</html>" * 400, "0.tar: broken after its beginning"), (b"", "0.tar: broken after its beginning: empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "0.tar: broken after its beginning"),
])
def test_what_is_no_tar_is_named(data, said, tmp_path):
    put(tmp_path / "in/0.tar", data)
    for convert in (lambda out: img2dataset.convert([tmp_path / "in/0.tar"], out), lambda out: images.convert(tmp_path / "in", out)):
        with pytest.raises(BadRecord, match=said):
            convert(Options(tmp_path / "out"))


@pytest.mark.parametrize("info, said", [
    ({"caption": 5}, "0.tar: 0: the caption is 5, not text"), ({"caption": ["a"]}, r"0.tar: 0: the caption is \[\"a\"\], not text"),
    ({"caption": "a", "status": 1}, "0.tar: 0: `status` is 1"), ([1], "0.tar: 0.json: expected an object")])
def test_what_a_download_says_has_types(info, said, tmp_path):
    tar = downloaded(tmp_path / "0.tar", {"0": {"jpg": jpeg(), "json": info, "txt": b"words"}})
    with pytest.raises(BadRecord, match=said):
        img2dataset.convert([tar], Options(tmp_path / "out"))


def test_a_tar_whose_sizes_lead_backwards_ends(tmp_path):
    tar = packed(tmp_path / "0.tar", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    data = bytearray(tar.read_bytes())
    data[124:136] = b"\xff" * 8 + (-4096).to_bytes(4, "big", signed=True)  # a size below 0, as base 256 can say it
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    put(tar, bytes(data))
    with pytest.raises(BadRecord, match="0.tar: broken after"):
        img2dataset.convert([tar], Options(tmp_path / "out"))


def test_another_picture_of_the_same_last_name_is_never_taken(tmp_path):
    put(tmp_path / "in/1.jpg", jpeg(colour="blue"))
    rows = put(tmp_path / "in/rows.csv", b"image,caption\nval/1.jpg,x\n")
    with pytest.raises(BadRecord, match="rows.csv: line 2: .*val/1.jpg: No such file"):
        table.convert([rows], Options(tmp_path / "out"))
    annotations, folder = objects365(tmp_path)
    name = "patch8/objects365_v1_00420917.jpg"
    put(folder / "objects365_v2_00908726.jpg", (folder / "patch16/objects365_v2_00908726.jpg").read_bytes())
    put(folder / "images/v1" / name, (folder / name).read_bytes())
    put(folder / name, jpeg(colour="blue"))  # the whole name, which is there too, comes first
    instances.convert(annotations, folder, Options(tmp_path / "out"))
    assert read(tmp_path / "out/train-00000.tar")["000000420917"]["jpg"] == (folder / "images/v1" / name).read_bytes()
