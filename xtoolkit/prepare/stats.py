"""The histograms of prepared data: the bins that a sample is counted in, and where they begin."""

import math

WORDS = 40    # captions this long or longer are counted together
MANY = 50     # likewise boxes of one picture
SIDE = 64     # pixels a bin of picture sides

# name -> (what a bin counts, how its number becomes its lower edge); the page draws them in this order.
KINDS = {
    "caption words": ("captions and region texts, by words", lambda n: n),
    "text words": ("texts, by words", lambda n: 2 ** (n / 2)),
    "short side": ("pictures, by their shorter side in pixels", lambda n: n * SIDE),
    "aspect": ("pictures, by width / height", lambda n: 2 ** (n / 4)),
    "boxes": ("pictures, by their number of boxes", lambda n: n),
    "box area": ("boxes, by their share of the picture", lambda n: 2.0 ** n),
}


def of_text(text: str):
    yield "text words", math.floor(2 * math.log2(max(1, len(text.split()))))


def of_picture(size: tuple, info: dict):
    """(kind, bin) of a sample with a picture of ``size`` (width, height), and of each of its texts and boxes."""
    width, height = size
    yield "short side", min(size) // SIDE
    yield "aspect", math.floor(4 * math.log2(width / height))
    if "regions" in info:
        yield "boxes", min(len(info["regions"]), MANY)
    said = list(info.get("captions", ()))
    for region in info.get("regions", ()):
        yield "box area", math.floor(math.log2(region["box"][2] * region["box"][3] / (width * height)))
        said += texts(region)
    for text in said:
        yield "caption words", min(len(text.split()), WORDS)


def texts(region: dict) -> list:
    """The captions of a region, one or several in the schema."""
    return region["caption"] if isinstance(region["caption"], list) else [region["caption"]]
