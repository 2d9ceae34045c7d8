"""Pictures: decoding, crops, flips, colours, and what is refused."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from xtoolkit.data import images
from xtoolkit.data.errors import BadSample
from xtoolkit.data.images import Augment, Normalize, LazyImage, RegionAugment, erased, rand_augment, random_crop
from xtoolkit.data.process import ImageProcessor
from xtoolkit.registry import check


def bad(kind, detail):
    return BadSample(kind, "x.tar", detail)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width, height):
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.arange(width) * 255 // (width - 1), np.arange(height) * 255 // (height - 1))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_the_whole_picture_is_pillows_bicubic_resize():
    image = gradient(50, 40)
    found = LazyImage(encoded(image), bad).resized(32)
    assert (np.asarray(found) == np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))).all()


def test_a_part_is_crop_then_resize():
    image = gradient(50, 40)
    found = np.asarray(LazyImage(encoded(image), bad).resized(32, (10, 5, 42, 37)))
    assert (found == np.asarray(image.crop((10, 5, 42, 37)))).all()


def test_large_jpegs_are_decoded_small_and_look_the_same():
    image = gradient(1200, 800)
    box = (100, 100, 1100, 700)
    found = np.asarray(LazyImage(encoded(image, "JPEG", quality=95), bad).resized(64, box), int)
    assert np.abs(found - np.asarray(image.crop(box).resize((64, 64), Image.Resampling.BICUBIC), int)).max() <= 6


@pytest.mark.parametrize("mode, kind", [
    ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG"),
    ("RGBA", "WEBP"), ("I;16", "PNG")])
def test_every_mode_becomes_rgb(mode, kind):
    image = Image.new(mode, (20, 10))
    found = LazyImage(encoded(image, kind), bad).resized(8)
    assert found.mode == "RGB" and found.size == (8, 8)


def test_transparent_becomes_white():
    found = LazyImage(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), bad).resized(8)
    assert np.asarray(found).min() == 255


JPEG = encoded(gradient(64, 64), "JPEG")


@pytest.mark.parametrize("data", [
    b"", b"no picture", JPEG[:len(JPEG) // 2], JPEG[:20], encoded(gradient(64, 64))[:100]])
def test_corrupt_pictures_are_bad_samples(data):
    with pytest.raises(BadSample, match="corrupt image"):
        LazyImage(data, bad).resized(8)


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    data = encoded(Image.new("RGB", (300, 300)))
    monkeypatch.setattr(images, "MAX_PIXELS", 80_000)
    with pytest.raises(BadSample, match="300 x 300 pixels"):
        LazyImage(data, bad)


def test_normalised_with_clips_figures():
    pixels = Normalize()(Image.new("RGB", (4, 4), (255, 0, 51)))
    assert pixels.shape == (3, 4, 4) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, (0.2 - 0.40821073) / 0.27577711]
    assert pixels[:, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert Normalize([0.5] * 3, [0.5] * 3)(Image.new("RGB", (1, 1), (255, 0, 0))).flatten().tolist() == [1, -1, -1]


def test_random_crops_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop
    rng = random.Random(0)
    ours = np.array([random_crop(400, 300, [0.2, 1.0], rng) for _ in range(4000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= 400).all() and (ours[:, 3] <= 300).all()
    theirs = [RandomResizedCrop.get_params(torch.empty(3, 300, 400), [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in theirs])
    for quantile in (0.1, 0.5, 0.9):
        assert np.abs(np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)).max() < 14
    assert random_crop(400, 10, [0.9, 1.0], rng) == (193, 0, 206, 10), "the central fallback"


def noise():
    """Values that every operation changes."""
    return Image.fromarray(np.random.default_rng(0).integers(40, 180, (32, 32, 3), dtype=np.uint8))


def moved(name, magnitude, sign=1):
    return np.asarray(images._operate(gradient(224, 224), name, magnitude / 10, sign), int)


def test_operations_have_the_strength_of_the_release_at_seven_of_ten():
    plain = np.asarray(gradient(224, 224), int)
    shifted = moved("shift_x", 7)
    assert (shifted[:, :217] == plain[:, 7:]).all() and (shifted[:, 217:] == 128).all()
    assert (moved("shift_y", 7, -1)[7:] == plain[:217]).all()
    slope = moved("shear_x", 7)[100, :150, 0] - plain[100, :150, 0]
    assert slope.mean() == pytest.approx(0.21 * 100 * 255 / 223, abs=1)
    bright = moved("brightness", 7)
    assert np.abs(bright - np.minimum(255, plain * 1.36)).max() <= 1
    turned = moved("rotate", 7)
    assert (turned[0, 0] == 128).all() and turned[112, 112] == pytest.approx(plain[112, 112], abs=2)
    assert (moved("identity", 7) == plain).all()
    half = Image.fromarray((plain // 2).astype(np.uint8))
    assert np.asarray(images._operate(half, "contrast", 0.7, 1))[..., 0].max() == 255


def test_half_of_the_operations_are_applied_and_regions_are_never_moved():
    image, rng = noise(), random.Random(0)
    same = [np.array_equal(rand_augment(image, [2, 7], True, rng), image) for _ in range(600)]
    assert np.mean(same) == pytest.approx(0.55**2, abs=0.08), "half left alone, and one of ten does nothing"
    image = gradient(32, 32)
    for _ in range(200):
        red = np.asarray(rand_augment(image, [2, 7], False, rng), int)[..., 0]
        assert (np.diff(red[4:-4, 2:-2], axis=1) >= 0).all(), "the gradient still grows to the right, straight"
        assert (np.diff(red[4:-4, 2:-2], axis=0) == 0).all()


def test_augmentation_depends_on_the_seed_alone():
    image = noise()
    one, again, other = (np.asarray(rand_augment(image, [5, 7], True, random.Random(s))) for s in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("kind, block, said", [
    (Augment, {"crop_scale": [0.5, 0.2]}, "`crop_scale` of Augment must be [smallest, largest], not"),
    (Augment, {"crop_scale": [0.5]}, "`crop_scale` of Augment must be a list of 2 numbers above 0 and at most 1 or null"),
    (Augment, {"flip": 2.0}, "`flip` of Augment must be a number of at least 0 and at most 1, not 2.0"),
    (Augment, {"randaugment": [2, 70]}, "`randaugment` of Augment must be [an integer of at least 0, an integer of at least 0"),
    (RegionAugment, {"randaugment": [2]}, "`randaugment` of RegionAugment")])
def test_senseless_augmentation_is_named(kind, block, said):
    found, = check(kind, block, "here")
    assert found.startswith("here: " + said)


def test_a_box_of_noise_is_as_large_and_as_long_as_timms():
    """The moments of its share of the area and of its aspect against timm's RandomErasing, which draws the same two numbers."""
    from timm.data.random_erasing import RandomErasing

    def boxes(erase):
        for _ in range(600):
            where = (erase(torch.full((3, 64, 64), 9.0)) != 9).any(0)
            rows, columns = where.any(1).sum().item(), where.any(0).sum().item()
            assert where.sum() == rows * columns > 0, "one box, every pixel of it"
            yield rows * columns / 64**2, np.log(rows / columns)

    rng = random.Random(0)
    ours = np.array(list(boxes(lambda pixels: erased(pixels, rng))))
    random.seed(1)
    theirs = np.array(list(boxes(RandomErasing(1.0, mode="pixel", device="cpu"))))
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.09)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.05)
    noise = erased(torch.full((3, 64, 64), 9.0), random.Random(3))
    assert abs(noise[noise != 9].mean()) < 0.2 and noise[noise != 9].std() == pytest.approx(1, abs=0.1)
    assert torch.equal(noise, erased(torch.full((3, 64, 64), 9.0), random.Random(3))), "the same for the same seed"


