"""The large releases: Objects365, Open Images, img2dataset's three forms, class tars, Parquet; and damage to each."""

import os
import sys
import zlib

import pytest
from miniature import downloaded, good, jpeg, objects365, openimages, packed, parquet, put, read, shards, stats

from xtoolkit.prepare import images, img2dataset, instances, openimages as open_images, text
from xtoolkit.prepare.official import BadFile, BadRecord
from xtoolkit.prepare.writer import Options

# --- Objects365 ----------------------------------------------------------------------------------------------------

def test_objects365_finds_its_pictures_in_patches_and_splits_double_names(tmp_path):
    report = instances.convert(*objects365(tmp_path), Options(tmp_path / "out"), exclude=frozenset({420917}))
    samples = read(tmp_path / "out/train-00000.tar")
    assert list(samples) == ["000000420917", "000000908726"]  # an id of COCO's to leave out is none of its own
    assert samples["000000420917"]["json"] == {"image_id": "objects365-420917", "width": 40, "height": 30,
                                               "regions": [{"box": [1.5, 2, 10.25, 8], "caption": "Person"}]}
    assert [r["caption"] for r in samples["000000908726"]["json"]["regions"]] == [["Cabinet", "shelf"], "Person"]
    assert report.left_out["boxes around crowds"][0] == 1
    assert report.written["train"] == {"samples": 2, "captions": 4, "boxes": 3}


def test_objects365_pictures_may_lie_flat_or_under_their_whole_names(tmp_path):
    annotations, folder = objects365(tmp_path)
    names = ("images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg")
    for name in names:
        data = (folder / name.split("/", 2)[2]).read_bytes()
        put(tmp_path / "flat" / os.path.basename(name), data), put(tmp_path / "whole" / name, data)
    for root in (folder, tmp_path / "flat", tmp_path / "whole"):
        instances.convert(annotations, root, Options(tmp_path / root.name / "out"))
    first, *others = [(tmp_path / name / "out/train-00000.tar").read_bytes() for name in ("train", "flat", "whole")]
    assert all(other == first for other in others)


