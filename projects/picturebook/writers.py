"""Writes scenes in the datasets' own formats: Karpathy's COCO, Visual Genome, REFER, X-VLM's grounding lists."""

import json
import re
from collections.abc import Iterator

from .language import Language
from .scenes import SIDE, Scene
from .seeded import rng

FIRST_ID = {"train": 1, "val": 400_001, "test": 500_001}
FOLDER = {"train": "train2014", "val": "val2014", "test": "val2014"}  # Karpathy's val and test pictures are val2014's


def as_json(value: object) -> bytes:
    """Compact JSON, the same bytes on every machine."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation, as in Karpathy's file."""
    return re.sub(r"[^a-z0-9' -]", "", text.lower()).replace("-", " ").split()


class Picture:
    """A scene with its ids in every format: COCO id, file name, path below coco/images."""

    def __init__(self, scene: Scene, index: int):
        self.scene = scene
        self.id = FIRST_ID[scene.split] + index
        self.folder = FOLDER[scene.split]
        self.file = f"COCO_{self.folder}_{self.id:012d}.jpg"
        self.path = f"{self.folder}/{self.file}"


def karpathy(pictures: list[Picture], language: Language) -> dict:
    """dataset_coco.json: five captions a picture."""
    images, sentence_id = [], 0
    for number, picture in enumerate(pictures):
        sentences = []
        for caption in language.captions(picture.scene):
            sentences.append({"tokens": tokens(caption), "raw": caption, "imgid": number, "sentid": sentence_id})
            sentence_id += 1
        images.append(
            {
                "filepath": picture.folder,
                "sentids": [s["sentid"] for s in sentences],
                "filename": picture.file,
                "imgid": number,
                "split": picture.scene.split,
                "sentences": sentences,
                "cocoid": picture.id,
            }
        )
    return {"images": images, "dataset": "coco"}


def visual_genome(pictures: list[Picture], language: Language) -> Iterator[tuple[str, list]]:
    """image_data, region_descriptions and objects of the train pictures; image ids are COCO's."""
    train = [picture for picture in pictures if picture.scene.split == "train"]
    yield "image_data.json", [
        {
            "image_id": p.id,
            "url": f"VG_100K/{p.id}.jpg",
            "width": SIDE,
            "height": SIDE,
            "coco_id": p.id,
            "flickr_id": None,
        }
        for p in train
    ]
    regions, objects, region_id, object_id = [], [], 1, 1
    for p in train:
        listed = []
        for (x, y, w, h), phrase in language.regions(p.scene):
            listed.append(
                {"region_id": region_id, "image_id": p.id, "x": x, "y": y, "width": w, "height": h, "phrase": phrase}
            )
            region_id += 1
        regions.append({"id": p.id, "regions": listed})
        listed = []
        for thing in p.scene.things:
            x, y, w, h = thing.box
            names = sorted(name for name, _ in thing.concept.names)
            names.sort(key=lambda name: name != thing.label)
            listed.append(
                {
                    "object_id": object_id,
                    "x": x,
                    "y": y,
                    "w": w,
                    "h": h,
                    "names": names,
                    "synsets": [],
                    "merged_object_ids": [],
                }
            )
            object_id += 1
        objects.append({"image_id": p.id, "objects": listed})
    yield "region_descriptions.json", regions
    yield "objects.json", objects


def refer(pictures: list[Picture], language: Language) -> tuple[list[dict], dict]:
    """(refs, instances) as REFER reads them. Test refs are testA for living things and testB for the others."""
    labels = sorted({(t.concept.subgroup, t.label) for p in pictures for t in p.scene.things})
    category = {label: number + 1 for number, (_, label) in enumerate(labels)}
    refs, annotations, sentence_id = [], [], 0
    for p in pictures:
        for thing in p.scene.things:
            x, y, w, h = thing.box
            annotation = len(annotations) + 1
            annotations.append(
                {
                    "id": annotation,
                    "image_id": p.id,
                    "category_id": category[thing.label],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
            random = rng("refs", p.scene.key, thing.box)
            phrases = language.expressions(p.scene, thing) if len(p.scene.things) > 1 else []
            if not phrases:
                continue
            chosen = random.sample(phrases, min(len(phrases), 3))
            sentences = []
            for phrase in chosen:
                raw = phrase if random.random() < 0.5 else phrase.removeprefix("the ")
                sentences.append(
                    {"tokens": tokens(raw), "raw": raw, "sent_id": sentence_id, "sent": " ".join(tokens(raw))}
                )
                sentence_id += 1
            split = p.scene.split if p.scene.split != "test" else ("testA" if thing.concept.living else "testB")
            refs.append(
                {
                    "sent_ids": [s["sent_id"] for s in sentences],
                    "file_name": p.file,
                    "ann_id": annotation,
                    "ref_id": len(refs),
                    "image_id": p.id,
                    "split": split,
                    "sentences": sentences,
                    "category_id": category[thing.label],
                }
            )
    instances = {
        "info": {
            "description": "PictureBook v1",
            "version": "1",
            "year": 2026,
            "url": "",
            "contributor": "",
            "date_created": "",
        },
        "licenses": [{"id": 1, "name": "see NOTICE", "url": ""}],
        "images": [
            {
                "id": p.id,
                "file_name": p.file,
                "width": SIDE,
                "height": SIDE,
                "license": 1,
                "coco_url": f"coco/images/{p.path}",
                "flickr_url": "",
                "date_captured": "",
            }
            for p in pictures
        ],
        "annotations": annotations,
        "categories": [{"id": category[label], "name": label, "supercategory": subgroup} for subgroup, label in labels],
    }
    return refs, instances


def grounding_lists(refs: list[dict], instances: dict, pictures: list[Picture]) -> Iterator[tuple[str, list]]:
    """X-VLM's refcoco+_{train,val,test}.json: one entry an expression."""
    paths = {p.id: p.path for p in pictures}
    boxes = {a["id"]: a["bbox"] for a in instances["annotations"]}
    for name, splits in (("train", ("train",)), ("val", ("val",)), ("test", ("testA", "testB"))):
        yield f"refcoco+_{name}.json", [
            {
                "image": paths[ref["image_id"]],
                "text": sentence["sent"],
                "ref_id": ref["ref_id"],
                "bbox": boxes[ref["ann_id"]],
            }
            for ref in refs
            if ref["split"] in splits
            for sentence in ref["sentences"]
        ]
