"""Pictures of every mode and format that Pillow has, against numpy: as a file's bytes, from a shard, by path, as PIL images."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from hostile import tar
from xtoolkit.data.datasets import Images
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import ENDINGS, FORMATS, LazyImage
from xtoolkit.data.transform import ImageTransform
from xtoolkit.registry import ConfigError

N = 16  # pixels a side, of the pictures and of what is made of them: so resizing changes nothing
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def bad(kind, detail):
    return BadSample(kind, "x.tar", detail)


def read(given, size=N):
    picture = LazyImage(given, bad)
    return np.asarray(picture.resized(size), int)


def noise(channels, top=256, kind=np.uint8):
    return np.random.default_rng(channels).integers(0, top, (N, N, channels), dtype=kind)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def grey(levels):
    return np.repeat(np.asarray(levels, float)[..., None], 3, 2)


def on_white(colour, alpha):
    return (colour * (alpha / 255.0) + 255 - alpha) if alpha.ndim == 3 else on_white(colour, alpha[..., None])


def of_lab(lab):
    """sRGB of CIE L*a*b* under D50, by the formulas of CIE and of IEC 61966-2-1, with Bradford's adaptation."""
    high, a, b = lab[..., 0] / 255 * 100, lab[..., 1].astype(np.int8).astype(float), lab[..., 2].astype(np.int8).astype(float)
    y = (high + 16) / 116
    xyz = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(xyz > 6 / 29, xyz**3, (xyz - 4 / 29) * 3 * (6 / 29)**2) * (0.9642, 1, 0.8249)
    rgb = np.clip(xyz @ np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]).T, 0, 1)
    return 255 * np.where(rgb > 0.0031308, 1.055 * rgb**(1 / 2.4) - 0.055, 12.92 * rgb)


def of_hsv(hsv):
    h, s, v = (hsv[..., i] / 255.0 for i in range(3))
    k = [(n + 6 * h) % 6 for n in (5, 3, 1)]
    return 255 * np.stack([v - v * s * np.clip(np.minimum(i, 4 - i), 0, 1) for i in k], -1)


def of_ycbcr(values):
    y, cb, cr = (values[..., i].astype(float) for i in range(3))
    cb, cr = cb - 128, cr - 128
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)


def palette(mode):
    image = Image.fromarray(noise(1)[..., 0]).convert("P")
    image.putpalette(noise(3).tobytes()[:768])
    return image if mode == "P" else image.convert(mode)


def paled(alpha):
    """The colours of ``palette``'s pixels, and what their entries' ``alpha`` makes of them."""
    numbers = np.asarray(palette("P"))
    return on_white(noise(3).reshape(-1, 3)[numbers], np.asarray(alpha)[numbers])


