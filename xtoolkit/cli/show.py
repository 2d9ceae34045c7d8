"""Draws what the model will see of a stream: xtoolkit show --config F --stream region [key=value ...]

One page of HTML, nothing fetched: augmented pictures with their masked patches, tokens with their masks and what they
hide, boxes with their phrases, and where each sample lies. The draws are those of the run: same seed, same visit, same
crops and masks. Neither the model is built nor a weight loaded.
"""

import argparse
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, recipe_parser
from xtoolkit.registry import ConfigError, nearest

COLOURS = 8
# What the page needs beyond the report's style: tokens in columns, what is read above what was hidden; boxes in a list.
CSS = """
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;margin:0 0 14px}
.card header{border:0;padding:0;margin:0 0 10px;display:flex;gap:14px;justify-content:space-between;flex-wrap:wrap}
.card header code{overflow-wrap:anywhere}.card header span{color:var(--soft);font-size:12.5px}
.seen{display:flex;gap:14px;flex-wrap:wrap;align-items:flex-start}.seen>figure{width:224px}
.seen>.said{flex:1 1 380px;min-width:0}figcaption{font-size:12px;color:var(--soft);margin-top:4px}
.tokens{display:flex;flex-wrap:wrap;gap:4px 3px;margin:0;font-size:13.5px;line-height:1.3}
.token{display:inline-flex;flex-direction:column;border:1px solid var(--line);border-radius:4px;padding:1px 5px;
background:var(--wash);white-space:pre}
.token small{font-size:11px;color:var(--accent);font-weight:620}
.token.mask b{color:var(--card);background:var(--grey);border-radius:2px;padding:0 4px;font-weight:500;font-size:11.5px}
.token.other b{color:var(--bad)}.token.same b{color:var(--good)}.token b{font-weight:560}
.row{display:grid;grid-template-columns:84px 1fr;gap:10px;padding:8px 0;border-top:1px solid var(--line)}
.row:first-child{border-top:0;padding-top:0}.row p{margin:0 0 5px;font-size:12px;color:var(--soft)}
.row p b{color:var(--ink);font-size:14px;font-weight:600}.row p i{display:inline-block;width:12px;height:12px;
border-radius:3px;margin-right:6px;vertical-align:-1px}
.dim{fill:#15151a;opacity:.74;shape-rendering:crispEdges}
""" + "".join(f".row .c{i}{{background:var(--c{i})}}" for i in range(COLOURS))


@dataclass
class Example:
    """One sample as the model sees it.

    Attributes:
        place: source, file and key.
        picture: JPEG of the augmented picture; None on a text stream.
        hidden: (N,) which patches are masked, row by row; None where none are.
        texts: each a list of (token as read, whether it is to be predicted, what it was).
        boxes: for region streams, a text: ((cx, cy, w, h), patches (N,) that it touches, whether it is a box at all).
    """

    place: str
    picture: bytes | None
    hidden: list | None
    texts: list
    boxes: list = field(default_factory=list)


