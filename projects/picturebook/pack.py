"""Puts the whole pack together: every file by its path, the manifest, and one tar.xz with the same bytes every time."""

import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from PIL import Image

from . import comparisons, corpora, glue, notice, questions, tokenizer, web, writers
from .drawings import Concept, Drawings, concepts
from .language import Language
from .scenes import SceneMaker
from .seeded import rng
from .sources import SOURCES, Sources
from .wordnet import WordNet

NAME = "picturebook-v1"
TOOLS = ("pillow", "resvg-py", "numpy", "tokenizers")       # what the bytes of the pictures and the tokenizer depend on
SCENES = {"train": 1600, "val": 200, "test": 250}
NLVR2 = {"train": 800, "dev": 120, "test1": 120}  # sentences; each has two pairs
CLASS_SIDE, MIN_CLASS, MAX_CLASS = 64, 3, 8  # pixels; concepts of a class


@dataclass
class Pack:
    """Path -> bytes of every file, and what is counted in them."""

    files: dict[str, bytes]
    counts: dict[str, object]


def build(sources: Sources, scenes: dict[str, int] | None = None) -> Pack:
    """The whole pack.

    Args:
        sources: the pinned packages.
        scenes: pictures by split, SCENES by default.
    """
    numbers = scenes or SCENES
    wordnet = WordNet(sources)
    drawings = Drawings(sources)
    words = concepts(sources, drawings, wordnet)
    language, maker = Language(wordnet), SceneMaker(sources, drawings, words)
    pictures = {
        split: [writers.Picture(maker.make(split, n), n) for n in range(count)] for split, count in numbers.items()
    }
    every = [picture for split in pictures.values() for picture in split]
    pack = Pack({}, {"concepts": len(words), "scene_words": len(maker.words)})

    captions = _pictures(pack, every, language)
    phrases = _regions(pack, every, language)
    _refer(pack, every, language)
    _questions(pack, pictures, questions.Questioner(maker, language))
    _comparisons(pack, pictures, language)
    _classes(pack, drawings, words)
    spoken = _web(pack, sources, drawings, words, language)
    text = corpora.text_lines(sources, wordnet)
    for split, lines in text.items():
        raw = b"".join(json.dumps({"text": line}, ensure_ascii=False).encode() + b"\n" for line in lines)
        pack.files[f"text/{split}-00000.jsonl.gz"] = gzip.compress(raw, mtime=0)
        pack.counts[f"text/{split}"] = len(lines)
    for path, data in glue.glue_files(sources, wordnet):
        pack.files[f"glue/{path}"] = data
    for task, (train, dev, test) in glue.SIZES.items():
        pack.counts[f"glue/{task}"] = {"train": train, "dev": dev, "test": test}
    for path, data in tokenizer.tokenizer_files(captions + phrases + spoken + text["train"]):
        pack.files[f"tokenizer/{path}"] = data
    pack.counts["tokenizer"] = tokenizer.VOCABULARY
    for path, data in notice.texts(sources):
        pack.files[path] = data
    return pack


def _pictures(pack: Pack, pictures: list[writers.Picture], language: Language) -> list[str]:
    for picture in pictures:
        pack.files[f"coco/images/{picture.path}"] = picture.scene.jpeg
    made = writers.karpathy(pictures, language)
    pack.files["coco/dataset_coco.json"] = writers.as_json(made)
    pack.counts["images"] = dict(Counter(image["split"] for image in made["images"]))
    pack.counts["captions"] = sum(len(image["sentences"]) for image in made["images"])
    return [s["raw"] for image in made["images"] if image["split"] == "train" for s in image["sentences"]]


def _regions(pack: Pack, pictures: list[writers.Picture], language: Language) -> list[str]:
    phrases: list[str] = []
    for name, made in writers.visual_genome(pictures, language):
        pack.files[f"vg/{name}"] = writers.as_json(made)
        if name.startswith("region"):
            phrases = [region["phrase"] for image in made for region in image["regions"]]
            pack.counts["regions"] = len(phrases)
        if name.startswith("objects"):
            pack.counts["objects"] = sum(len(image["objects"]) for image in made)
    return phrases


def _refer(pack: Pack, pictures: list[writers.Picture], language: Language) -> None:
    refs, instances = writers.refer(pictures, language)
    pack.files["refcoco+/refs(unc).json"] = writers.as_json(refs)
    pack.files["refcoco+/instances.json"] = writers.as_json(instances)
    pack.counts["refs"] = dict(Counter(ref["split"] for ref in refs))
    pack.counts["expressions"] = dict(Counter(ref["split"] for ref in refs for _ in ref["sentences"]))
    for name, made in writers.grounding_lists(refs, instances, pictures):
        pack.files[f"refcoco+/{name}"] = writers.as_json(made)


