"""Annotated releases: what comes out of their converters, and what is said about each kind of damage."""

import os
import pickle
import tarfile

import pytest
from miniature import genome, jpeg, karpathy, put, read, refer, shards

from xtoolkit.prepare import coco, instances, refcoco, vg
from xtoolkit.prepare.official import BadFile, BadRecord
from xtoolkit.prepare.writer import Options

# --- COCO captions -------------------------------------------------------------------------------------------------

def test_coco_pairs_come_back_field_by_field(tmp_path):
    annotations, pictures = karpathy(tmp_path)
    report = coco.convert(annotations, pictures, Options(tmp_path / "out", shard_size=2))
    assert shards(tmp_path / "out") == [
        "test-00000.tar", "train-00000.tar", "train-00001.tar", "val-00000.tar"]
    train = read(tmp_path / "out/train-00000.tar") | read(tmp_path / "out/train-00001.tar")
    assert list(train) == ["000000000001", "000000000002", "000000000005"]  # restval is in train
    assert train["000000000002"]["json"] == {"image_id": "coco-2", "captions": ["A thing, number 2.", "thing 2"]}
    assert train["000000000002"]["jpg"] == (pictures / "val2014/COCO_val2014_000000000002.jpg").read_bytes()
    assert list(train["000000000005"]) == ["png", "json"]  # by content, not by name
    assert report.written["train"] == {"samples": 3, "captions": 6, "boxes": 0}
    assert list(read(tmp_path / "out/test-00000.tar")) == ["000000000004"]