RAMP = np.linspace(0, 65535, N * N).reshape(N, N).astype(np.uint16)
PREMULTIPLIED = np.concatenate([noise(3) // 2, noise(1) // 2 + 128], -1)
SOFT = np.array([[60, 10, -20], [40, -15, 20], [80, 5, 30], [20, 3, 3]], np.int16).repeat(64, 0).reshape(N, N, 3)
LAB = (SOFT * [2.55, 1, 1]).astype(np.int16).astype(np.uint8)


def raw(mode, values):
    return Image.frombytes(mode, (N, N), np.ascontiguousarray(values).tobytes())


# A picture of each mode, what numpy makes of its numbers, and the largest difference: 1 where something is rounded.
MODES = {
    "1": (Image.fromarray(noise(1)[..., 0] > 99), grey(255 * (noise(1)[..., 0] > 99)), 0),
    "L": (raw("L", noise(1)), grey(noise(1)[..., 0]), 0),
    "P": (palette("P"), paled(256 * [255]), 0),
    "PA": (palette("PA"), paled(256 * [255]), 0),
    "LA": (raw("LA", noise(2)), on_white(grey(noise(2)[..., 0]), noise(2)[..., 1]), 1),
    "La": (raw("La", PREMULTIPLIED[..., 2:]), grey(PREMULTIPLIED[..., 2] + 255.0 - PREMULTIPLIED[..., 3]), 1),
    "RGB": (raw("RGB", noise(3)), noise(3), 0),
    "RGBX": (raw("RGBX", noise(4)), noise(4)[..., :3], 0),
    "RGBA": (raw("RGBA", noise(4)), on_white(noise(4)[..., :3], noise(4)[..., 3]), 1),
    "RGBa": (raw("RGBa", PREMULTIPLIED), PREMULTIPLIED[..., :3] + 255.0 - PREMULTIPLIED[..., 3:], 1),
    "CMYK": (raw("CMYK", noise(4)), (255.0 - noise(4)[..., :3]) * (255.0 - noise(4)[..., 3:]) / 255, 1),
    "YCbCr": (raw("YCbCr", noise(3)), of_ycbcr(noise(3)), 1),
    "HSV": (raw("HSV", noise(3)), of_hsv(noise(3)), 1),
    "LAB": (raw("LAB", LAB), of_lab(LAB), 1),
    "I;16": (Image.fromarray(RAMP), grey(RAMP >> 8), 0),
    "I;16L": (raw("I;16L", RAMP), grey(RAMP >> 8), 0),
    "I;16N": (raw("I;16N", RAMP), grey(RAMP >> 8), 0),
    "I;16B": (raw("I;16B", RAMP.astype(">u2")), grey(RAMP >> 8), 0),
    "I": (Image.fromarray(RAMP.astype(np.int32)), grey(RAMP >> 8), 0),
}


def test_these_are_all_modes_but_the_one_without_a_range():
    assert set(MODES) | {"F"} == set(Image.MODES)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_what_numpy_says(mode):
    image, expected, most = MODES[mode]
    assert image.mode == mode
    before = image.copy()
    assert np.abs(read(image) - expected).max() <= most
    pixels = ImageTransform(N, **PLAIN)(image).permute(1, 2, 0).numpy() * 255
    assert np.abs(pixels - expected).max() <= most + 0.01
    assert image.mode == mode and image.tobytes() == before.tobytes(), "the caller's picture is left as it is"


# By the mode: the formats that keep it, with an ending of theirs.
FILES = [(mode, *kind.split(":")) for mode, kinds in {
    "1": "PNG:png TIFF:tif XBM:xbm", "L": "PNG:png BMP:bmp TGA:tga JPEG2000:jp2 PPM:pgm", "P": "PNG:png GIF:gif BMP:bmp PCX:pcx",
    "LA": "PNG:png TIFF:tiff JPEG2000:j2k", "RGB": "PNG:png BMP:bmp TIFF:tif PPM:ppm SGI:rgb TGA:tga DDS:dds",
    "RGBX": "TIFF:tif", "RGBA": "PNG:png TIFF:tif JPEG2000:jp2", "CMYK": "TIFF:tif", "LAB": "TIFF:tif",
    "I;16": "PNG:png TIFF:tif JPEG2000:jp2 PPM:pgm", "I;16B": "TIFF:tif PNG:png", "I": "TIFF:tif PPM:pgm"}.items()
    for kind in kinds.split()]


def test_every_format_that_keeps_a_mode_is_read_as_bytes_and_by_path(tmp_path):
    files = {f"{n:03d}.{ending}": encoded(MODES[mode][0], kind) for n, (mode, kind, ending) in enumerate(FILES)}
    for (name, data), (mode, kind, _) in zip(files.items(), FILES):
        _, expected, most = MODES[mode]
        (tmp_path / name).write_bytes(data)
        pixels = ImageTransform(N, **PLAIN)(tmp_path / name).permute(1, 2, 0).numpy() * 255
        assert np.abs(read(data) - expected).max() <= most, (mode, kind)
        assert np.abs(pixels - expected).max() <= most + 0.01, (mode, kind)


def test_streams_read_every_mode_from_shards(tmp_path):
    modes = [mode for mode, kind, _ in FILES if kind == "PNG"]
    members = [(f"{n}.png", encoded(MODES[mode][0], "PNG")) for n, mode in enumerate(modes)]
    data = Images(N, 8, train=False, path=tar(tmp_path / "x.tar", members), **PLAIN)
    for n, mode in enumerate(modes):
        pixels = data.load(0, n, 1, None).image.pixels.permute(1, 2, 0).numpy() * 255
        assert np.abs(pixels - MODES[mode][1]).max() <= MODES[mode][2] + 0.01, mode
    assert {"1", "L", "P", "LA", "RGB", "RGBA", "I;16"} <= set(modes)


# ---- transparency ---------------------------------------------------------------------------------------------------
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, colour, row, clear, width):
    """A PNG of one row, of any depth, with the colour that is transparent: Pillow writes no such file."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", clear) + chunk(b"IDAT", zlib.compress(b"\0" + row))
            + chunk(b"IEND", b""))


@pytest.mark.parametrize("data, expected", [
    (png(1, 0, b"\x50", b"\0\0", 4), [255, 255, 255, 255]),
    (png(2, 0, b"\x1b", b"\0\2", 4), [0, 85, 255, 255]),
    (png(4, 0, b"\x01\x9f", b"\0\x09", 4), [0, 17, 255, 255]),
    (png(8, 0, bytes([0, 9, 200, 201]), b"\0\x09", 4), [0, 255, 200, 201]),
    (png(16, 0, struct.pack(">4H", 0, 0x8000, 0x8001, 0xffff), struct.pack(">H", 0x8000), 4), [0, 255, 128, 255]),
    (png(8, 2, bytes([7, 7, 7, 1, 2, 3, 8, 8, 8, 0, 0, 0]), bytes([0, 1, 0, 2, 0, 3]), 4), [7, 255, 8, 0]),
    (png(16, 2, struct.pack(">12H", *3 * [0x1234], *3 * [0x5678], *3 * [0x9abc], *3 * [0]),
         struct.pack(">3H", *3 * [0x5678]), 4), [0x12, 255, 0x9a, 0]),
], ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "rgb", "rgb of 16 bits"])
def test_the_transparent_colour_of_a_png_is_white_at_any_depth(data, expected):
    picture = LazyImage(data, bad)
    for n, level in enumerate(expected):
        found = np.asarray(LazyImage(data, bad).resized(1, (n, 0, n + 1, 1))).ravel().tolist()
        assert found == 3 * [level], n
    assert (picture.width, picture.height) == (4, 1)


def test_palettes_with_transparency_are_on_white():
    image, alpha = palette("P"), [255 - n for n in range(256)]
    assert np.abs(read(encoded(image, "PNG", transparency=bytes(alpha))) - paled(alpha)).max() <= 1, "an alpha for each entry"
    one = [0 if n == 7 else 255 for n in range(256)]
    for kind in ("PNG", "GIF"):
        assert np.abs(read(encoded(image, kind, transparency=7)) - paled(one)).max() == 0, kind
    image.putpalette(np.concatenate([noise(3).reshape(-1, 3), np.array(alpha)[:, None]], 1).astype(np.uint8).tobytes(), "RGBA")
    assert np.abs(read(image) - paled(alpha)).max() <= 1, "a palette of four bands"


# ---- several frames, turned -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_of_several(kind):
    frames = [Image.new("RGB", (N, N), colour) for colour in ("red", "blue")]
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    found = read(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    assert np.abs(found - [255, 0, 0]).max() <= 3


def test_an_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = MODES["RGB"][0]
    assert (read(encoded(image, "PNG", exif=exif)) == noise(3)).all()
    assert (read(encoded(image, "JPEG", exif=exif)) == read(encoded(image, "JPEG"))).all()
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert (read(encoded(image, "TIFF", exif=exif)) == turned).all(), "a TIFF's is a tag of its own, which Pillow follows"


# ---- scanners' TIFFs ------------------------------------------------------------------------------------------------
def tiff(bits, white, strip):
    """A grey TIFF of 4 x 1 pixels; ``white``: 0 where 0 is white, 1 where it is black."""
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, white), (273, 122), (277, 1), (278, 1), (279, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + strip


@pytest.mark.parametrize("bits, white, strip", [
    (16, 1, struct.pack("<4H", 0, 0x12ff, 0x8000, 0xffff)), (16, 0, struct.pack("<4H", 0xffff, 0xed00, 0x7fff, 0)),
    (12, 1, bytes.fromhex("00012f800fff"))], ids=["0 is black", "0 is white", "12 bits"])
def test_a_scan_has_its_high_byte(bits, white, strip):
    for n, level in enumerate((0, 0x12, 0x80, 0xff)):
        found = LazyImage(tiff(bits, white, strip), bad).resized(1, (n, 0, n + 1, 1))
        assert np.asarray(found).ravel().tolist() == 3 * [level]


# ---- refused --------------------------------------------------------------------------------------------------------
def of_levels(*levels):
    return np.array(levels, np.int32).repeat(N * N // len(levels)).reshape(N, N)


@pytest.mark.parametrize("image, said", [
    (Image.fromarray(np.float32(RAMP) / 65535), "mode F, numbers without a range: make them levels of 0 to 255"),
    (Image.fromarray(of_levels(0, 65536)), r"mode I with levels from 0 to 65536; it is read as 16 bits, 0 \(black\) to 65535"),
    (Image.fromarray(of_levels(-1, 9000)), "mode I with levels from -1 to 9000"),
    (Image.fromarray(of_levels(0, 255)), "mode I with levels from 0 to 255; .* make them levels of 0 to 255 first, of mode L"),
], ids=["float", "too large", "negative", "8 bits"])
def test_numbers_without_a_known_range_are_refused(image, said):
    for given in (image, encoded(image, "TIFF")):
        with pytest.raises(BadSample, match=f"x.tar: corrupt image: {said}"):
            read(given)
    with pytest.raises(ValueError, match=f"^the picture: corrupt image: {said}"):
        ImageTransform(N)(image)


def test_black_is_black_whatever_its_mode():
    assert read(Image.new("I", (N, N))).max() == 0


@pytest.mark.parametrize("data, said", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n",
     "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE html><html>404", "of no format that Pillow reads: it is an HTML page: the download failed: download it again"),
    (b"", "of no format that Pillow reads: it is empty"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of no format that Pillow reads: it begins with b\"<svg"),
    (b"%PDF-1.7\n%", "of no format that Pillow reads: it begins with b'%PDF-1.7"),
], ids=["pointer", "html", "empty", "svg", "pdf"])
def test_what_is_no_picture_says_what_it_is(data, said):
    with pytest.raises(BadSample, match="corrupt image") as e:
        read(data)
    assert said in str(e.value) and "\n" not in str(e.value)


def test_no_program_is_started_for_a_picture(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    drawn = encoded(Image.new("RGB", (N, N)), "EPS")
    assert drawn.startswith(b"%!PS")
    with pytest.raises(BadSample, match="of no format that Pillow reads: it begins with b'%!PS-Adobe"):
        read(drawn)


def test_an_icon_is_not_decoded_as_it_may_be_larger_than_it_says(tmp_path, monkeypatch):
    bomb = encoded(Image.new("1", (9000, 9000)), "PNG")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    icns = b"icns" + struct.pack(">I", 16 + len(bomb)) + b"ic07" + struct.pack(">I", 8 + len(bomb)) + bomb
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", None)
    for data, start in ((icon, r"b'\\x00\\x00\\x01"), (icns, "b'icns")):
        with pytest.raises(BadSample, match=f"corrupt image: of no format that Pillow reads: it begins with {start}"):
            read(data)
    with pytest.raises(ConfigError, match="no sample is left of it: 1 samples without a picture, only .ico"):
        Images(N, 8, path=tar(tmp_path / "x.tar", [("0.ico", icon)]))


def test_a_picture_that_says_it_is_too_large_is_refused():
    with pytest.raises(BadSample, match="corrupt image: 9000 x 9000 pixels, none or more than 64000000"):
        read(encoded(Image.new("1", (9000, 9000)), "PNG"))


# ---- endings --------------------------------------------------------------------------------------------------------
NOT_PICTURES = {
    "FITS": "fit fits",  # Pillow before 12 decodes more than its header says
    "QOI": "qoi",  # decoded in Python: minutes a picture
    "ICO": "ico", "ICNS": "icns",  # what is in them may be larger than they say
    "EPS": "ps eps",  # drawn by a program that Pillow starts
    "IPTC": "iim",  # a wrapper of any other format, which Pillow opens whatever it is
    "WMF": "wmf emf", "BUFR": "bufr", "GRIB": "grib", "HDF5": "h5 hdf", "MPEG": "mpg mpeg",  # recognised, not decoded
    "PDF": "pdf", "PALM": "palm",  # written, not read
}


def test_the_endings_are_those_of_all_formats_that_pillow_decodes_by_itself():
    of = {}
    for ending, kind in Image.registered_extensions().items():
        of.setdefault("JPEG" if kind == "MPO" else kind, set()).add(ending[1:])  # MPO: a JPEG with others behind it
    assert of == {kind: set(said.split()) for kind, said in (FORMATS | NOT_PICTURES).items()}
    without = set(Image.OPEN) - set(of)
    assert without == {"IMT", "MCIDAS", "SPIDER", "XVTHUMB"}, "no file's name says that it is one of these"
    assert {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jp2", "avif"} <= ENDINGS
    assert not ENDINGS & set(" ".join(NOT_PICTURES.values()).split()) and all(e == e.lower().strip(".") for e in ENDINGS)
