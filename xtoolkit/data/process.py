"""What makes the texts and pictures of an item: tokens and their masking, pixels and theirs."""

import random
from dataclasses import replace

from PIL import ImageOps
from torch import Tensor

from xtoolkit.batch import stable_key
from xtoolkit.data import items, limits
from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Augment, Normalize, LazyImage, centred, erased, rand_augment, random_crop
from xtoolkit.data.left_to_right import LeftToRight, Predicted
from xtoolkit.data.masking import ImageMask, TextMask, mask_patches, mask_text
from xtoolkit.data.text import Tokenizer, clean_caption, says_side
from xtoolkit.registry import ConfigError


class TextProcessor:
    """A text as an item holds it: token ids, and what of them is to be predicted if ``mask_text`` or ``left_to_right`` is read.

    Args:
        tokenizer: see Tokenizer.
        max_tokens: longest text, its two specials counted; what is longer is cut.
        clean: clean as captions are.
        mask: the `mask` block.
        views: the marks that are read.
        left_to_right: the `left_to_right` block.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, clean: bool = False, mask: TextMask | None = None,
                 views: frozenset = frozenset(), left_to_right: LeftToRight | None = None):
        self.tokenizer, self.max_tokens, self.clean = tokenizer, max_tokens, clean
        self.mask = mask if "mask_text" in views else None
        self.predicted = Predicted(tokenizer, left_to_right, max_tokens) if "left_to_right" in views else None

    def __call__(self, text: str, rng: random.Random, bad) -> items.Text:
        """One text.

        Args:
            bad: ``bad(kind, detail)`` makes the BadSample that names the place.

        Raises:
            BadSample: no token is left of the text.
        """
        text = self._cut(text)
        ids, starts = self.tokenizer.encode_words(text, self.max_tokens)
        if not text.strip() or not (starts >= 0).any():
            raise bad("empty caption", "no token is left of the text")
        made = self.masked(ids, starts, rng)
        return made if self.predicted is None else replace(made, left_to_right=self.predicted(text, rng))

    def pair(self, first: str, second: str, rng: random.Random, bad) -> items.Text:
        """Two texts as one, see ``Tokenizer.encode_pair``; otherwise as one text."""
        texts = [self._cut(text) for text in (first, second)]
        ids, starts = self.tokenizer.encode_pair(*texts, self.max_tokens)
        if not all(map(str.strip, texts)) or self.tokenizer.eos in (ids[1], ids[-2]):
            raise bad("empty caption", "no token is left of one of the two texts")
        return self.masked(ids, starts, rng)

    def _cut(self, text: str) -> str:
        text = text[:limits.CHARACTERS * self.max_tokens]
        return clean_caption(text) if self.clean else text

    def masked(self, ids, starts, rng: random.Random) -> items.Text:
        """The item of tokens (L,) int64 whose words begin at ``starts``, see ``mask_text``."""
        masked = self.mask and mask_text(ids, starts, self.tokenizer.plain, self.tokenizer.mask, self.mask, rng)
        return items.Text(ids, self.tokenizer.pad, masked)


class ImageProcessor:
    """A picture as an item holds it: cropped, turned, resized and normalised, and which patches are masked of it if
    ``mask_image`` is read.

    Args:
        image_size: pixels a side of what the model reads; None where no encoder reads pictures.
        patch_size: pixels a side of a patch.
        mean: of the channels, in [0, 1]; CLIP's by default.
        std: of the channels.
        augment: the `augment` block; None: the whole picture as it is, or its middle.
        crop: without ``augment``: the square in the middle, its side this share of the picture's shorter one; None: the whole
            picture, its sides made equal.
        mask: the `image_mask` block.
        views: the marks that are read.

    Attributes:
        side: patches a side.

    Raises:
        ConfigError: no size, or a mask of more patches than there are.
    """

    def __init__(self, image_size: int | None, patch_size: int | None, mean=CLIP_MEAN, std=CLIP_STD,
                 augment: Augment | None = None, mask: ImageMask | None = None, views: frozenset = frozenset(),
                 crop: float | None = None):
        if image_size is None:
            raise ConfigError("data: it gives pictures, and no encoder of the recipe reads them, so that their size is "
                              "unknown; name a dataset of texts alone")
        self.size, self.side = image_size, image_size // patch_size
        self.normalize, self.augment, self.crop = Normalize(mean, std), augment, crop
        self.mask = mask if "mask_image" in views else None
        if self.mask is not None and self.mask.patches > self.side**2:
            raise ConfigError(f"data.image_mask.patches: {self.mask.patches} of {self.side**2} patches cannot be "
                              "masked")

    def __call__(self, data: bytes, name: str, rng: random.Random, bad, texts=()) -> items.Image:
        """One picture.

        Args:
            data: bytes of its file.
            name: which picture it is: rows that show the same one have the same.
            bad: ``bad(kind, detail)`` makes the BadSample that names the place.
            texts: that go with it; where one says left or right, it is not mirrored.

        Raises:
            BadSample: the bytes are no picture.
        """
        picture, how = LazyImage(data, bad), self.augment
        box = how and how.crop_scale and random_crop(picture.width, picture.height, how.crop_scale, rng)
        if how is None and self.crop is not None:
            box = centred(picture.width, picture.height, self.crop)
        image = picture.resized(self.size, box)
        if how is not None:
            if rng.random() < how.flip and not says_side(texts):
                image = ImageOps.mirror(image)
            if how.randaugment is not None:
                image = rand_augment(image, how.randaugment, True, rng)
        pixels = self.normalize(image)
        if how is not None and how.erase and rng.random() < how.erase:
            pixels = erased(pixels, rng)
        return self.item(pixels, name, rng)

    def item(self, pixels: Tensor, name: str, rng: random.Random) -> items.Image:
        """The item of pixels (3, H, W) that are normalised already."""
        return items.Image(pixels, stable_key(name), name, self.mask and mask_patches(self.side, self.mask, rng))

    def picture(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 of pixels (3, H, W) that it has made."""
        return self.normalize.undo(pixels)
