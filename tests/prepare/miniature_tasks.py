"""Miniatures of the releases of tasks: ten samples a split in their official formats; pictures are of 40x30."""

import json
import pickle

from miniature import jpeg, put, refer

COUNT = 10
PARTS = ("train", "dev", "test")


def table(*rows, bom=False) -> bytes:
    """Lines of cells apart by tabs."""
    return ("\ufeff" * bom + "".join("\t".join(map(str, row)) + "\n" for row in rows)).encode()


def glue(root, change=lambda files: None):
    """The eight folders of GLUE; returns the folder that holds them. ``change`` gets {path: bytes}."""
    said = lambda n: (f'He said "dog {n}.', f"A dog's {n} words")
    rows = range(COUNT)
    files = {
        "CoLA/train.tsv": table(*(("gj04", n % 2, "*" if n % 2 == 0 else "", said(n)[0]) for n in rows)),
        "CoLA/test.tsv": table(("index", "sentence"), *((n, said(n)[0]) for n in rows)),
        "SST-2/train.tsv": table(("sentence", "label"), *((said(n)[1] + " ", n % 2) for n in rows)),
        "SST-2/test.tsv": table(("index", "sentence"), *((n, said(n)[1]) for n in rows)),
        "MRPC/train.tsv": table(("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                                *((n % 2, 100 + n, 200 + n, *said(n)) for n in rows), bom=True),
        "MRPC/test.tsv": table(("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                               *((n, 100 + n, 200 + n, *said(n)) for n in rows), bom=True),
        "QQP/train.tsv": table(("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
                               *((n + 300, n, n + 50, *said(n), n % 2) for n in rows)) +
        b"\n400\t1\t2\tWhat is\n this?\tWhat?\t0\n401\t1\t2\t\tWhat?\t0\n",
        "QQP/test.tsv": table(("id", "question1", "question2"), *((n, *said(n)) for n in rows)),
        "STS-B/train.tsv": table(("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2",
                                  "score"), *((n, "g", "f", "2012", n, "x", "y", *said(n), f"{n / 2:.3f}") for n in rows)),
        "STS-B/test.tsv": table(("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"),
                                *((n, "g", "f", "2012", n, "x", "y", *said(n)) for n in rows)),
        "QNLI/train.tsv": table(("index", "question", "sentence", "label"),
                                *((n, *said(n), ("entailment", "not_entailment")[n % 2]) for n in rows)),
        "QNLI/test.tsv": table(("index", "question", "sentence"), *((n, *said(n)) for n in rows)),
        "RTE/train.tsv": table(("index", "sentence1", "sentence2", "label"),
                               *((n, *said(n), ("entailment", "not_entailment")[n % 2]) for n in rows)),
        "RTE/test.tsv": table(("index", "sentence1", "sentence2"), *((n, *said(n)) for n in rows))}
    for task in [path.partition("/")[0] for path in files if path.endswith("train.tsv")]:
        files[f"{task}/dev.tsv"] = files[f"{task}/train.tsv"]
    parsed = ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
              "sentence2_parse", "sentence1", "sentence2")
    labels = ("entailment", "neutral", "contradiction")
    mnli = lambda *more: [(n, n, f"{n}e", "slate", "( x )", "( y )", "(ROOT x)", "(ROOT y)", *said(n),
                           *(labels[n % 3] for _ in more)) for n in rows]
    files["MNLI/train.tsv"] = table((*parsed, "label1", "gold_label"), *mnli(1, 1))
    for split in ("matched", "mismatched"):
        files[f"MNLI/dev_{split}.tsv"] = table((*parsed, *(f"label{n}" for n in range(1, 6)), "gold_label"), *mnli(*range(6)))
        files[f"MNLI/test_{split}.tsv"] = table(parsed, *mnli())
    change(files)
    for path, data in files.items():
        put(root / "glue_data" / path, data)
    return root / "glue_data"


def vqa(root, split="train2014", change=lambda asked, answered: None):
    """The questions and annotations of a split, and its pictures: ten questions about five of them."""
    head = {"info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017}, "data_type": "mscoco",
            "data_subtype": split, "license": {"name": "CC", "url": "x"}}
    for n in range(5):
        put(root / f"coco/{split}/COCO_{split}_{n + 1:012d}.jpg", jpeg(colour=(40 * n, 0, 0)))
    asked = head | {"task_type": "Open-Ended", "questions": [
        {"image_id": 1 + n // 2, "question": f"What is number {n}?", "question_id": 1000 * (1 + n // 2) + n % 2} for n in range(COUNT)]}
    say = lambda n: ["net"] * 6 + ["a net"] * 3 + [f"{n}"]
    answered = head | {"annotations": [
        {"question_type": "what is", "multiple_choice_answer": "net", "image_id": one["image_id"], "answer_type": "other",
         "question_id": one["question_id"],
         "answers": [{"answer": said, "answer_confidence": "yes", "answer_id": k + 1} for k, said in enumerate(say(n))]}
        for n, one in enumerate(asked["questions"])]}
    change(asked, answered)
    return (put(root / f"vqa/v2_OpenEnded_mscoco_{split}_questions.json", asked),
            put(root / f"vqa/v2_mscoco_{split}_annotations.json", answered), root / "coco")


def json_lines(path, records):
    return put(path, b"".join(json.dumps(record).encode() + b"\n" for record in records))


def nlvr2(root, change=lambda records: None, layout="images/train"):
    """train.json, dev.json and test1.json with their pictures: those of train in folders of ten directories."""
    files = []
    for split in ("train", "dev", "test1"):
        records = [{"identifier": f"{split}-{n // 2}-{n % 2}-0", "sentence": f"There are {n} dogs.", "label": str(n % 2 == 0),
                    "synset": "dog", "query": "dogs", "left_url": "x", "right_url": "x", "validation": {}} for n in range(COUNT)]
        for n, record in enumerate(records):
            record |= {"directory": n // 2} if split == "train" else {}
            for side in (0, 1):
                folder = f"{layout}/{n // 2}" if split == "train" else split
                name = f"{split}-{n // 2}-{n % 2}-img{side}.png"
                put(root / "nlvr2" / folder / name, jpeg(colour=(20 * n, 99 * side, 0), kind="PNG"))
        change(records)
        files.append(json_lines(root / f"nlvr2/data/{split}.json", records))
    return files, root / "nlvr2"


def snli_ve(root, change=lambda records: None):
    """snli_ve_train.jsonl, _dev and _test, and Flickr30k's pictures."""
    files, labels = [], ("entailment", "neutral", "contradiction")
    for n in range(5):
        put(root / f"flickr30k-images/{1000 + n}.jpg", jpeg(colour=(0, 40 * n, 0)))
    for split in PARTS:
        records = [{"annotator_labels": [labels[n % 3]], "captionID": f"{1000 + n // 2}.jpg#{n % 2}", "gold_label": labels[n % 3],
                    "pairID": f"{1000 + n // 2}.jpg#{n % 2}r1", "sentence1": "Two dogs.", "sentence2": f"There are {n} dogs.",
                    "Flickr30K_ID": str(1000 + n // 2)} for n in range(COUNT)]
        records[-1]["gold_label"] = "-"
        change(records)
        files.append(json_lines(root / f"snli_ve/snli_ve_{split}.jsonl", records))
    return files, root / "flickr30k-images"


def hateful_memes(root):
    """The release's own folder: train, dev and test jsonl, of which test has no labels, and img."""
    for n in range(COUNT):
        put(root / f"hateful_memes/img/{n:05d}.png", jpeg(colour=(0, 0, 20 * n), kind="PNG"))
    for split in PARTS:
        records = [{"id": n, "img": f"img/{n:05d}.png", "text": f"meme {n}"} | ({} if split == "test" else {"label": n % 2})
                   for n in range(COUNT)]
        json_lines(root / f"hateful_memes/{split}.jsonl", records)
    return root / "hateful_memes"


def karpathy_split(root, name, pictures, folder=""):
    """Karpathy's file of a set, ten pictures of two captions each in train, val and test; Flickr30k's has no `filepath`."""
    listed = []
    for n, split in enumerate(["train"] * COUNT + ["val"] * COUNT + ["test"] * COUNT):
        file = f"COCO_{folder}_{n + 1:012d}.jpg" if folder else f"{2000 + n}.jpg"
        put(pictures / folder / file, jpeg(colour=(8 * n, 99, 0)))
        said = [{"tokens": [], "raw": f"A {colour} thing, number {n}.", "imgid": n, "sentid": 2 * n + i}
                for i, colour in enumerate(("red", "small green"))]
        listed.append({"filename": file, "imgid": n, "split": split, "sentids": [2 * n, 2 * n + 1], "sentences": said}
                      | ({"filepath": folder, "cocoid": n + 1} if folder else {}))
    return put(root / f"dataset_{name}.json", {"images": listed, "dataset": name})


def refcoco(root, splits):
    """REFER's miniature with ten expressions a split, each of a picture of its own."""
    def change(refs, found):
        ref, image, box = refs[0], found["images"][0], found["annotations"][0]
        refs[:], found["images"][:], found["annotations"][:] = [], [], []
        for n, split in enumerate(split for split in splits for _ in range(COUNT)):
            number, name = n + 1, f"COCO_train2014_{n + 1:012d}"
            put(root / f"coco/images/train2014/{name}.jpg", jpeg(colour=(6 * n, 9, 99)))
            refs.append(ref | {"ref_id": n, "ann_id": 7 * number, "image_id": number, "split": split, "sent_ids": [n],
                               "file_name": f"{name}_{n}.jpg",
                               "sentences": [{"tokens": [], "raw": f"thing {n}", "sent_id": n, "sent": f"thing {n}"}]})
            found["images"].append(image | {"id": number, "file_name": f"{name}.jpg"})
            found["annotations"].append(box | {"id": 7 * number, "image_id": number, "bbox": [n % 9, 2.5, 20, 9]})
    return refer(root, change)


def pets(root):
    """Oxford's pets as torchvision has them, two classes: ten of trainval and ten of test."""
    folder = root / "oxford-iiit-pet"
    lines = {"trainval": [], "test": []}
    for n in range(2 * COUNT):
        name = ("Abyssinian", "beagle")[n % 2]
        put(folder / f"images/{name}_{n}.jpg", jpeg(colour=(9 * n, 0, 9)))
        lines[("trainval", "test")[n // COUNT]].append(f"{name}_{n} {1 + n % 2} 1 1\n")
    for split, found in lines.items():
        put(folder / f"annotations/{split}.txt", "".join(found).encode())
    return root


def dtd(root):
    """Two textures as torchvision has them, ten pictures of each split."""
    for s, split in enumerate(("train", "val", "test")):
        names = [f"{('banded', 'dotted')[n % 2]}/{n % 2}_{s}{n}.jpg" for n in range(COUNT)]
        for n, name in enumerate(names):
            put(root / "dtd/dtd/images" / name, jpeg(colour=(20 * n, 9, 60 * s)))
        put(root / f"dtd/dtd/labels/{split}1.txt", "\n".join(names).encode())
    return root


def cifar10(root, monkeypatch):
    """CIFAR-10's pickles with ten pictures a batch, whose checksums are told to torchvision."""
    import hashlib

    import numpy as np
    from torchvision.datasets import CIFAR10

    folder, listed = root / "cifar-10-batches-py", {}
    for batch in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        data = np.random.default_rng(len(batch) + len(listed)).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
        put(folder / batch, pickle.dumps({"data": data, "labels": list(range(COUNT))}))
        listed[batch] = hashlib.md5((folder / batch).read_bytes()).hexdigest()
    put(folder / "batches.meta", pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    monkeypatch.setattr(CIFAR10, "train_list", [[b, listed[b]] for b in listed if b != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", listed["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names",
                                          "md5": hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()})
    return root
