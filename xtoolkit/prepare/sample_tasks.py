"""Parts of the sample pack that no official release has: captions held against layouts, digits, a split for choosing."""

import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from xtoolkit.prepare.official import Report
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.sample_pack import same
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.streaming import elements
from xtoolkit.prepare.writer import Options, RowPart, TarPart

NAMING = 2  # a scene's first captions, which name every thing in it (projects/picturebook/language.py)
FIFTH = 5  # one picture in so many is for choosing, or for test


def entailment(pack: Path, options: Options, split: str, prefix: str) -> Report:
    """Captions against layouts, SNLI-VE's form: does a picture show what a caption of this or of another picture names?

    ``entailment``: the picture is the caption's own. ``contradiction``: none of the kinds of things that the caption names is
    in the picture. ``neutral``: some are, and some are not; a layout settles everything, so that this is the middle between
    the two, not SNLI's "cannot be told". Each caption comes once with each label, so that words alone say nothing, and
    pictures come about equally often with each. The label is derived from ``instances.json`` alone: a caption names the
    things of its own picture.
    """
    files = Span.whole(pack / "coco/dataset_coco.json"), Span.whole(pack / "refcoco+/instances.json")
    return run(prefix, [Job(prefix, RowPart, write_entailment, (files, split))], options, Report(), 1)


def write_entailment(payload: tuple, part: RowPart):
    """The work of one job: a split."""
    (captions, layouts), split = payload
    kinds = defaultdict(set)
    for _, thing in elements(layouts.path, "annotations"):
        kinds[thing["image_id"]].add(thing["category_id"])
    pictures = {one["cocoid"]: one for _, one in elements(captions.path, "images") if one["split"] == split}
    partly = lambda a, b: bool(kinds[a] & kinds[b]) and not kinds[a] <= kinds[b]
    whole, kept = [], [a for a in pictures if len(kinds[a]) > 1]
    while kept != whole:  # a picture that is shown is also some caption's own: else what it shows would tell its labels
        whole, kept = kept, [a for a in kept if any(partly(a, b) for b in kept) and any(not kinds[a] & kinds[b] for b in kept)]
    times = {"neutral": Counter(), "contradiction": Counter(), "entailment": Counter()}
    for number in range(NAMING):
        for own in sorted(kept, key=lambda a: _drawn(number, a)):
            among = {"entailment": [own], "neutral": [b for b in kept if partly(own, b)],
                     "contradiction": [b for b in kept if not kinds[own] & kinds[b]]}
            for label, found in among.items():
                least = min(times[label][b] for b in found)
                found = [b for b in found if times[label][b] == least]
                image = found[int.from_bytes(_drawn(number, own, label)[:8]) % len(found)]
                times[label][image] += 1
                said, name = pictures[own]["sentences"][number], pictures[image]
                part.write({"image": f"{name['filepath']}/{name['filename']}", "image_id": f"coco-{image}",
                            "sentence": said["raw"], "label": label, "sentid": said["sentid"],
                            "id": f"{said['sentid']}-{label}"}, said["raw"])


def _drawn(*what) -> bytes:
    """A number that is drawn once and for all."""
    return hashlib.sha256(repr(what).encode()).digest()


def digits(options: Options, split: str, prefix: str) -> Report:
    """scikit-learn's handwritten digits (UCI, 1,797 of 8 x 8 grey levels) as PNGs with labels `0` to `9`.

    Test is the last fifth of each digit in the order of its file, train the others.
    """
    return run(prefix, [Job(prefix, TarPart, write_digits, split)], options, Report(), 1)


def write_digits(split: str, part: TarPart):
    """The work of one job: a split."""
    from sklearn.datasets import load_digits  # here: it takes a second, and nothing else of this file needs it

    found = load_digits()
    for digit in range(10):
        numbers = np.flatnonzero(found.target == digit)
        first = len(numbers) - len(numbers) // FIFTH
        for number in numbers[first:] if split == "test" else numbers[:first]:
            data = io.BytesIO()
            Image.fromarray((found.images[number] * 255 / 16).round().astype(np.uint8)).save(data, "PNG")
            part.write(f"{number:04d}", "png", data.getvalue(), {"image_id": f"digits-{number}", "label": str(digit)}, (8, 8))


def select(source: Path, out: Path, chosen: bool) -> None:
    """A folder of a folder a class, with a fixed fifth of the pictures of each (``chosen``), or with the others."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(folder.iterdir(), key=lambda path: _drawn(path.name))
        count = max(1, round(len(files) / FIFTH))
        for path in files[:count] if chosen else files[count:]:
            same(path, out / folder.name / path.name)


def beside(out: Path, root: Path) -> None:
    """Puts the pictures that rows name beside their table: hard links to those below ``root``, else copies."""
    for table in out.glob("*.jsonl"):
        rows = map(json.loads, table.read_text(encoding="utf-8").splitlines())
        for name in dict.fromkeys(name for row in rows for name in row.get("images", [row.get("image")]) if name):
            same(root / name, out / name)
