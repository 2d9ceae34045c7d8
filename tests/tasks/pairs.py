"""A small X-FM, three batches of pictures with captions, and ranks that are simulated one after the other."""

from pathlib import Path

import torch

from batches import Batches
from xtoolkit import recipe as recipes
from xtoolkit.batch import Batch, ImageField, TextField, stable_key
from xtoolkit.model import Model

RECIPE = Path(__file__).parents[2] / "projects/xfm/tiny.yaml"
CAPTIONS = ((2, 3, 1), (4, 1), (5, 2, 1, 1))


def model(*changes) -> Model:
    return Model(recipes.load(str(RECIPE), ["train.precision=fp32", "encoders.vision.stem=null", *changes], missing_files=False)).eval()


def batches(captions=CAPTIONS, masked=True) -> Batches:
    """Pictures with as many captions as ``captions`` says, batch by batch; each caption has one to three masked tokens."""
    draw, found = torch.Generator().manual_seed(0), Batches()
    for number, counts in enumerate(captions):
        owner, length = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), 6 + number
        mask = torch.arange(length) < torch.randint(5, length + 1, (len(owner), 1), generator=draw)
        ids = torch.randint(4, 3000, (len(owner), length), generator=draw).where(mask, 1)
        names = [f"{number}-{picture}" for picture in range(len(counts))]
        position = [row * length + 1 + column for row in range(len(owner)) for column in range(row % 3 + 1)]
        position = torch.tensor(position) if masked else torch.zeros(0, dtype=torch.long)
        key = lambda parts: torch.tensor([stable_key(part) for part in parts])
        text = TextField(ids, mask, key(map(str, ids.tolist())), ids.flatten().index_fill(0, position, 3999).view_as(ids),
                         position, ids.flatten()[position])
        pixels = torch.randn(len(counts), 3, 96, 96, generator=draw)
        found.append(Batch(text=text, image=ImageField(pixels, key(names), image_id=names), image_index=owner))
    return found


class Rank:
    """One process of several: takes ``numbers`` of the batches; the processes ``before`` it are done."""

    def __init__(self, numbers, before=()):
        self.numbers, self.before = numbers, before

    def part(self, count):
        return self.numbers

    def gather(self, mine):
        self.all = [*self.before, *mine]
        return self.all
