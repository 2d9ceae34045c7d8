"""The shapes that a dataset gives to the plan are those of its batches; and datasets that a person writes."""

from dataclasses import dataclass

import pytest
import torch

from xtoolkit.batch import ImageField, RegionField, TextField
from xtoolkit.data.base import StreamDataset
from xtoolkit.data.loader import Loader
from xtoolkit.registry import DATASET_REGISTRY, filled, schema

SIZES = {"image_size": 32, "patch_size": 8}
BLOCKS = {"mask": {"prob": 0.5, "max": 6}, "image_mask": {"patches": 6, "min_block": 4}, "max_per_image": 3}
MARKS = frozenset({"mask_text", "mask_image"})
KINDS = ("Text", "Images", "Pairs", "Regions", "SyntheticText", "SyntheticImages", "SyntheticPairs", "SyntheticRegions")


@pytest.mark.parametrize("views", [MARKS, frozenset()], ids=["masked", "clean"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_example_has_the_fields_types_and_shapes_of_a_batch(kind, views, tokenizer, pair_shards, region_shard, text_file):
    cls = DATASET_REGISTRY.get(kind)
    paths = {"Text": text_file, "Regions": region_shard}
    block = BLOCKS | ({} if "Synthetic" in kind else {"path": paths.get(kind, pair_shards)})
    block = {k: v for k, v in block.items() if k in schema(cls)}
    made = cls.example(filled(cls, block), 4, SIZES, views, None)
    rows = made.size
    assert rows == (12 if "Regions" in kind else 4)
    data = DATASET_REGISTRY.build(block | {"type": kind}, "here", tokenizer=tokenizer, **SIZES, views=views)
    loaded = Loader(kind, data, rows, 1, 0).at(0)
    assert set(made) == set(loaded) == set(cls.FIELDS)
    for name, field in loaded.items():
        assert type(made[name]) is cls.FIELDS[name] is type(field)
        for part, value in vars(field).items():
            mine = getattr(made[name], part)
            if isinstance(value, torch.Tensor):
                assert mine.is_meta and mine.dtype == value.dtype and mine.dim() == value.dim(), (name, part)
                assert mine.shape[2:] == value.shape[2:], (name, part)
            else:
                assert type(mine) is type(value), (name, part)


def test_lengths_and_masks_of_an_example():
    text, synthetic = (DATASET_REGISTRY.get(kind) for kind in ("Text", "SyntheticText"))
    assert text.max_length(filled(text, {})) == 128 and synthetic.max_length(filled(synthetic, {})) == 32
    assert DATASET_REGISTRY.get("Images").max_length({}) is None
    block = filled(text, {"mask": {"prob": 0.15, "max": 20}})
    made = text.example(block, 4, {}, MARKS, 12)
    assert made.text.ids.shape == (4, 12) and made.text.masked_pos.shape == (4 * 2,)
    assert text.example(block, 4, {}, MARKS).text.masked_pos.shape == (4 * 19,)
    assert text.example(filled(text, {}), 4, {}, frozenset()).text.masked_ids is None
    pairs = DATASET_REGISTRY.get("Pairs")
    assert set(pairs.example(filled(pairs, {}), 4, {}, frozenset())) == {"text"}, "no encoder reads pictures"


@dataclass(frozen=True)
class Hide:
    """A block of masks that counts tokens."""

    tokens: int

    def most(self, length: int) -> int:
        return self.tokens


class Phrases(TextField):
    MARKS = TextField.MARKS | {"hide_end": "masked"}


class Parts(RegionField):
    pass


class Boxes(StreamDataset):
    """Regions whose keys have names of their own."""

    FIELDS = {"image": ImageField, "text": Phrases, "region": Parts}
    MARKS = {"mask_text": "hide", "hide_end": "last"}

    def __init__(self, words: int, hide: Hide | None = None, last: float = 0.5, boxes: int = 3):
        raise AssertionError("an example opens nothing")

    @classmethod
    def max_length(cls, block):
        return block["words"]


def test_an_example_assumes_no_key_of_a_block():
    example = lambda cls, *views, **block: cls.example(filled(cls, block), 4, SIZES, frozenset(views))
    plain = example(Boxes, words=9)
    assert plain.size == 4 and plain.text.ids.shape == (4, 9) and plain.text.masked_ids is None
    assert type(plain.text) is Phrases and type(plain.region) is Parts
    assert example(Boxes, "mask_text", words=9, hide={"tokens": 2}).text.masked_pos.shape == (4 * 2,)
    assert example(Boxes, "hide_end", words=9).text.masked_pos.shape == (4 * 9,), "the block does not say how many"

    class Several(Boxes):
        @classmethod
        def rows_each(cls, block):
            return block["boxes"]

    several = example(Several, words=9)
    assert several.size == 12 and several.image.rows == 4

    class Endless(Boxes):
        @classmethod
        def max_length(cls, block):
            return None

    with pytest.raises(TypeError, match=r"how long \$text is at most is not known: Endless needs a classmethod `max_length`"):
        example(Endless, words=9)
