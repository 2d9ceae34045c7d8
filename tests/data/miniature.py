"""Miniatures of the official releases, written by hand in their structure; pictures are of 40x30."""

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


def downloaded(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for ending, data in files.items():
                data = data if isinstance(data, bytes) else json.dumps(data).encode()
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def good(n, status="success", caption="a  thing"):
    info = {"caption": caption, "url": f"https://x/{n}", "key": f"{n:09d}", "status": status, "width": 40, "height": 30,
            "error_message": None, "exif": "{}"}
    return {"jpg": jpeg(colour=(n, 50, n)), "json": info, "txt": b"a thing"}
