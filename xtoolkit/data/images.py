"""From the bytes of a picture to normalised pixels: decoding, crops, flips and RandAugment, seeded per sample."""

import io
import math
import random
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor

from xtoolkit.data.limits import MAX_PIXELS, looks
from xtoolkit.registry import Positive, Range, Share

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
GREY = (128, 128, 128)
# Pillow's name of each format to its endings, by `PIL.Image.registered_extensions()`; the first is tried first. Left out are
# what Pillow cannot decode by itself (WMF, BUFR, GRIB, HDF5, MPEG), EPS, for which it starts a program, IPTC, which is a wrapper
# of any other format, EPS too, what it decodes in Python: minutes a picture, with older ones unbounded (FITS, QOI), and icons
# (ICO, ICNS): the pictures in them may have any size, whatever the icon says, and are decoded before it is known.
FORMATS = {
    "JPEG": "jpg jpeg jpe jfif mpo", "PNG": "png apng", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif tiff",
    "AVIF": "avif avifs", "JPEG2000": "jp2 j2k jpc jpf jpx j2c", "PPM": "pbm pgm ppm pnm pfm", "BLP": "blp",
    "CUR": "cur", "DCX": "dcx", "DDS": "dds", "DIB": "dib", "FLI": "fli flc", "FTEX": "ftc ftu", "GBR": "gbr",
    "IM": "im", "MSP": "msp", "PCX": "pcx", "PIXAR": "pxr", "PSD": "psd", "SGI": "sgi rgb rgba bw",
    "SUN": "ras", "XBM": "xbm", "XPM": "xpm", "PCD": "pcd", "TGA": "tga icb vda vst"}
ENDINGS = frozenset(" ".join(FORMATS.values()).split())

Scale = Annotated[float, Range(0, 1, open_low=True)]
RandAugment = tuple[Annotated[int, Range(0)], Annotated[int, Range(0, 10)]]


@dataclass(frozen=True)
class Augment:
    """The `augment` block of streams without boxes.

    Attributes:
        crop_scale: smallest and largest share of the picture's area in a random crop; null: the whole picture.
        flip: how often a picture is mirrored; never one whose texts say left or right.
        randaugment: [operations, magnitude of 10] of RandAugment; null: none.
        erase: how often a box of the normalised picture is replaced with noise, see ``erased``; BEiT's fine-tuning: 0.25.
    """

    crop_scale: tuple[Scale, Scale] | None = (0.2, 1.0)
    flip: Share = 0.5
    randaugment: RandAugment | None = (2, 7)
    erase: Share = 0.0

    def problems(self) -> list[tuple[str, str]]:
        crop = self.crop_scale
        if crop is None or crop[0] <= crop[1]:
            return []
        return [("crop_scale", f"must be [smallest, largest], not {crop}")]


@dataclass(frozen=True)
class RegionAugment:
    """The `augment` block of a region stream: nothing that moves a pixel but the crop and the flip, which boxes follow.

    Attributes:
        crop: a random crop around the boxes; false: the whole picture.
        least: share of the picture's width, and of its height, that a crop keeps at least; the release's crops keep any share.
        flip: how often a picture is mirrored; never one whose texts say left or right.
        randaugment: [operations, magnitude of 10] of RandAugment, colours only; null: none.
    """

    crop: bool = True
    least: Share = 0.0
    flip: Share = 0.5
    randaugment: RandAugment | None = (2, 7)


class LazyImage:
    """A picture whose header is read and whose pixels are not: its size is known before it is decoded.

    Args:
        data: the file's bytes; or an open picture, which is left as it is.
        bad: ``bad(kind, detail)`` makes the BadSample that names the place.
    """

    def __init__(self, data: bytes | Image.Image, bad):
        self._bad = bad
        try:
            self._image = Image.open(io.BytesIO(data), formats=list(FORMATS)) if isinstance(data, bytes) else data
            if self._image is data:
                data.load()  # all of it: a JPEG that is still unread would be decoded smaller, for its owner too
        except UnidentifiedImageError:  # its own words are the address of an object
            raise bad("corrupt image", f"of no format that Pillow reads: {looks(data)}")
        except Exception as e:  # so many readers raise whatever they meet in a damaged file
            raise bad("corrupt image", str(e) or repr(e))
        self.width, self.height = self._image.size
        if not 0 < self.width * self.height <= MAX_PIXELS:
            raise bad("corrupt image", f"{self.width} x {self.height} pixels, none or more than {MAX_PIXELS}")

    def resized(self, size: int, box: tuple | None = None) -> Image.Image:
        """The part ``box`` (left, top, right, bottom, in pixels; None: all of it) at ``size`` x ``size``, RGB, bicubic.

        A JPEG is decoded at a half, a quarter or an eighth where that still has the pixels asked for. Once only.
        """
        image, (left, top, right, bottom) = self._image, box or (0, 0, self.width, self.height)
        try:
            if image.format == "JPEG":
                image.draft("RGB", (math.ceil(self.width * size / max(1, right - left)),
                                    math.ceil(self.height * size / max(1, bottom - top))))
            if image.mode != "RGB" or "transparency" in image.info:
                image = _rgb(image)
            x, y = image.width / self.width, image.height / self.height
            fitted = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
            return image.resize((size, size), Image.Resampling.BICUBIC, box=fitted)
        except Exception as e:
            raise self._bad("corrupt image", str(e) or repr(e))


