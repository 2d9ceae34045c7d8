"""FLAVAPairs: pairs of which some have another picture's text, and no masked token or patch of those is asked for.

Shape letters: B rows.
"""

import dataclasses
import random
from dataclasses import dataclass

import torch

from xtoolkit.batch import Batch, ImageField, TextField
from xtoolkit.data import items
from xtoolkit.data.blocks import Path, ShardBlock, Sources
from xtoolkit.data.datasets import Length, Pairs
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Augment, Mean, Std
from xtoolkit.data.masking import ImageMask, TextMask
from xtoolkit.data.record import Record
from xtoolkit.fields import LabelField
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, Share

TRIES = 8


@dataclass(frozen=True)
class MatchField(LabelField):
    """``value`` (B,) int64: 1 where the text is the picture's own, 0 where it is another's."""

    @classmethod
    def example(cls, rows: int, block: dict) -> "MatchField":
        return cls(torch.ones(rows, dtype=torch.int64))


@DATASET_REGISTRY.register
class FLAVAPairs(Pairs):
    """Pairs in which each text is changed, with a probability, for that of another picture of the same source.

    ``$match`` says which are whose. Both are masked all the same, since a masked pair is what is judged, but what is behind the
    masks of a pair that does not match is not asked for.

    YAML: {type: FLAVAPairs, path: sample://picturebook/pairs, max_tokens: 77, mismatch: 0.1}

    Args:
        mismatch: the probability; only in training.
        others: path: sources: images: shards: max_tokens: clean: mask: image_mask: augment: mean: std: as Pairs has them.

    Source: FLAVA (2112.04482) 3.2 for what is asked of whom; torchmultimodal's released transform for 0.1, of which the paper has
        no figure.

    Raises:
        ConfigError: a source is remote: another caption of it cannot be read at any place.
    """

    FIELDS = {"image": ImageField, "text": TextField, "match": MatchField}
    MARKS = {"mask_text": "mask", "mask_image": "image_mask"}

    def __init__(self, tokenizer, image_size, patch_size, views: frozenset = frozenset(), train: bool = True,
                 path: Path | None = None, images: str | None = None, sources: Sources | None = None,
                 shards: ShardBlock | None = None, max_tokens: Length = 77, clean: bool = False, mask: TextMask | None = None,
                 image_mask: ImageMask | None = None, augment: Augment | None = None, mean: Mean = CLIP_MEAN, std: Std = CLIP_STD,
                 mismatch: Share = 0.1):
        super().__init__(tokenizer, image_size, patch_size, views, train, path, images, sources, shards, max_tokens, clean, mask,
                         image_mask, augment, mean=mean, std=std)
        self.mismatch = mismatch if train else 0.0
        if self.mismatch and (remote := next((s for s in self._shards if s.remote), None)):
            raise ConfigError(f"data.mismatch: {remote.files[0]} is remote, and the caption of any other shard would have to be "
                              "fetched for each text that is changed: copy the shards to a disk, or set `mismatch: 0`")

    def load(self, source: int, sample: int, rows: int, rng: random.Random) -> items.Item:
        item = super().load(source, sample, rows, rng)
        other = self._other(source, sample, rng) if rng.random() < self.mismatch else None
        match = int(other is None)
        return dataclasses.replace(item, texts=item.texts if match else [other], fields=item.fields | {"match": match})

    def collate(self, loaded: list[items.Item]) -> Batch:
        """The batch; in training nothing is asked of the masked words and patches of pairs that do not match (``$match``)."""
        batch = super().collate(loaded)
        if not self.train:
            return batch
        match, text, image = batch["match"].value.bool(), batch.text, batch.image
        if text.masked_pos is not None:
            asked = match[text.masked_pos // text.ids.shape[1]]
            text = dataclasses.replace(text, masked_pos=text.masked_pos[asked], labels=text.labels[asked])
        if image.patch_mask is not None:
            asked = image.patch_mask & match[:, None]
            image = dataclasses.replace(image, asked=asked, masked_count=int(asked.sum()))
        return batch.with_fields(text=text, image=image)

    def _other(self, source, sample, rng):
        """A text of another picture; None if some tries find none with other words."""
        shards = self._shards[source]
        own = set(Record(shards, sample).captions())
        for _ in range(TRIES):
            record = Record(shards, rng.randrange(len(shards)))
            caption = rng.choice(record.captions())
            if caption not in own:
                return self._text(caption, rng, record.bad)
        return None
