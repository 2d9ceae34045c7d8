"""docs/tasks.md as a reader follows it on real data: its commands run on miniatures of the releases, and its recipes read what they write."""

import random
import re
import shlex
from pathlib import Path

import pytest
from miniature_tasks import glue, karpathy_split, nlvr2, pets, refcoco, snli_ve, vqa

from xtoolkit.cli import recipes
from xtoolkit.cli.prepare import main as prepare
from xtoolkit.cli.prepare import parser
from xtoolkit.data.text import load_tokenizer
from xtoolkit.registry import DATASET_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
LINES = [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.S)
         for line in block.splitlines()]
TOKENIZER = "sample://picturebook/tokenizer"
READ_AS_THEY_ARE = {"imagenet", "hateful_memes"}  # by no command


def two_answers(asked, answered):
    """Each the first of ten questions of train and val: `vqa-answers` asks for nine."""
    for one in answered["annotations"][::2]:
        one["multiple_choice_answer"] = "cat"


def downloaded(root):
    """Each release where the page has it: files in the folder where commands run, pictures below `data/`."""
    data, here = root / "data", lambda *files: [file.rename(root / file.name) for file in files]
    refs, instances, pictures = refcoco(root, ("train", "val", "testA", "testB"))
    here(refs, instances), data.mkdir()
    pictures.rename(data / "coco")
    for split in ("train2014", "val2014", "test2015"):
        here(*vqa(data, split, two_answers)[:2])
    karpathy_split(root, "coco", data / "coco", "train2014"), karpathy_split(root, "flickr30k", data / "flickr30k")
    here(*nlvr2(data)[0])
    files, pictures = snli_ve(root)
    here(*files), [picture.rename(data / "flickr30k" / picture.name) for picture in pictures.iterdir()]
    glue(root), pets(root / "raw")


@pytest.mark.slow
def test_the_commands_of_the_page_prepare_what_its_recipes_read(tmp_path, monkeypatch, capsys):
    downloaded(tmp_path)
    monkeypatch.chdir(tmp_path)
    sources = []
    for line in LINES:
        if line[0] == "python":
            assert prepare([*line[2:], "--workers", "1"]) == 0, (line, capsys.readouterr().err)
            sources.append(parser().parse_args(line[2:]).source)
    assert len(sources) == 11 and len(set(sources)) == 8
    start, opened = [f"tokenizer={TOKENIZER}", "init.path=null", "encoders.vision.init=null", "encoders.text.init=null"], set()
    for line in LINES:
        name = re.fullmatch(r"xfm/finetune/([^/]+).yaml", line[3]) if line[2] == "--config" else None
        if name is not None and name[1] not in READ_AS_THEY_ARE:
            found = recipes.read(line[3], start, only=line[5:6])
            for block in [stream.data for stream in found.streams.values()] + [block["data"] for block in found.evaluate.values()]:
                dataset = DATASET_REGISTRY.build(dict(block), line[3], image_size=32, patch_size=8, train=False,
                                                 tokenizer=load_tokenizer(TOKENIZER))
                for source in range(len(block.get("sources") or "1")):
                    assert dataset.load(source, 0, 1, random.Random(0)) is not None
            opened.add(name[1])
    assert opened == {"cola", "probe", "retrieval_coco", "retrieval_flickr30k", "vqa", "nlvr2", "snli_ve", "refcoco+"}
