"""Miniatures of the official releases, written by hand in their structure; pictures are of 40x30."""

import gzip
import io
import json
import pickle
import tarfile

from PIL import Image


def jpeg(size=(40, 30), colour="red", kind="JPEG"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def read(path):
    """{key: {ending: bytes, or the object of a json}} of a tar, in its order."""
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            data = tar.extractfile(member).read()
            samples.setdefault(key, {})[ending] = json.loads(data) if ending == "json" else data
    return samples


def shards(folder):
    """The names of the shards in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".tar", ".jsonl"))


def karpathy(root, change=None):
    """dataset_coco.json and its pictures: three splits, restval, a PNG under a JPEG's name."""
    listed = []
    for n, (folder, split) in enumerate([("train2014", "train"), ("val2014", "restval"), ("val2014", "val"),
                                         ("val2014", "test"), ("train2014", "train")], 1):
        name = f"COCO_{folder}_{n:012d}.jpg"
        put(root / "coco/images" / folder / name, jpeg(colour=(40 * n, 0, 0), kind="PNG" if n == 5 else "JPEG"))
        said = [{"tokens": ["a", "thing"], "raw": f" A thing,  number {n}.\n", "imgid": n - 1, "sentid": 2 * n},
                {"tokens": ["two"], "raw": f"thing {n}", "imgid": n - 1, "sentid": 2 * n + 1}]
        listed.append({"filepath": folder, "sentids": [2 * n, 2 * n + 1], "filename": name, "imgid": n - 1,
                       "split": split, "sentences": said, "cocoid": n})
    if change:
        change(listed)
    return put(root / "coco/dataset_coco.json", {"images": listed, "dataset": "coco"}), root / "coco/images"


def captions(root, change=lambda found: None):
    """COCO's own captions_train2017.json, two captions a picture in any order, and its pictures as the archive unpacks."""
    for n in (9, 25, 139):
        put(root / f"coco/images/train2017/{n:012d}.jpg", jpeg(colour=(n, 9, 9)))
    found = {"info": {"year": 2017}, "licenses": [],
             "images": [{"license": 1, "file_name": f"{n:012d}.jpg", "coco_url": "http://x", "height": 30, "width": 40, "id": n}
                        for n in (139, 9, 25)],
             "annotations": [{"image_id": n, "id": 10 * n + m, "caption": f"Thing {n} \n{m}."} for m in (1, 2) for n in (9, 139, 25)]}
    change(found)
    return put(root / "coco/captions_train2017.json", found), root / "coco/images"


ROWS = [("a/one.jpg", "a red dog"), ("a/one.jpg", "a dog, red"), ("two.png", "a cat\nthat sleeps"), ("b/three.gif", "été")]


def tables(root):
    """The same pictures and captions as a table of every form: {form: path}."""
    kinds = {"jpg": "JPEG", "png": "PNG", "gif": "GIF"}
    data = {name: jpeg(colour=(30 * n, 9, 9), kind=kinds[name[-3:]]) for n, (name, _) in enumerate(ROWS)}
    for name, picture in data.items():
        put(root / "pictures" / name, picture)

    def csv_of(heading, delimiter):
        lines = [delimiter.join(heading), *(delimiter.join([name, f'"{text}"']) for name, text in ROWS)]
        return ("\n".join(lines) + "\n").encode()

    as_json = lambda image, text: b"".join(json.dumps({image: n, text: t}).encode() + b"\n" for n, t in ROWS)
    return {
        "csv": put(root / "tables/pairs.csv", csv_of(["filepath", "title"], ",")),
        "csv of open_clip": put(root / "tables/clip.csv", csv_of(["filepath", "title"], "\t")),
        "tsv": put(root / "tables/pairs.tsv", csv_of(["image_path", "caption"], "\t")),
        "jsonl": put(root / "tables/pairs.jsonl", as_json("image", "captions")),
        "jsonl.gz": put(root / "tables/pairs.jsonl.gz", gzip.compress(as_json("path", "text"))),
        "imagefolder": put(root / "pictures/metadata.csv", csv_of(["file_name", "text"], ",")),
        "parquet of paths": parquet(root / "tables/paths.parquet", [{"image": n, "text": t, "n": 1} for n, t in ROWS]),
        "parquet": parquet(root / "tables/bytes.parquet", [{"image": data[n], "text": t} for n, t in ROWS]),
        "parquet of the hub": parquet(root / "tables/hub.parquet", [
            {"image": {"bytes": data[n], "path": n}, "caption": [t], "n": 1} for n, t in ROWS])}


def genome(root, **change):
    """The four files of the release for three pictures of 40x30; the second is COCO's 4, in the test split above."""
    for folder, image in (("VG_100K", 7), ("VG_100K", 8), ("VG_100K_2", 9)):
        put(root / "vg" / folder / f"{image}.jpg", jpeg(colour=(image, 9, 9)))
    files = {
        "image_data": [{"image_id": n, "url": f"https://x/VG_100K/{n}.jpg", "width": 40, "height": 30, "coco_id": c,
                        "flickr_id": None} for n, c in ((7, 1), (8, 4), (9, None))],
        "region_descriptions": [{"id": n, "regions": [
            {"region_id": 10 * n, "image_id": n, "x": 1, "y": 2, "width": 20, "height": 10, "phrase": f"the  red {n}"},
            {"region_id": 10 * n + 1, "image_id": n, "x": 30, "y": -1, "width": 11, "height": 9, "phrase": "edge"}]}
            for n in (7, 8, 9)],
        "objects": [{"image_id": n, "objects": [
            {"object_id": n * 100, "x": 5, "y": 5, "w": 6, "h": 7, "names": ["dog"], "merged_object_ids": []},
            {"object_id": n * 100 + 1, "x": 5, "y": 5, "w": 6, "h": 7, "names": ["cat", "kitten"]}]}
            for n in (9, 8, 7)],  # another order than the others: the join must not mind
        "attributes": [{"image_id": n, "attributes": [
            {"object_id": n * 100, "x": 5, "y": 5, "w": 6, "h": 7, "attributes": ["brown", "brown", "wet"]},
            {"object_id": n * 100 + 1, "x": 5, "y": 5, "w": 6, "h": 7, "attributes": None}]}
            for n in (7, 8, 9)],
    }
    for name, edit in change.items():
        edit(files[name])
    return {name: put(root / f"vg/{name}.json", value) for name, value in files.items()}


def refer(root, change=lambda refs, found: None, protocol=2):
    """refs(unc).p and instances.json: two refs on one picture of train, one in testA; a box nobody refers to."""
    for n in (1, 2):
        put(root / f"coco/images/train2014/COCO_train2014_{n:012d}.jpg", jpeg(colour=(n, n, n)))
    refs = [{"sent_ids": [i], "file_name": f"COCO_train2014_{image:012d}_{ann}.jpg", "ann_id": ann, "ref_id": i,
             "image_id": image, "split": split, "category_id": 1,
             "sentences": [{"tokens": ["x"], "raw": f"Thing {i}!", "sent_id": 2 * i, "sent": f"thing {i}"},
                           {"tokens": ["y"], "raw": "It", "sent_id": 2 * i + 1, "sent": "it"}]}
            for i, (image, ann, split) in enumerate([(1, 11, "train"), (2, 21, "testA"), (1, 12, "train")])]
    found = {"info": {"description": "x"}, "categories": [{"supercategory": "s", "id": 1, "name": "dog"}],
             "images": [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 40, "height": 30}
                        for n in (1, 2)],
             "annotations": [{"id": a, "image_id": a // 10, "category_id": 1, "bbox": [a % 10, 2.5, 10.25, 8],
                              "area": 80, "iscrowd": 0, "segmentation": []} for a in (11, 12, 13, 21)]}
    change(refs, found)
    return (put(root / "refcoco+/refs(unc).p", pickle.dumps(refs, protocol)),
            put(root / "refcoco+/instances.json", found), root / "coco/images")