@command
def main(argv=None) -> int:
    parser = recipe_parser("show", __doc__)
    parser.add_argument("--stream", required=True, metavar="NAME", help="which of its streams")
    parser.add_argument("--count", type=_number, default=12, metavar="N", help="samples shown (default: %(default)s)")
    parser.add_argument("--visit", type=_number, default=0, metavar="V",
                        help="the run's batch to begin at (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (default: show_<stream>.html)")
    args = parser.parse_intermixed_args(argv)
    recipe = recipes.read(args.config, args.overrides, missing_files=False)
    if args.stream not in recipe.streams:
        idle = " (it has no active loss)" if args.stream in recipe.idle else nearest(args.stream, recipe.streams)
        raise ConfigError(f"--stream: no stream `{args.stream}` to show{idle}; {args.config} has "
                          + ", ".join(recipe.streams))
    examples, bad = collect(recipe, args.stream, args.visit, args.count)
    if not examples and bad:
        print(f"stream `{args.stream}`: none of {len(bad)} samples can be used; the first: {bad[0]}", file=sys.stderr)
        return 1
    out = args.out or Path(f"show_{args.stream}.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(recipe, args.stream, args.visit, examples, bad), encoding="utf-8")
    print(f"{args.stream}: {len(examples)} samples, {sum(len(e.texts) for e in examples)} texts"
          + (f", {len(bad)} bad" if bad else "") + f" -> {out}")
    return 0


def _number(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of 0 or more")
    return int(word)


# ---- what the loader would hand over ---------------------------------------------------------------------------------
def collect(recipe, stream: str, visit: int, count: int) -> tuple[list[Example], list[str]]:
    """The first ``count`` samples that a run draws from a visit on, and what was wrong with those that cannot be used.

    Raises:
        ConfigError: the stream's data or the tokenizer is not there.
    """
    from xtoolkit.data.errors import BadDataError, BadSample
    from xtoolkit.data.order import sample_rng

    dataset, tokenizer, statistics = open_dataset(recipe, stream)
    examples, bad, drawn, seed = [], {}, 0, recipe.train.seed
    try:
        order = dataset.order(seed, stream, recipe.streams[stream].batch_size)
        while len(examples) < count and drawn < 10 * count:
            for slot in order.slots(visit):
                if len(examples) == count:
                    break
                drawn += 1
                place = dataset.place(slot.source, slot.sample)
                try:
                    rng = sample_rng(seed, stream, visit, slot.row)
                    item = dataset.load(slot.source, slot.sample, slot.rows, rng)
                except BadSample as trouble:
                    bad[place] = str(trouble)  # once, however often it is drawn
                else:
                    bad |= {str(trouble): str(trouble) for trouble in item.dropped}
                    examples.append(example(dataset.collate([item]), place, tokenizer, *statistics))
            visit += 1
    except BadDataError as e:
        raise ConfigError(f"{recipe.source.where('streams', stream, 'data')}: {e}") from e
    return examples, list(bad.values())


def open_dataset(recipe, stream: str):
    """The dataset of a stream as in training, the tokenizer if it has texts, and (mean, std) of its pictures."""
    from xtoolkit.data.images import CLIP_MEAN, CLIP_STD
    from xtoolkit.data.text import load_tokenizer
    from xtoolkit.weights.hub import missing
    from xtoolkit.registry import DATASET_REGISTRY

    block, where = recipe.streams[stream].data, recipe.source.where
    tokenizer = None
    if "text" in recipe.streams[stream].fields:
        if "://" not in recipe.tokenizer and (problem := missing(recipe.tokenizer, "tokenizer")):
            raise ConfigError(f"{where('tokenizer')}: {problem}")
        tokenizer = load_tokenizer(recipe.tokenizer)
    size, patch = picture_sizes(recipe)
    try:
        dataset = DATASET_REGISTRY.build(block, where("streams", stream, "data"), tokenizer=tokenizer, image_size=size,
                                         patch_size=patch, views=recipe.views(stream), train=True)
    except ConfigError as e:  # of its paths: they name the key within the block
        key = lambda problem: problem.partition(":")[0].split(".")
        raise ConfigError([f"{where('streams', stream, *key(p))}: streams.{stream}.{p}" if p.startswith("data.") else p
                           for p in e.problems]) from e
    return dataset, tokenizer, (block.get("mean") or CLIP_MEAN, block.get("std") or CLIP_STD)


def picture_sizes(recipe) -> tuple[int, int] | tuple[None, None]:
    """(pixels a side, pixels a patch) of the encoder that reads ``$image``, from its block and its class's defaults."""
    from xtoolkit.registry import ENCODER_REGISTRY, schema, settled

    for name in recipe.reached:
        block = recipe.config["encoders"][name]
        cls = ENCODER_REGISTRY.get(block["type"])
        keys = {k.name: k.default for k in schema(cls).values()} | settled(cls, block, ENCODER_REGISTRY.beside)
        if "$image" in recipe.graph.encoders[name].inputs.values() and {"image_size", "patch_size"} <= keys.keys():
            return keys["image_size"], keys["patch_size"]
    return None, None


def example(batch, place: str, tokenizer, mean, std) -> Example:
    """A batch of one sample as plain data."""
    from xtoolkit.report.gallery import jpeg, masked_words

    texts = []
    if batch.text is not None and batch.text.masked_ids is not None:
        texts = [masked_words(batch.text, row, tokenizer) for row in range(len(batch.text.ids))]
    elif batch.text is not None:
        decoded = [[tokenizer.decode([i]) for i in ids[mask].tolist() if i not in tokenizer.special]
                   for ids, mask in zip(batch.text.ids, batch.text.mask)]
        texts = [[(word, False, word) for word in words] for words in decoded]
    if batch.image is None:
        return Example(place, None, None, texts)
    pixels, patches, region = batch.image.pixels[0], batch.image.patch_mask, batch.region
    boxes = []
    if region is not None:
        boxes = list(zip(region.box.tolist(), region.box_patches.tolist(), region.is_box.tolist()))
    hidden = None if patches is None else patches[0].tolist()
    return Example(place, jpeg(pixels, mean, std, side=max(pixels.shape[1:])), hidden, texts, boxes)


# ---- the page --------------------------------------------------------------------------------------------------------
def page(recipe, stream: str, visit: int, examples: list[Example], bad: list[str]) -> str:
    """The whole document."""
    from xtoolkit.report.page import document

    spec = recipe.streams[stream]
    views = ", ".join(f"@{v}" for v in sorted(recipe.views(stream))) or "no view"
    size, patch = picture_sizes(recipe)
    facts = [spec.data["type"], f"losses {', '.join(spec.losses)}", f"which read {views}", f"seed {recipe.train.seed}",
             f"from visit {visit}"] + ([f"{size} px in patches of {patch}"] if "image" in spec.fields else [])
    wrong = "".join(f"<li>{escape(b)}</li>" for b in bad)
    if bad:
        wrong = f"<h2>Could not be used</h2><p class=lead>In training others take their place.</p><ul>{wrong}</ul>"
    head = (f'<header><p class="over">xtoolkit data</p><h1>Stream {escape(stream)}</h1>'
            f'<p class="sub">{escape(" · ".join(facts))}</p>{tiles(examples)}</header>')
    samples = f"<h2>Samples</h2><p class=lead>{escape(_lead(examples))}</p>{''.join(map(card, examples))}"
    return document(f"{stream}: what the model sees", head + samples + wrong, CSS)


def _lead(examples) -> str:
    told = ["In the order in which training draws them."]
    if any(e.hidden for e in examples):
        told.append("Masked patches are grey.")
    if any(chosen for e in examples for text in e.texts for _, chosen, _ in text):
        told.append("A token to be predicted has its original below: hidden by the mask, replaced by another, or left "
                    "as it is.")
    if any(e.boxes for e in examples):
        told.append("The small pictures show the patches that the vision encoder gives to a region.")
    return " ".join(told)


def tiles(examples: list[Example]) -> str:
    """What the samples shown amount to."""
    texts = [t for e in examples for t in e.texts]
    shown = []
    if texts:
        lengths = [len(t) for t in texts]
        shown.append(("Tokens a text", f"{sum(lengths) / len(texts):.1f}",
                      f"{min(lengths)} to {max(lengths)}, specials left out"))
        if chosen := sum(c for t in texts for _, c, _ in t):
            shown.append(("To be predicted", f"{100 * chosen / sum(lengths):.0f}<small> %</small>", f"{chosen} tokens"))
    hidden = [e.hidden for e in examples if e.hidden]
    if hidden:
        shown.append(("Patches masked", f"{100 * sum(map(sum, hidden)) / sum(map(len, hidden)):.0f}<small> %</small>",
                      f"{sum(hidden[0])} of {len(hidden[0])} a picture"))
    boxes = [b for e in examples for b in e.boxes]
    if boxes:
        shown.append(("Rows a picture", f"{len(boxes) / len(examples):.1f}",
                      f"{sum(is_box for *_, is_box in boxes)} of {len(boxes)} are boxes"))
    drawn = "".join(f'<div class="tile"><span>{name}</span><b>{value}</b><em>{beside}</em></div>'
                    for name, value, beside in shown)
    return f'<div class="tiles">{drawn}</div>'


def card(e: Example) -> str:
    """One sample: its place, its picture, its texts."""
    from xtoolkit.report.sections import box, patches, picture

    shown = []
    if e.picture is not None:
        over = "".join(box(b, f"c{i % COLOURS}") for i, (b, _, is_box) in enumerate(e.boxes) if is_box)
        shown.append(_figure("as augmented", picture(e.picture, "as augmented", over)))
    if e.hidden:
        shown.append(_figure("under @mask_image", picture(e.picture, "masked", patches(e.hidden))))
    if e.boxes:
        rows = "".join(_region(i, e.picture, *found, text) for i, (found, text) in enumerate(zip(e.boxes, e.texts)))
        shown.append(f'<div class="said">{rows}</div>')
    elif e.texts:
        shown.append(f'<div class="said">{"".join(map(tokens, e.texts))}</div>')
    counts = ", ".join(f"{len(t)} tokens" for t in e.texts) if not e.boxes else f"{len(e.boxes)} rows"
    return (f'<section class="card"><header><code>{escape(e.place)}</code><span>{counts}</span></header>'
            f'<div class="seen">{"".join(shown)}</div></section>')


def _figure(caption: str, drawn: str) -> str:
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _region(number, jpeg, where, touched, is_box, text) -> str:
    """A row of a region stream: its patches, its box, its phrase."""
    from xtoolkit.report.sections import patches, picture

    phrase = "".join(was for _, _, was in text).strip()
    place = "box " + " ".join(f"{v:.3f}" for v in where) if is_box else "the whole picture: no box to predict"
    thumb = picture(jpeg, "its patches", patches([not t for t in touched], "dim"))
    return (f'<div class="row"><div>{thumb}</div><div><p><i class="c{number % COLOURS}"></i><b>{escape(phrase)}</b> · '
            f'{place} · {sum(touched)} patches</p>{tokens(text)}</div></div>')


def tokens(text: list) -> str:
    """The tokens of a text as the model reads them; below each that is to be predicted what it was."""
    shown = []
    for read, chosen, was in text:
        if not chosen:
            shown.append(f'<span class="token">{escape(read)}</span>')
            continue
        kind, above = ("mask", "mask") if not read else ("same", read) if read == was else ("other", read)
        shown.append(f'<span class="token {kind}"><b>{escape(above)}</b><small>{escape(was)}</small></span>')
    return f'<p class="tokens">{"".join(shown)}</p>'
