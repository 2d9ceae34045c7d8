"""A small X-FM on real encoders, wired by hand, and a small batch of each kind of stream, for tests of losses."""

import torch

from xtoolkit.batch import Batch, ImageField, RegionField, TextField, stable_key
from xtoolkit.features import Features
from xtoolkit.graph import EncoderSpec, Graph, Ref
from xtoolkit.registry import ENCODER_REGISTRY, LOSS_REGISTRY

WIDTH, VOCAB, PATCH, SIDE = 32, 60, 8, 32
PATCHES = (SIDE // PATCH) ** 2

ENCODERS = {
    "vision": {"type": "BEiTv2", "inputs": {"image": "$image"}, "width": WIDTH, "layers": 2, "heads": 2,
               "patch_size": PATCH, "image_size": SIDE, "drop_path": 0.0},
    "text": {"type": "RoBERTa", "inputs": {"text": "$text"}, "width": WIDTH, "layers": 2, "heads": 2,
             "vocab_size": VOCAB, "max_positions": 24, "dropout": 0.0},
    "fusion": {"type": "CrossAttention", "inputs": {"text": "text", "image": "vision"}, "layers": 2, "heads": 2,
               "dropout": 0.0},
    "vision_proj": {"type": "Projection", "inputs": {"x": "vision"}, "dim": 16},
    "text_proj": {"type": "Projection", "inputs": {"x": "text"}, "dim": 16},
    "sim": {"type": "Similarity", "inputs": {"image": "vision_proj", "text": "text_proj"}},
}
LOSSES = {
    "mlm": {"type": "MLM", "feature": "text@mask_text"},
    "mim": {"type": "MIM", "feature": "vision@mask_image", "target": "vision"},
    "itc": {"type": "ITC", "sim": "sim"},
    "itm": {"type": "ITM", "fusion": "fusion", "negatives": "sim"},
    "imlm": {"type": "IMLM", "feature": "fusion@mask_text"},
    "bbp": {"type": "BBP", "feature": "fusion@whole"},
}
STREAMS = {"text": ["mlm"], "image": ["mim"], "pairs": ["itc", "itm", "imlm", "mim"],
           "region": ["itc", "itm", "imlm", "bbp"]}
STOPS = ("itm", "imlm", "bbp")


class Tiny:
    """The encoders and losses above, built as a recipe would build them.

    Args:
        stops: losses for which ``text -> fusion`` is cut.
        losses: blocks that replace or join ``LOSSES``.
    """

    def __init__(self, stops=STOPS, losses=None):
        import xtoolkit.encoders
        import xtoolkit.losses  # noqa: F401

        torch.manual_seed(1)
        specs = {n: EncoderSpec(n, b["inputs"], pools="image" if n == "vision" else None) for n, b in ENCODERS.items()}
        fields = {"text": TextField, "image": ImageField, "region": RegionField}
        self.graph = Graph(specs, fields, {("text", "fusion"): frozenset(stops)})
        self.encoders = torch.nn.ModuleDict()
        for name, block in ENCODERS.items():
            widths = {s: self.encoders[v].width for s, v in block["inputs"].items() if not v.startswith("$")}
            self.encoders[name] = ENCODER_REGISTRY.build(block, name, widths=widths)
        self.encoders["text"].build_head("lm_logits")
        self.losses, self.needs = torch.nn.ModuleDict(), {}
        for name, block in (LOSSES | (losses or {})).items():
            keys = {k: v for k, v in block.items() if k != "type"}
            self.needs[name] = LOSS_REGISTRY.get(block["type"]).needs(keys)
            widths = {n.ref: self.encoders[Ref.parse(n.ref).name].width
                      for n in self.needs[name] if not n.ref.startswith("$")}
            self.losses[name] = LOSS_REGISTRY.build(block, name, widths=widths, vocab_size_of=VOCAB,
                                                    patch_size_of=PATCH)
        # Random layers of this width barely mix: without this, the summary of every row would be nearly the same.
        with torch.no_grad():
            for name in ("fusion", "text", "vision"):
                for p in self.encoders[name].parameters():
                    if p.dim() > 1:
                        p.mul_(4)

    def features(self, batch: Batch, names=None) -> Features:
        """The features of a batch for the losses ``names`` (default: all), with graphs where a gradient is wanted."""
        needs = {n: self.needs[n] for n in (self.losses if names is None else names)}
        passes = self.graph.passes(needs, frozenset(batch.fields))
        return Features(self.graph, self.encoders, batch, needs, {p.node for p in passes if p.graph})

    def run(self, batch: Batch, *names) -> tuple[dict, dict]:
        """({loss: scalar}, what they logged) of one batch."""
        f, values = self.features(batch, names), {}
        for name in names:
            value = self.losses[name](f.bound(name), batch)
            values[name] = sum(value.values()) if isinstance(value, dict) else value
        return values, f.logged

    def parameters(self) -> dict:
        """{``encoders.text.roberta...`` or ``losses.itm.head.0.weight``: parameter}."""
        return {f"{kind}.{n}": p for kind in ("encoders", "losses") for n, p in getattr(self, kind).named_parameters()}

    def to(self, device) -> "Tiny":
        self.encoders.to(device)
        self.losses.to(device)
        return self


def text_field(rows: int, g, longest: int = 9, duplicates=()) -> TextField:
    """``<s> words </s>`` of many lengths, a third of the words masked. ``duplicates``: (a, b), row b repeats row a."""
    ids = torch.ones(rows, longest, dtype=torch.long)
    lengths = torch.randint(4, longest + 1, (rows,), generator=g)
    lengths[0] = longest
    for row, n in enumerate(lengths.tolist()):
        ids[row, :n] = torch.cat([torch.tensor([0]), torch.randint(5, VOCAB, (n - 2,), generator=g), torch.tensor([2])])
    for a, b in duplicates:
        ids[b] = ids[a]
    chosen = (ids > 4) & (torch.rand(ids.shape, generator=g) < 0.35)
    chosen[0, 1] = True
    positions = chosen.flatten().nonzero()[:, 0]
    key = torch.tensor([stable_key(*row.tolist()) for row in ids])
    return TextField(ids, ids != 1, key, torch.where(chosen, 4, ids), positions, ids.flatten()[positions])


def image_field(images: int, g, masks: bool = True) -> ImageField:
    pixels = torch.randn(images, 3, SIDE, SIDE, generator=g)
    names = [f"picture{i}" for i in range(images)]
    order = torch.rand(images, PATCHES, generator=g).argsort(1)
    return ImageField(pixels, torch.tensor([stable_key(n) for n in names]), order < 6 if masks else None, names)


def region_field(g) -> RegionField:
    """Seven regions of three pictures; the last describes a whole picture."""
    index = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    low = 0.6 * torch.rand(7, 2, generator=g)
    size = 0.15 + 0.25 * torch.rand(7, 2, generator=g)
    box = torch.cat([low + size / 2, size], 1)
    box[6] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    edges = torch.arange(SIDE // PATCH) * PATCH / SIDE
    start, end = box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2
    touched = (edges < end[..., None]) & (edges + PATCH / SIDE > start[..., None])  # (7, 2, patches a side)
    patches = (touched[:, 1, :, None] & touched[:, 0, None, :]).flatten(1)
    key = torch.tensor([stable_key(i, *b) for i, b in zip(index.tolist(), box.tolist())])
    return RegionField(index, box, patches, torch.arange(7) != 6, key)


def make_batch(stream: str, seed: int = 0, duplicates=()) -> Batch:
    """A batch of ``text``, ``image``, ``pairs`` (six rows) or ``region`` (seven regions of three pictures)."""
    g = torch.Generator().manual_seed(seed)
    return {"text": lambda: Batch(text=text_field(5, g)),
            "image": lambda: Batch(image=image_field(4, g)),
            "pairs": lambda: Batch(text=text_field(6, g, duplicates=duplicates), image=image_field(6, g)),
            "region": lambda: Batch(text=text_field(7, g, duplicates=duplicates), image=image_field(3, g, masks=False),
                                    region=region_field(g))}[stream]()
