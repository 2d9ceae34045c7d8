"""What a conversion saw, for the summary page: histograms that add up whoever counted, samples drawn by a hash."""

import math
import zlib

SHOWN = 12   # samples on the page
OF_A_JOB = 6  # candidates that one job hands in
REGIONS = 12  # regions of a sample that are drawn
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


class Stats:
    """Counts a bin, and the samples whose hashes are smallest: both add up to the same in any order."""

    def __init__(self):
        self.bins = {}   # kind -> {bin: count}
        self.shown = []  # [rank, {"prefix", "info"} and for a picture "file", "at", "bytes"]

    def count(self, kind: str, number: int):
        bins = self.bins.setdefault(kind, {})
        bins[number] = bins.get(number, 0) + 1

    def caption(self, text: str):
        self.count("caption words", min(len(text.split()), WORDS))

    def text(self, prefix: str, text: str):
        self.count("text words", math.floor(2 * math.log2(max(1, len(text.split())))))
        self._show(zlib.crc32(text[:1000].encode()), lambda: {"prefix": prefix, "info": {"text": text[:400]}})

    def picture(self, prefix: str, size: tuple, info: dict, place: dict):
        """One sample with a picture of ``size`` (width, height); ``place`` says where its bytes are."""
        width, height = size
        self.count("short side", min(size) // SIDE)
        self.count("aspect", round(4 * math.log2(width / height)))
        for caption in info.get("captions", ()):
            self.caption(caption)
        regions = info.get("regions")
        if regions is not None:
            self.count("boxes", min(len(regions), MANY))
            for region in regions:
                self.count("box area", math.floor(math.log2(region["box"][2] * region["box"][3] / (width * height))))
                for caption in texts(region):
                    self.caption(caption)
        rank = zlib.crc32(f"{info['image_id']} {place['at']}".encode())
        self._show(rank, lambda: {"prefix": prefix, "size": list(size), "info": _short(info), **place})

    def _show(self, rank, make):
        if len(self.shown) < OF_A_JOB or rank < self.shown[-1][0]:
            self.shown = sorted([*self.shown, [rank, make()]], key=lambda s: s[0])[:OF_A_JOB]

    def add(self, other: dict):
        """Adds what ``as_dict`` gave, of another job."""
        for kind, bins in other["bins"].items():
            mine = self.bins.setdefault(kind, {})
            for number, count in bins.items():
                mine[int(number)] = mine.get(int(number), 0) + count
        self.shown = sorted([*self.shown, *other["shown"]], key=lambda s: s[0])[:SHOWN]

    def as_dict(self) -> dict:
        return {"bins": {kind: {str(n): bins[n] for n in sorted(bins)} for kind, bins in self.bins.items()},
                "shown": self.shown}


def texts(region: dict) -> list:
    """The captions of a region, one or several in the schema."""
    return region["caption"] if isinstance(region["caption"], list) else [region["caption"]]


def _short(info: dict) -> dict:
    """What the page shows of a sample: not all of a crowded picture."""
    kept = {"image_id": info["image_id"]}
    if "captions" in info:
        kept["captions"] = info["captions"][:2]
    if "regions" in info:
        kept["regions"] = [{"box": r["box"], "caption": texts(r)[0]} for r in info["regions"][:REGIONS]]
        kept["all"] = len(info["regions"])
    return kept