def packed(path, files):
    """A tar of {name: bytes, or an object for JSON}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def downloaded(path, samples):
    return packed(path, {f"{key}.{ending}": data for key, files in samples.items() for ending, data in files.items()})


def good(n, status="success", caption="a  thing"):
    info = {"caption": caption, "url": f"https://x/{n}", "key": f"{n:09d}", "status": status, "width": 40, "height": 30,
            "error_message": None, "exif": "{}"}
    return {"jpg": jpeg(colour=(n, 50, n)), "json": info, "txt": b"a thing"}


def stats(successes, download=0, resize=0):
    """img2dataset's 00000_stats.json."""
    return {"count": successes + download + resize, "successes": successes, "failed_to_download": download,
            "failed_to_resize": resize, "duration": 1.5, "start_time": 1.0, "end_time": 2.5,
            "status_dict": {"success": successes, "HTTP Error 404: Not Found": download}}


def parquet(path, rows):
    """A Parquet file of rows, two a row group."""
    import pyarrow
    from pyarrow import parquet as pq
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def objects365(root, change=lambda found: None):
    """zhiyuan_objv2_train.json, and its pictures as the patches unpack: without the images/v1 of their names."""
    listed = [(420917, "images/v1/patch8/objects365_v1_00420917.jpg"),
              (908726, "images/v2/patch16/objects365_v2_00908726.jpg")]
    for n, name in listed:
        put(root / "objects365/train" / name.split("/", 2)[2], jpeg(colour=(n % 200, 9, 9)))
    found = {"images": [{"height": 30, "id": n, "license": 5, "width": 40, "file_name": name, "url": "https://x"}
                        for n, name in listed],
             "annotations": [{"id": n, "iscrowd": crowd, "isfake": 0, "isreflected": 0, "area": 12.5, "image_id": image,
                              "category_id": category, "bbox": [1.5, 2, 10.25, 8]}
                             for n, image, category, crowd in ((5, 908726, 2, 0), (6, 420917, 1, 0), (7, 908726, 1, 1),
                                                               (8, 908726, 1, 0))],
             "categories": [{"name": "Person", "id": 1}, {"name": "Cabinet/shelf", "id": 2}],
             "licenses": [{"name": "CC"}]}
    change(found)
    return put(root / "objects365/zhiyuan_objv2_train.json", found), root / "objects365/train"