@pytest.mark.parametrize("change, said", [
    (lambda f: f["annotations"][1].pop("bbox"), "annotation 6: no key `bbox`"),
    (lambda f: f["annotations"][1].update(bbox=[1, 2, 3, "4"]), r"annotation 6: box .* is not four numbers"),
    (lambda f: f["annotations"][1].update(bbox=[1, 2, 3, float("nan")]), r"annotation 6: box .* is not four numbers"),
    (lambda f: f["annotations"][1].update(category_id=366), "annotation 6: category 366 is not in the list"),
    (lambda f: f["annotations"][1].update(image_id=7), "annotation 6: image 7 is not in the list of images"),
    (lambda f: f["annotations"][1].update(image_id="7"), "annotation 6: `image_id` is \"7\""),
    (lambda f: f["annotations"].append(None), "annotation 4: expected an object, found null"),
    (lambda f: f["images"].append(f["images"][0]), "images: record 2: image 420917 comes a second time"),
    (lambda f: f["images"].append({**f["images"][0], "id": 1, "width": None}), "images: record 2: `width` is null"),
    (lambda f: f["images"][0].update(height=31), "images: record 0 .* is 40x30, its annotations are for 40x31"),
    (lambda f: f["images"][0].update(file_name="patch8/none.jpg"), "images: record 0 .*none.jpg: No such file"),
    (lambda f: f["categories"].append({"name": "Cat", "id": 2}), "categories: record 2: category 2 comes a second"),
    (lambda f: f["categories"].append({"name": "Cat"}), "categories: record 2: no key `id`"),
])
def test_damage_in_objects365_names_file_and_record(tmp_path, change, said):
    files = objects365(tmp_path, change)
    with pytest.raises(BadRecord, match="zhiyuan_objv2_train.json: " + said):
        instances.convert(*files, Options(tmp_path / "out"))
    report = instances.convert(*files, Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["wrong records"][0] == 1 and report.written["train"]["samples"] >= 1


# --- Open Images ---------------------------------------------------------------------------------------------------

def test_open_images_boxes_are_in_pixels_of_their_pictures(tmp_path):
    report = open_images.convert(*openimages(tmp_path), Options(tmp_path / "out"))
    samples = read(tmp_path / "out/train-00000.tar")
    assert list(samples) == ["000002b66c9c498e", "f00000b66c9c498e"]
    assert samples["000002b66c9c498e"]["json"] == {
        "image_id": "openimages-000002b66c9c498e", "width": 40, "height": 30, "regions": [
            {"box": [1, 3, 20, 12], "caption": "Person"}, {"box": [20, 15, 20, 15], "caption": "Bull, or ox"}]}
    assert report.left_out["boxes around groups"] == [1, "oidv6-train-annotations-bbox.csv: line 4"]
    assert report.changed["boxes clipped"][0] == 1


@pytest.mark.parametrize("heading", ["LabelName,DisplayName", "id,name"])
def test_open_images_classes_of_every_version(tmp_path, heading):
    files = openimages(tmp_path, classes=f"{heading}\n/m/01g317,Person\n/m/0cnyhnx,Ox\n")
    assert open_images.convert(*files, Options(tmp_path / "out")).written["train"]["boxes"] == 3


def cell(row, column, value):
    def change(rows):
        cells = rows[row].split(",")
        cells[column] = value
        rows[row] = ",".join(cells)
    return change


@pytest.mark.parametrize("change, said", [
    (cell(2, 4, "x"), "line 3: image 000002b66c9c498e: XMin is 'x', not a number"),
    (cell(2, 5, "640"), "line 3: image 000002b66c9c498e: XMax is 640: sides are shares of the picture"),
    (cell(2, 6, "nan"), "line 3: image 000002b66c9c498e: YMin is nan"),
    (cell(2, 2, "/m/none"), "line 3: image 000002b66c9c498e: class '/m/none' is not in class-descriptions-boxable.csv"),
    (cell(2, 0, "../../secret"), "line 3: '../../secret' is not the name of a picture"),
    (cell(4, 0, "0123456789abcdef"), "line 5: image 0123456789abcdef: .*0123456789abcdef.jpg: No such file"),
    (lambda rows: rows.__setitem__(2, rows[2][:50]), "line 3: 7 columns, the heading has 21"),
    (lambda rows: rows.append(rows[1]), "line 6: image 000002b66c9c498e comes a second time: the rows of"),
])
def test_damage_in_open_images_names_file_and_row(tmp_path, change, said):
    files = openimages(tmp_path, change)
    with pytest.raises(BadRecord, match="oidv6-train-annotations-bbox.csv: " + said):
        open_images.convert(*files, Options(tmp_path / "out"))
    report = open_images.convert(*files, Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["wrong records"][0] == 1 and report.written["train"]["samples"] >= 1


def test_open_images_wrong_columns_and_classes_are_named(tmp_path):
    boxes, classes, folder = openimages(tmp_path, cell(0, 4, "xmin"))
    with pytest.raises(BadFile, match="bbox.csv: line 1: no column XMin; it has ImageID, Source"):
        open_images.convert(boxes, classes, folder, Options(tmp_path / "out"))
    files = openimages(tmp_path, classes="/m/01g317,Person\n/m/01g317,Again\n")
    with pytest.raises(BadRecord, match="class-descriptions-boxable.csv: line 2: class /m/01g317 comes a second time"):
        open_images.convert(*files, Options(tmp_path / "out"))
    files = openimages(tmp_path, classes="/m/01g317\n")
    with pytest.raises(BadRecord, match="class-descriptions-boxable.csv: line 1: expected a class and its name"):
        open_images.convert(*files, Options(tmp_path / "out"))
    boxes, classes, folder = openimages(tmp_path)
    with pytest.raises(BadFile, match="none.csv: No such file"):
        open_images.convert(folder / "none.csv", classes, folder, Options(tmp_path / "out"))


# --- img2dataset ---------------------------------------------------------------------------------------------------

def record(n, **change):
    return {**good(n)["json"], "caption": f"thing {n}", **change}


def forms(root, records):
    """The same download in the three forms; failures are only in Parquet and in the stats."""
    fine = [r for r in records if r["status"] == "success"]
    by_kind = stats(len(fine), len(records) - len(fine))
    downloaded(root / "tar/00000.tar", {r["key"]: {"jpg": jpeg(colour=(int(r["key"]), 5, 5)), "txt": b"t", "json": r}
                                        for r in fine})
    for r in fine:
        put(root / f"files/00000/{r['key']}.jpg", jpeg(colour=(int(r["key"]), 5, 5)))
        put(root / f"files/00000/{r['key']}.json", r)
    for form in ("tar", "files"):
        parquet(root / form / "00000.parquet", records)
    parquet(root / "parquet/00000.parquet", [
        {**r, "jpg": jpeg(colour=(int(r["key"]), 5, 5)) if r in fine else None} for r in records])
    for form in ("tar", "files", "parquet"):
        put(root / form / "00000_stats.json", by_kind)


def test_the_three_forms_of_a_download_give_the_same(tmp_path):
    forms(tmp_path, [record(0), record(1, status="failed_to_download", caption=None), record(2)])
    written = {}
    for form in ("tar", "files", "parquet"):
        report = img2dataset.convert([tmp_path / form], Options(tmp_path / f"out-{form}"))
        written[form] = (tmp_path / f"out-{form}/train-00000.tar").read_bytes()
        assert report.left_out["downloads with status failed_to_download"][0] == 1
    assert written["tar"] == written["files"] == written["parquet"]
    samples = read(tmp_path / "out-tar/train-00000.tar")
    assert [s["json"]["captions"] for s in samples.values()] == [["thing 0"], ["thing 2"]]


def test_a_shard_with_other_samples_than_its_stats_say_is_named(tmp_path):
    forms(tmp_path, [record(0), record(1)])
    put(tmp_path / "tar/00000_stats.json", stats(3))
    with pytest.raises(BadRecord, match="00000.tar: 2 pictures in it, 00000_stats.json says 3: download this"):
        img2dataset.convert([tmp_path / "tar"], Options(tmp_path / "out"))
    put(tmp_path / "tar/00000_stats.json", b"{")
    with pytest.raises(BadFile, match="00000_stats.json: not the stats of a download"):
        img2dataset.convert([tmp_path / "tar"], Options(tmp_path / "out"))


def test_damage_in_files_and_parquet_is_named(tmp_path):
    forms(tmp_path, [record(0), record(1)])
    put(tmp_path / "files/00000/000000001.jpg", b"junk")
    with pytest.raises(BadRecord, match="00000: 000000001: the picture: not a picture"):
        img2dataset.convert([tmp_path / "files"], Options(tmp_path / "out"))
    with pytest.raises(BadFile, match="00000.parquet: no column jpg, .*what img2dataset writes beside tars"):
        img2dataset.convert([tmp_path / "tar/00000.parquet"], Options(tmp_path / "out"))
    whole = (tmp_path / "parquet/00000.parquet").read_bytes()
    put(tmp_path / "parquet/00000.parquet", whole[:-9])
    with pytest.raises(BadFile, match="00000.parquet: not a whole Parquet file"):
        img2dataset.convert([tmp_path / "parquet"], Options(tmp_path / "out"))
    tar = downloaded(tmp_path / "twice/00000.tar", {"000000000": good(1)})
    packed(tar, {"000000000.jpg": jpeg(), "000000000.JPG": jpeg(colour="blue"), "000000000.txt": b"x"})
    report = img2dataset.convert([tar], Options(tmp_path / "out"))
    assert report.changed == {"names that come twice: the last counts": [1, "00000.tar: 000000000.JPG"]}
    assert read(tmp_path / "out/train-00000.tar")["000000000"]["jpg"] == jpeg(colour="blue")


# --- ImageNet-21k --------------------------------------------------------------------------------------------------

def classes():
    return {c: {f"{c}_{n}.JPEG": jpeg(colour=(n, 80, 80)) for n in range(4)} for c in ("n00004475", "n01440764")}


def test_class_tars_nested_tars_and_folders_give_the_same_shards(tmp_path):
    for name, pictures in classes().items():
        packed(tmp_path / f"tars/{name}.tar", pictures)
        for picture, data in pictures.items():
            put(tmp_path / f"folders/{name}/{picture}", data)
    packed(tmp_path / "nested/winter21_whole.tar", {f"{n}.tar": (tmp_path / f"tars/{n}.tar").read_bytes()
                                                   for n in classes()})
    sources = {"tars": tmp_path / "tars", "folders": tmp_path / "folders",
               "nested": tmp_path / "nested/winter21_whole.tar"}
    for form, source in sources.items():
        report = images.convert(source, Options(tmp_path / f"out-{form}", shard_size=3))
        assert report.written["train"]["samples"] == 8
        assert shards(tmp_path / f"out-{form}") == [f"train-0000{n}.tar" for n in range(3)]
    for n in range(3):
        first, *others = [(tmp_path / f"out-{form}/train-0000{n}.tar").read_bytes() for form in sources]
        assert all(other == first for other in others)
    files = [s["json"]["file"] for s in read(tmp_path / "out-tars/train-00000.tar").values()]
    assert {f.split("/")[0] for f in files} == set(classes())  # classes are mixed


def test_damage_in_class_tars_is_named(tmp_path):
    tar = packed(tmp_path / "in/n01440764.tar", classes()["n01440764"])
    whole = tar.read_bytes()
    put(tar, whole[:3500])
    with pytest.raises(BadRecord, match="n01440764.tar: broken after n01440764_.*.JPEG: "):
        images.convert(tmp_path / "in", Options(tmp_path / "out"))
    report = images.convert(tmp_path / "in", Options(tmp_path / "beginning", skip_bad=True))
    assert report.written["train"]["samples"] == 2 and report.left_out["wrong records"][0] == 1
    put(tar, whole[:1536] + b"junk" * 128 + whole[2048:])
    with pytest.raises(BadRecord, match="n01440764.tar: broken"):
        images.convert(tmp_path / "in", Options(tmp_path / "out"))
    packed(tar, {**classes()["n01440764"], "n01440764_9.JPEG": b"junk"})
    with pytest.raises(BadRecord, match="n01440764.tar: n01440764/n01440764_9.JPEG: .*not a picture"):
        images.convert(tmp_path / "in", Options(tmp_path / "out"))
    report = images.convert(tmp_path / "in", Options(tmp_path / "out", skip_bad=True))
    assert report.written["train"]["samples"] == 4
    put(tmp_path / "in/fall11_whole.tar.gz", b"x")
    with pytest.raises(BadRecord, match="fall11_whole.tar.gz: a compressed archive cannot be read at any place"):
        images.convert(tmp_path / "in", Options(tmp_path / "out2"))


def test_a_picture_that_is_cut_off_is_found_by_verify_and_a_bomb_always(tmp_path):
    put(tmp_path / "in/a.jpg", jpeg((200, 200))[:-300])
    assert images.convert(tmp_path / "in", Options(tmp_path / "out")).written["train"]["samples"] == 1
    with pytest.raises(BadRecord, match="a.jpg: .*not a picture that can be read"):
        images.convert(tmp_path / "in", Options(tmp_path / "out2", verify=True))
    header = bytearray(jpeg((40, 30), kind="PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # a PNG that says it has 3.6 billion pixels
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    put(tmp_path / "bomb/b.png", bytes(header))
    with pytest.raises(BadRecord, match="b.png: .*(60000x60000 pixels, more than|.*could be decompression bomb)"):
        images.convert(tmp_path / "bomb", Options(tmp_path / "out3"))


# --- Parquet text --------------------------------------------------------------------------------------------------

def test_text_from_parquet_and_its_damage(tmp_path):
    path = parquet(tmp_path / "wiki/train-00000-of-00041.parquet", [{"id": n, "text": f" Text {n}\n", "n": n}
                                                                    for n in range(5)])
    report = text.convert([path], Options(tmp_path / "out"))
    assert report.written["train"]["samples"] == 5
    assert (tmp_path / "out/train-00000.jsonl").read_text().splitlines()[4] == '{"text":"Text 4"}'
    with pytest.raises(BadFile, match="00041.parquet: no column content; it has id, text, n"):
        text.convert([path], Options(tmp_path / "out2"), key="content")
    with pytest.raises(BadRecord, match="00041.parquet: row 0: `n` is 0"):
        text.convert([path], Options(tmp_path / "out2"), key="n")
    parquet(path, [{"text": "x"}, {"text": None}, {"text": "y"}])
    with pytest.raises(BadRecord, match="00041.parquet: row 1: `text` is null"):
        text.convert([path], Options(tmp_path / "out2"))
    assert text.convert([path], Options(tmp_path / "out2", skip_bad=True)).written["train"]["samples"] == 2
    put(path, path.read_bytes()[:-20])
    with pytest.raises(BadFile, match="00041.parquet: not a whole Parquet file: "):
        text.convert([path], Options(tmp_path / "out3"))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadFile, match=r"a.parquet: reading Parquet needs pyarrow.*pip install 'xtoolkit\[parquet\]'"):
        text.convert([put(tmp_path / "a.parquet", b"PAR1")], Options(tmp_path / "out"))
