"""Any picture that a person may hold - a path, a PIL image, a tensor - as the pixels that a model reads."""

import os
import re
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from xtoolkit.data.images import CLIP_MEAN, CLIP_STD, Normalize, LazyImage

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path takes one of two slashes away


class ImageTransform:
    """The whole picture at the model's size, normalised: what evaluation data goes through, by the same code.

    A path is read as training reads its files: an EXIF orientation is not applied, transparent pixels become white, every
    mode becomes RGB, of several frames the first is taken, and a JPEG is decoded at a half, a quarter or an eighth where
    that has pixels enough. A PIL image or a tensor is decoded already, so that it is made smaller from all its pixels: a
    JPEG that is more than twice as large as the model's pictures then differs by a few grey levels from its path.

    Args:
        size: pixels a side of the result; the aspect is not kept, as in training.
        mean: of the channels, in [0, 1].
        std: of the channels.
    """

    def __init__(self, size: int, mean=CLIP_MEAN, std=CLIP_STD):
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self._normalize = Normalize(self.mean, self.std)

    def __call__(self, picture) -> Tensor:
        """(3, size, size) float32 of a picture; see ``open`` for what is one."""
        return self.pixels(self.open(picture))

    def open(self, picture, name: str = "the picture") -> LazyImage:
        """A picture whose ``width`` and ``height`` are known.

        Args:
            picture: a path of a file in one of the formats that training reads (``images.FORMATS``); a PIL image of any
                mode that says which number is white (not F; I only as grey of 16 bits); a tensor (3, H, W), RGB, of dtype
                uint8 (0 to 255) or floating (0 to 1, rounded to the nearest of 256 levels).
            name: for messages; a path names itself.

        Raises:
            TypeError: it is none of these.
            ValueError: a tensor of another shape or range, bytes that are no picture, a folder, an address.
            FileNotFoundError: nothing is at the path.
        """
        if isinstance(picture, (str, os.PathLike)):
            name = os.fspath(picture)
            if ADDRESS.match(name):
                raise ValueError(f"{name} is an address, not a path: fetch it first")
            if os.path.isdir(name):
                raise ValueError(f"{name} is a folder; name a picture in it")
            picture = Path(name).read_bytes()
        elif isinstance(picture, Tensor):
            picture = _from_tensor(picture, name)
        elif not isinstance(picture, Image.Image):
            raise TypeError(f"{name} is a {type(picture).__name__}; a picture is a path, a PIL image or a tensor "
                            "(3, H, W) (an array: PIL.Image.fromarray(array))")
        return LazyImage(picture, lambda kind, detail: ValueError(f"{name}: {kind}: {detail}"))

    def pixels(self, picture: LazyImage) -> Tensor:
        """(3, size, size) float32 of an open picture, once."""
        return self._normalize(picture.resized(self.size))


def _from_tensor(tensor: Tensor, name: str) -> Image.Image:
    if tensor.dim() != 3 or tensor.shape[0] != 3 or min(tensor.shape) < 1:
        raise ValueError(f"{name} is a tensor of shape {tuple(tensor.shape)}; a picture is (3, H, W)")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        levels = (tensor.float() * 255).round()
        if not (levels.min() >= 0 and levels.max() <= 255):  # so written that NaN is refused too
            raise ValueError(f"{name} is a float tensor with values from {tensor.min():.4g} to {tensor.max():.4g}; "
                             "they must lie in 0 to 1. Levels of 0 to 255: `.to(torch.uint8)`. Pixels that are "
                             "normalised already (by `.transform`): ImageField(pixels), of xtoolkit.batch")
        tensor = levels.byte()
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"{name} is a tensor of {tensor.dtype}; give uint8 (0 to 255) or floats (0 to 1)")
    return Image.fromarray(tensor.permute(1, 2, 0).contiguous().numpy())