HEADING = ("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,"
           "IsInside,XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y")


def openimages(root, change=lambda rows: None, classes="/m/01g317,Person\n/m/0cnyhnx,\"Bull, or ox\"\n"):
    """The two files of the release, and pictures as the archives unpack: train_0 and train_f."""
    for image in ("000002b66c9c498e", "0000a1b2f3c4d5e6", "f00000b66c9c498e"):
        put(root / f"openimages/train_{image[0]}/{image}.jpg", jpeg())
    clicks = ",0.1" * 8
    rows = [HEADING, f"000002b66c9c498e,xclick,/m/01g317,1,0.025000,0.525000,0.100000,0.500000,0,1,0,0,0{clicks}",
            f"000002b66c9c498e,xclick,/m/0cnyhnx,1,0.5,1.001,0.5,1,0,1,0,0,0{clicks}",
            f"0000a1b2f3c4d5e6,xclick,/m/01g317,1,0,1,0,1,0,0,1,0,0{clicks}",
            f"f00000b66c9c498e,activemil,/m/01g317,1,0.25,0.75,0,0.5,0,0,0,0,0{clicks}"]
    change(rows)
    boxes = put(root / "openimages/oidv6-train-annotations-bbox.csv", ("\n".join(rows) + "\n").encode())
    return boxes, put(root / "openimages/class-descriptions-boxable.csv", classes.encode()), root / "openimages"


def gzipped(path, lines):
    """JSON Lines as C4 comes: ``c4-train.00000-of-01024.json.gz``."""
    return put(path, gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