def test_what_is_written_is_equal_byte_for_byte_whatever_the_workers(tmp_path):
    annotations, pictures = karpathy(tmp_path)
    for out, workers in (("a", 1), ("b", 2)):
        coco.convert(annotations, pictures, Options(tmp_path / out, shard_size=2, workers=workers))
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b"))
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(tmp_path / "a/train-00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} == {(0, 0, 0, 0o644)}


def test_flickr30k_has_no_ids_and_no_folders(tmp_path):
    put(tmp_path / "pictures/1000092795.jpg", jpeg())
    listed = [{"sentids": [0], "imgid": 0, "sentences": [{"raw": "Two guys", "sentid": 0}], "split": "train",
               "filename": "1000092795.jpg"}]
    annotations = put(tmp_path / "dataset_flickr30k.json", {"images": listed, "dataset": "flickr30k"})
    coco.convert(annotations, tmp_path / "pictures", Options(tmp_path / "out"))
    assert read(tmp_path / "out/train-00000.tar")["1000092795"]["json"] == {
        "image_id": "flickr30k-1000092795", "captions": ["Two guys"]}


@pytest.mark.parametrize("change, said", [
    (lambda r: r[1].pop("sentences"), "image 2 .* no key `sentences`"),
    (lambda r: r[1].update(split="dev"), "image 2 .* unknown split 'dev'"),
    (lambda r: r[1].update(filename="no.jpg"), r"image 2 \(no.jpg\).*No such file"),
    (lambda r: r[1]["sentences"][1].update(raw=5), "image 2 .*: sentence 1: `raw` is 5"),
    (lambda r: r[1].update(sentences=[]), "image 2 .*: no captions"),
    (lambda r: r[1].update(cocoid="2"), "image 2 .*: `cocoid` is \"2\""),
    (lambda r: r.__setitem__(1, 3), "image 1: expected an object, found 3"),
    (lambda r: r[1].update(r[0]), "image 1: picture 000000000001 comes a second time"),
])
def test_damage_in_coco_names_file_and_image_or_is_counted(tmp_path, change, said):
    annotations, pictures = karpathy(tmp_path, change)
    with pytest.raises(BadRecord, match="dataset_coco.json: " + said):
        coco.convert(annotations, pictures, Options(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == []  # nothing half made is left
    report = coco.convert(annotations, pictures, Options(tmp_path / "out", skip_bad=True))
    assert report.written["train"]["samples"] == 2
    count, first = report.left_out["wrong records"]
    assert count == 1 and first.startswith("dataset_coco.json: image")
    assert "1 wrong records (the first: dataset_coco.json" in str(report)


def test_an_empty_caption_is_left_out_and_the_picture_kept(tmp_path):
    annotations, pictures = karpathy(tmp_path, lambda r: r[0]["sentences"][0].update(raw="  "))
    report = coco.convert(annotations, pictures, Options(tmp_path / "out"))
    assert read(tmp_path / "out/train-00000.tar")["000000000001"]["json"]["captions"] == ["thing 1"]
    assert report.left_out["empty captions"][0] == 1


def test_what_is_no_picture_is_named(tmp_path):
    annotations, pictures = karpathy(tmp_path)
    bad = put(pictures / "train2014/COCO_train2014_000000000001.jpg", b"<html>404</html>")
    with pytest.raises(BadRecord, match=f"image 1 .*{bad.name}: not a picture"):
        coco.convert(annotations, pictures, Options(tmp_path / "out"))
    put(bad, jpeg(kind="GIF"))
    coco.convert(annotations, pictures, Options(tmp_path / "out"))
    assert list(read(tmp_path / "out/train-00000.tar")["000000000001"]) == ["gif", "json"]


def test_shards_that_are_there_are_not_overwritten(tmp_path):
    annotations, pictures = karpathy(tmp_path)
    coco.convert(annotations, pictures, Options(tmp_path / "out"))
    with pytest.raises(FileExistsError, match="train-00000.tar is there already: remove"):
        coco.convert(annotations, pictures, Options(tmp_path / "out"))


# --- Visual Genome -------------------------------------------------------------------------------------------------

def convert_genome(root, skip_bad=False, exclude=frozenset(), **change):
    files = genome(root, **change)
    return vg.convert(files["image_data"], files["region_descriptions"], root / "vg",
                      Options(root / "out", skip_bad=skip_bad), files["objects"], files["attributes"], exclude)


def test_genome_regions_and_objects_come_back(tmp_path):
    report = convert_genome(tmp_path)
    samples = read(tmp_path / "out/train-00000.tar")
    assert sorted(samples) == ["7", "8", "9"]
    assert samples["9"]["jpg"] == (tmp_path / "vg/VG_100K_2/9.jpg").read_bytes()
    assert samples["9"]["json"] == {"image_id": "vg-9", "width": 40, "height": 30, "regions": [
        {"box": [1, 2, 20, 10], "caption": "the red 9"},
        {"box": [30, 0, 10, 8], "caption": "edge"},
        {"box": [5, 5, 6, 7], "caption": "dog", "attributes": ["brown", "wet"]},
        {"box": [5, 5, 6, 7], "caption": ["cat", "kitten"]}]}
    assert samples["7"]["json"]["image_id"] == "coco-1"  # the same picture as in COCO
    assert report.changed["boxes clipped"][0] == 3 and not report.left_out
    assert report.written["train"] == {"samples": 3, "captions": 15, "boxes": 12}


def test_pictures_of_cocos_test_split_stay_out(tmp_path):
    annotations, _ = karpathy(tmp_path)
    report = convert_genome(tmp_path, exclude=coco.held_out(annotations))
    assert sorted(read(tmp_path / "out/train-00000.tar")) == ["7", "9"]
    assert report.left_out["excluded pictures"][0] == 1


def test_boxes_without_area_are_counted_and_the_first_named(tmp_path):
    def flatten(records):
        records[1]["regions"][0].update(width=0)
        records[2]["regions"][0].update(x=40)
        records[2]["regions"][1].update(phrase="")
    report = convert_genome(tmp_path, region_descriptions=flatten)
    assert report.left_out == {
        "boxes without area": [1, "region_descriptions.json: image 8: region 80: box [1, 2, 0, 10] has no area"],
        "boxes beside the picture": [
            1, "region_descriptions.json: image 9: region 90: box [40, 2, 20, 10] is outside of 40x30"],
        "empty captions": [1, "region_descriptions.json: image 9: region 91: the caption is empty"]}


@pytest.mark.parametrize("file, edit, said", [
    ("region_descriptions", lambda r: r[1]["regions"][1].pop("x"),
     "region_descriptions.json: image 8: region 81: no key `x`"),
    ("region_descriptions", lambda r: r[1]["regions"][1].update(y="3"), "image 8: region 81: `y` is \"3\""),
    ("region_descriptions", lambda r: r[1]["regions"][1].update(y=float("nan")), "image 8: region 81: box .* four"),
    ("region_descriptions", lambda r: r[1].pop("regions"), "image 8: no key `regions`"),
    ("region_descriptions", lambda r: r.append(dict(r[1])), "record 3: image 8 comes a second time"),
    ("region_descriptions", lambda r: r.append({"id": 5, "regions": []}), "image 5 is not in image_data.json"),
    ("objects", lambda r: r[1]["objects"][0].pop("names"), "objects.json: image 8: object 800: no key `names`"),
    ("objects", lambda r: r[1]["objects"].append(3), "objects.json: image 8: object 2: expected an object, found 3"),
    ("attributes", lambda r: r[1]["attributes"][0].pop("object_id"), "attributes.json: image 8: object 0: no key"),
    ("image_data", lambda r: r[1].update(width="40"), "image_data.json: record 1: `width` is \"40\""),
    ("image_data", lambda r: r.append(r[1]), "image_data.json: record 3: image 8 comes a second time"),
    ("image_data", lambda r: r[1].update(width=80), "image 8: the picture .* is 40x30, its annotations are for 80x30"),
])
def test_damage_in_genome_names_file_image_and_region(tmp_path, file, edit, said):
    with pytest.raises(BadRecord, match=said):
        convert_genome(tmp_path, **{file: edit})
    report = convert_genome(tmp_path, skip_bad=True, **{file: edit})
    assert report.left_out["wrong records"][0] >= 1 and report.written["train"]["samples"] >= 2


# --- REFER ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_refer_expressions_come_back_by_split(tmp_path, protocol):
    refs, found, pictures = refer(tmp_path, protocol=protocol)
    report = refcoco.convert(refs, found, pictures, Options(tmp_path / "out"))
    train = read(tmp_path / "out/train-00000.tar")
    assert train["000000000001"]["json"] == {
        "image_id": "coco-1", "width": 40, "height": 30,
        "regions": [{"box": [1, 2.5, 10.25, 8], "caption": ["thing 0", "it"], "ref_id": 0},
                    {"box": [2, 2.5, 10.25, 8], "caption": ["thing 2", "it"], "ref_id": 2}],
        "boxes": [[1, 2.5, 10.25, 8], [2, 2.5, 10.25, 8], [3, 2.5, 10.25, 8]]}
    assert list(read(tmp_path / "out/testA-00000.tar")) == ["000000000002"]
    assert report.written == {"train": {"samples": 1, "captions": 4, "boxes": 2},
                              "testA": {"samples": 1, "captions": 2, "boxes": 1}}
    assert refcoco.held_out(refs) == {2}


def test_refer_json_twin_gives_the_same(tmp_path):
    refs, found, pictures = refer(tmp_path)
    twin = put(tmp_path / "refcoco+/refs(unc).json", pickle.loads(refs.read_bytes()))
    for path, out in ((refs, "a"), (twin, "b")):
        refcoco.convert(path, found, pictures, Options(tmp_path / out), {"testA": "held"})
    assert shards(tmp_path / "a") == ["held-00000.tar"]
    assert (tmp_path / "a/held-00000.tar").read_bytes() == (tmp_path / "b/held-00000.tar").read_bytes()


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/xtoolkit-test-was-hacked",)


@pytest.mark.parametrize("payload", [pickle.dumps([Evil()]), pickle.dumps({"a": Evil()}, 0),
                                     b"cbuiltins\neval\n(S'1'\ntR.", b"(S'ls'\nios\nsystem\n."])
def test_a_malicious_pickle_is_refused(tmp_path, payload):
    _, found, pictures = refer(tmp_path)
    refs = put(tmp_path / "evil.p", payload)
    with pytest.raises(BadRecord, match=r"evil.p: refused: it names `(posix|builtins|os)\.(system|eval)`"):
        refcoco.convert(refs, found, pictures, Options(tmp_path / "out"))
    assert not os.path.exists("/tmp/xtoolkit-test-was-hacked")


def test_a_cut_pickle_is_named(tmp_path):
    refs, found, pictures = refer(tmp_path)
    put(refs, refs.read_bytes()[:200])
    with pytest.raises(BadRecord, match=r"refs\(unc\).p: not a whole pickle"):
        refcoco.convert(refs, found, pictures, Options(tmp_path / "out"))


@pytest.mark.parametrize("change, said", [
    (lambda r, f: r[0].update(ann_id=99), "refs.unc..p: ref 0: annotation 99 of image 1 is not in instances.json"),
    (lambda r, f: r[0].update(image_id=77), "refs.unc..p: ref 0: image 77 is not in instances.json"),
    (lambda r, f: r[0].pop("ref_id"), "refs.unc..p: ref 0: no key `ref_id`"),
    (lambda r, f: r[0]["sentences"][1].pop("sent"), "refs.unc..p: ref 0: sentence 1: no key `sent`"),
    (lambda r, f: r[0].update(split=None), "refs.unc..p: ref 0: `split` is null"),
    (lambda r, f: r[2].update(ref_id=0), "refs.unc..p: ref 0: ref_id 0 comes a second time"),
    (lambda r, f: f["annotations"][0].update(bbox=[1, 2, 3]), r"ref 0: annotation 11: box \[1, 2, 3\] is not four"),
    (lambda r, f: f["annotations"][0].pop("bbox"), "instances.json: annotations: record 0: no key `bbox`"),
    (lambda r, f: f["images"][1].pop("width"), "instances.json: images: record 1: no key `width`"),
])
def test_damage_in_refer_names_file_and_ref(tmp_path, change, said):
    files = refer(tmp_path, change)
    with pytest.raises(BadRecord, match=said):
        refcoco.convert(*files, Options(tmp_path / "out"))
    report = refcoco.convert(*files, Options(tmp_path / "out", skip_bad=True))
    assert report.left_out["wrong records"][0] >= 1 and "train" in report.written


def test_detection_boxes_become_regions(tmp_path):
    def crowd(refs, found):
        found["annotations"][2]["iscrowd"] = 1
    _, found, pictures = refer(tmp_path, crowd)
    report = instances.convert(found, pictures / "train2014", Options(tmp_path / "out"), frozenset({2}))
    assert read(tmp_path / "out/train-00000.tar")["000000000001"]["json"]["regions"] == [
        {"box": [1, 2.5, 10.25, 8], "caption": "dog"}, {"box": [2, 2.5, 10.25, 8], "caption": "dog"}]
    assert {k: v[0] for k, v in report.left_out.items()} == {"boxes around crowds": 1, "excluded pictures": 1}


# --- what every annotation file can suffer -------------------------------------------------------------------------

def coco_files(root):
    annotations, pictures = karpathy(root)
    return [annotations], lambda options: coco.convert(annotations, pictures, options)


def genome_files(root):
    files = genome(root)
    four = [files[name] for name in ("image_data", "region_descriptions", "objects", "attributes")]
    return four, lambda options: vg.convert(four[0], four[1], root / "vg", options, four[2], four[3])


def refer_files(root):
    refs, found, pictures = refer(root)
    return [refs, found], lambda options: refcoco.convert(refs, found, pictures, options)


def instance_files(root):
    _, found, pictures = refer(root)
    return [found], lambda options: instances.convert(found, pictures / "train2014", options)


@pytest.mark.parametrize("files", [coco_files, genome_files, refer_files, instance_files])
def test_a_file_that_is_cut_empty_another_or_missing_is_named_and_never_skipped(tmp_path, files):
    paths, convert = files(tmp_path)
    for path in paths:
        whole = path.read_bytes()
        for change in (lambda: path.write_bytes(whole[:-len(whole) // 3]), lambda: path.write_bytes(b""),
                       lambda: path.write_bytes(b"<html>404: Not Found</html>"), path.unlink):
            change()
            with pytest.raises(BadFile, match=path.name.replace("(", r"\(").replace(")", r"\)")):
                convert(Options(tmp_path / "out", skip_bad=True))
            assert not (tmp_path / "out").exists() or shards(tmp_path / "out") == []
        path.write_bytes(whole)
    assert convert(Options(tmp_path / "out")).written["train"]["samples"] >= 1