def _rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: 16 bits as their high byte, what is transparent on white.

    Raises:
        ValueError: its numbers have no range that says which is white: mode F always, mode I outside 0 to 65535.
    """
    if image.mode == "F":
        raise ValueError("mode F, numbers without a range: make them levels of 0 to 255 first, of mode L or RGB")
    if image.format == "PNG" and image.tile and (colour := image.info.get("transparency")) is not None:
        # It is in the depth of the file, and Pillow compares it so with pixels that it has brought to 8 bits.
        raw = image.tile[0][3]
        if raw in ("L;2", "L;4"):
            image.info["transparency"] = colour * (85 if raw == "L;2" else 17)
        elif raw == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in colour)
    if image.mode.startswith("I"):
        image = _high_byte(image)
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16, I;16B, ..., and I) as L, or as LA where a colour of the file is transparent."""
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    least, most = levels.min(), levels.max()
    if image.mode == "I" and (least < 0 or not (most == 0 or 255 < most < 1 << 16)):
        raise ValueError(f"mode I with levels from {least} to {most}; it is read as 16 bits, 0 (black) to 65535 (white): "
                         "make them levels of 0 to 255 first, of mode L or RGB")
    bits = 12 if tags.get(258) == (12,) else 16  # TIFF's BitsPerSample
    grey = (levels >> bits - 8).astype(np.uint8)
    found = Image.fromarray(~grey if tags.get(262) == 0 else grey)  # TIFF's PhotometricInterpretation: 0 is white
    if (colour := image.info.get("transparency")) is not None:
        found.putalpha(Image.fromarray(np.where(levels == colour, 0, 255).astype(np.uint8)))
    return found


def random_crop(width: int, height: int, scale: list[float], rng: random.Random) -> tuple[int, int, int, int]:
    """The box of torchvision's RandomResizedCrop: area uniform in ``scale``, aspect log-uniform in [3/4, 4/3]."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centred(width: int, height: int, share: float) -> tuple[float, float, float, float]:
    """The box of a square in the middle of a picture, its side a share of the shorter one: what timm's evaluation crops after it
    has resized the shorter side to the model's over that share."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def erased(pixels: Tensor, rng: random.Random) -> Tensor:
    """A copy of normalised pixels (3, H, W) with a box of standard normal noise: area uniform in 1/50 to 1/3 of the picture,
    aspect log-uniform in 0.3 to 1/0.3; as it was if ten boxes in a row do not fit.

    Source: Zhong et al. 2017 (1708.04896), as timm has it and BEiT fine-tunes with it: noise pixel by pixel, one box.
    """
    height, width = pixels.shape[1:]
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            noise = torch.randn(3, h, w, generator=torch.Generator().manual_seed(rng.getrandbits(63)))
            pixels = pixels.clone()
            pixels[:, top:top + h, left:left + w] = noise
            break
    return pixels


def rand_augment(image: Image.Image, ops: list[int], geometric: bool, rng: random.Random) -> Image.Image:
    """RandAugment as the X-VLM family runs it: ``ops[0]`` operations, each applied half of the time.

    ``ops[1]`` is their magnitude of 10. At 7: shear 0.21, shift 7 pixels of 224, turn 21 degrees (either way),
    brightness and sharpness 1.36; uncovered pixels are grey (128). ``geometric`` False leaves out what moves pixels,
    for pictures with boxes.
    """
    count, magnitude = ops
    names = COLOUR + MOVES if geometric else COLOUR
    for _ in range(count):
        name, apply, sign = rng.choice(names), rng.random() < 0.5, rng.choice((-1, 1))
        if apply:
            image = _operate(image, name, magnitude / 10, sign)
    return image


COLOUR = ("identity", "contrast", "equalize", "brightness", "sharpness")
MOVES = ("shear_x", "shear_y", "shift_x", "shift_y", "rotate")


def _operate(image: Image.Image, name: str, level: float, sign: int) -> Image.Image:
    """One operation of RandAugment, ``level`` of its full strength from 0 to 1; ``sign`` is the way of what moves pixels."""
    shear, shift = sign * 0.3 * level, sign * 10 * level * image.width / 224
    matrix = {"shear_x": (1, shear, 0, 0, 1, 0), "shear_y": (1, 0, 0, shear, 1, 0),
              "shift_x": (1, 0, shift, 0, 1, 0), "shift_y": (1, 0, 0, 0, 1, shift)}
    if name in matrix:
        return image.transform(image.size, Image.Transform.AFFINE, matrix[name], Image.Resampling.BILINEAR, fillcolor=GREY)
    if name == "rotate":
        return image.rotate(sign * 30 * level, Image.Resampling.BILINEAR, fillcolor=GREY)
    enhancer = {"brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness}.get(name)
    if enhancer:
        return enhancer(image).enhance(1.8 * level + 0.1)
    return {"contrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "identity": lambda same: same}[name](image)


Mean = tuple[Share, Share, Share]
Std = tuple[Positive, Positive, Positive]


class Normalize:
    """RGB to (3, H, W) float32: (value / 255 - mean) / std."""

    def __init__(self, mean=CLIP_MEAN, std=CLIP_STD):
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (mean, std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(self._scale).add_(self._shift)

    def undo(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 RGB of what it has made, the nearest of 256 levels."""
        levels = (pixels.detach().float().cpu() - self._shift) / self._scale
        return levels.round().clamp(0, 255).to(torch.uint8)