def _questions(pack: Pack, pictures: dict[str, list[writers.Picture]], questioner: questions.Questioner) -> None:
    pack.counts["vqa"] = {}
    for split, name in (("train", "train2014"), ("val", "val2014"), ("test", "test2015")):
        asked, answered = questions.vqa(pictures[split], questioner)
        pack.files[f"vqa/v2_OpenEnded_mscoco_{name}_questions.json"] = writers.as_json(asked)
        pack.files[f"vqa/v2_mscoco_{name}_annotations.json"] = writers.as_json(answered)
        pack.counts["vqa"][split] = len(asked["questions"])


def _comparisons(pack: Pack, pictures: dict[str, list[writers.Picture]], language: Language) -> None:
    pack.counts["nlvr2"] = {}
    for name, split in (("train", "train"), ("dev", "val"), ("test1", "test")):
        records = comparisons.Comparer(pictures[split], language).sets(NLVR2[name], name)
        pack.files[f"nlvr2/{name}.json"] = b"".join(writers.as_json(record) + b"\n" for record in records)
        pack.counts["nlvr2"][name] = len(records)


def _classes(pack: Pack, drawings: Drawings, words: list[Concept]) -> None:
    """Things that no scene shows, in folders by CLDR subgroup; val has other artists' drawings of them than train."""
    groups: dict[str, list[Concept]] = {}
    for concept in words:
        if not concept.scene:
            groups.setdefault(concept.subgroup, []).append(concept)
    counts = Counter()
    for subgroup, members in groups.items():
        if len(members) < MIN_CLASS:
            continue
        for concept in sorted(members, key=lambda c: rng("class", c.label).random())[:MAX_CLASS]:
            for split, families in (
                ("train", concept.artists("train")),
                ("val", concept.artists("val") + concept.artists("test")),
            ):
                for family in families:
                    slug = concept.label.lower().replace(" ", "-")
                    pack.files[f"imagenet/{split}/{subgroup}/{slug}-{family}.jpg"] = _portrait(
                        drawings, concept, family
                    )
                    counts[split] += 1
    pack.counts["imagenet"] = {**counts, "classes": sum(len(members) >= MIN_CLASS for members in groups.values())}


def _portrait(drawings: Drawings, concept: Concept, family: str) -> bytes:
    random = rng("portrait", concept.label, family)
    image = drawings.scaled(family, concept.label, random.randint(44, 60))
    canvas = Image.new("RGB", (CLASS_SIDE, CLASS_SIDE), tuple(random.randint(215, 255) for _ in range(3)))
    canvas.paste(image, ((CLASS_SIDE - image.width) // 2, (CLASS_SIDE - image.height) // 2), image)
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _web(pack: Pack, sources: Sources, drawings: Drawings, words: list[Concept], language: Language) -> list[str]:
    captions = []
    shards = (
        ("openclipart", web.clipart_pairs(sources), "openclipart-svg"),
        ("icons", web.icon_pairs(drawings, words, language), "iconify"),
    )
    for number, (name, pairs, where) in enumerate(shards):
        members = list(web.samples(pairs, where, number))
        pack.files[f"web/{name}-00000.tar"] = as_tar(iter(members))
        said = [data.decode() for path, data in members if path.endswith(".txt")]
        pack.counts[f"web/{name}"] = len(said)
        captions += said
    return captions


def as_tar(members: Iterator[tuple[str, bytes]]) -> bytes:
    """A tar with nothing in it that depends on when, where or by whom it was written."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def archive(pack: Pack) -> bytes:
    """The pack as tar.xz; like next to like, because that is what xz sees."""
    order = sorted(pack.files, key=lambda path: (path.rpartition(".")[2], path))
    return lzma.compress(as_tar((path, pack.files[path]) for path in order), preset=9 | lzma.PRESET_EXTREME)


def manifest(pack: Pack, compressed: bytes) -> dict:
    """What MANIFEST.json says: the archive's sha256 and size, counts, sources, and each file's sha256."""
    return {
        "name": NAME,
        "archive": f"{NAME}.tar.xz",
        "sha256": hashlib.sha256(compressed).hexdigest(),
        "size": len(compressed),
        "counts": pack.counts,
        "built_with": {name: metadata.version(name) for name in TOOLS},
        "sources": {
            name: {"package": s.package, "version": s.version, "sha256": s.sha256} for name, s in SOURCES.items()
        },
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in sorted(pack.files.items())},
    }


def write(pack: Pack, folder: Path) -> dict:
    """Writes the archive, MANIFEST.json, NOTICE and licenses/ to `folder`; returns the manifest."""
    compressed = archive(pack)
    about = manifest(pack, compressed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / about["archive"]).write_bytes(compressed)
    (folder / "MANIFEST.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for path, data in pack.files.items():
        if path == "NOTICE" or path.startswith("licenses/"):
            target = folder / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
    return about