def test_pictures_are_erased_as_often_as_asked_and_nothing_else_changes():
    data, plain = encoded(gradient(40, 40)), {"crop_scale": None, "flip": 0.0, "randaugment": None}
    made = lambda how, seed: ImageProcessor(32, 8, augment=Augment(**plain, **how))(data, "x", random.Random(seed), bad).pixels
    whole = made({}, 0)
    assert sum(not torch.equal(made({"erase": 0.25}, seed), whole) for seed in range(400)) / 400 == pytest.approx(0.25, abs=0.06)
    crops = lambda how: ImageProcessor(32, 8, augment=Augment(**how))(data, "x", random.Random(5), bad).pixels
    assert torch.equal(crops({}), crops({"erase": 0.0}))


@pytest.mark.parametrize("size", [(300, 256), (256, 400), (90, 70)])
def test_the_middle_is_that_of_resizing_then_cropping(size):
    from torchvision.transforms.v2.functional import center_crop, resize
    from torchvision.transforms import InterpolationMode

    image = gradient(*size)
    found = ImageProcessor(224, 16, crop=0.875)(encoded(image), "x", random.Random(0), bad)
    want = center_crop(resize(image, 256, InterpolationMode.BICUBIC), 224)
    shown = Normalize().undo(found.pixels).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown - np.asarray(want, int)).mean() < 1.5
    whole = Normalize().undo(ImageProcessor(224, 16)(encoded(image), "x", random.Random(0), bad).pixels).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(whole - np.asarray(want, int)).mean() > 4, "which is not the whole picture"
