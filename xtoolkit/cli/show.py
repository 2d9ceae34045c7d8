"""Draws what the model will see of a stream: xtoolkit show --config F --stream region [key=value ...]

One page of HTML, nothing fetched: augmented pictures with their masked patches, tokens with their masks and what they
hide, boxes with their phrases, and where each sample lies. The draws are those of the run: same seed, same visit, same
crops and masks. Of the model only shapes are made, which say how large its pictures are; no weight is drawn or loaded.
"""

import sys
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, recipe_parser, whole
from xtoolkit.registry import ConfigError, nearest


@command
def main(argv=None) -> int:
    parser = recipe_parser("show", __doc__)
    parser.add_argument("--stream", required=True, metavar="NAME", help="which of its streams")
    parser.add_argument("--count", type=whole, default=12, metavar="N", help="samples shown (default: %(default)s)")
    parser.add_argument("--visit", type=whole, default=0, metavar="V",
                        help="the run's batch to begin at (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (default: show_<stream>.html)")
    args = parser.parse_intermixed_args(argv)
    recipe = recipes.read(args.config, args.overrides, missing_files=False)
    if args.stream not in recipe.streams:
        idle = " (it has no active loss)" if args.stream in recipe.idle else nearest(args.stream, recipe.streams)
        raise ConfigError(f"--stream: no stream `{args.stream}` to show{idle}; {args.config} has "
                          + ", ".join(recipe.streams))
    samples, bad = collect(recipe, args.stream, args.visit, args.count)
    if not samples and bad:
        print(f"stream `{args.stream}`: none of {len(bad)} samples can be used; the first: {bad[0]}", file=sys.stderr)
        return 1
    out = args.out or Path(f"show_{args.stream}.html")
    drawn = page(recipe, args.stream, args.visit, samples, bad)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(drawn, encoding="utf-8")
    except OSError as e:
        from xtoolkit.engine.storage import explain
        print(f"{args.config}: {explain(e, out)}", file=sys.stderr)
        return 2
    print(f"{args.stream}: {len(samples)} samples, {sum('words' in i for _, items in samples for i in items)} texts"
          + (f", {len(bad)} bad" if bad else "") + f" -> {out}")
    return 0


# ---- what the loader would hand over ---------------------------------------------------------------------------------
def collect(recipe, stream: str, visit: int, count: int) -> tuple[list[tuple], list[str]]:
    """The first ``count`` samples that a run draws from a visit on, (place, items of a figure) each, and what was wrong with
    those that cannot be used.

    Raises:
        ConfigError: the stream's data or the tokenizer is not there.
    """
    from xtoolkit.data.errors import BadDataError, BadSample
    from xtoolkit.data.order import sample_rng

    dataset, tokenizer = open_dataset(recipe, stream)
    samples, bad, drawn, seed = [], {}, 0, recipe.train.seed
    try:
        order = dataset.order(seed, stream, recipe.streams[stream].batch_size)
        while len(samples) < count and drawn < 10 * count:
            for slot in order.slots(visit):
                if len(samples) == count:
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
                    samples.append((place, items_of(dataset, dataset.collate([item]), tokenizer)))
            visit += 1
    except BadDataError as e:
        raise ConfigError(f"{recipe.source.where('streams', stream, 'data')}: {e}") from e
    return samples, list(bad.values())


def open_dataset(recipe, stream: str):
    """The dataset of a stream as in training, and the tokenizer if it has texts."""
    from xtoolkit.data.text import load_tokenizer
    from xtoolkit.weights.hub import missing

    where, tokenizer = recipe.source.where, None
    if "text" in recipe.streams[stream].fields:
        if "://" not in recipe.tokenizer and (problem := missing(recipe.tokenizer, "tokenizer")):
            raise ConfigError(f"{where('tokenizer')}: {problem}")
        tokenizer = load_tokenizer(recipe.tokenizer)
    return recipe.dataset("streams", stream, tokenizer=tokenizer, **sizes(recipe, stream)), tokenizer


def sizes(recipe, stream: str) -> dict:
    """``image_size`` and ``patch_size`` of a stream's pictures, None where no encoder reads them."""
    import torch
    from xtoolkit.model import Model

    with torch.device("meta"):
        model = Model(recipe)
    return {"image_size": None, "patch_size": None} | model.sizes(recipe.streams[stream].fields)


def items_of(dataset, batch, tokenizer) -> list[dict]:
    """A batch of one sample as the items of a figure: the picture as augmented with its boxes, the picture as masked, and the
    tokens of each text, on a region stream with the patches of its box. Of other fields, what the dataset itself shows."""
    image, text, region = batch.image, batch.text, batch.region
    texts = [] if text is None else texts_of(text, tokenizer)
    pictures = list(dataset.pictures(batch).values())
    if not pictures:
        return [{"words": one} for one in texts] or [i for f in dataset.figures(batch, tokenizer) for i in f.get("items") or ()]
    picture, shown = pictures[0], [{"image": picture, "caption": "as augmented"} for picture in pictures]
    if image is not None and image.patch_mask is not None:
        shown.append({"image": picture, "caption": "under @mask_image", "mask": image.patch_mask[0].tolist()})
    if region is None:
        return shown + [{"words": one} for one in texts]
    boxes = [{"box": box, "kind": str(row)} for row, box in enumerate(region.box.tolist())]
    shown[0]["boxes"] = [box for box, is_box in zip(boxes, region.is_box.tolist()) if is_box]
    for box, touched, is_box, one in zip(boxes, region.box_patches.tolist(), region.is_box.tolist(), texts, strict=True):
        where = "box " + " ".join(f"{v:.3f}" for v in box["box"]) if is_box else "the whole picture: no box to predict"
        shown.append({"image": picture, "mask": [not t for t in touched], "caption": "".join(was for *_, was in one).strip(),
                      "note": f"{where} · {sum(touched)} patches", "words": one, "boxes": [box] if is_box else []})
    return shown


def texts_of(text, tokenizer) -> list[list]:
    """The tokens of each text: (as the model reads it, whether it is to be predicted, what it was), without specials."""
    from xtoolkit.data.figures import masked_words

    if text.masked_ids is not None:
        return [masked_words(text, row, tokenizer) for row in range(text.rows)]
    decoded = [[tokenizer.decode([i]) for i in ids[real].tolist() if i not in tokenizer.special]
               for ids, real in zip(text.ids, text.mask)]
    return [[(word, False, word) for word in words] for words in decoded]


# ---- the page --------------------------------------------------------------------------------------------------------
def page(recipe, stream: str, visit: int, samples: list[tuple], bad: list[str]) -> str:
    """The whole document."""
    from xtoolkit.report.samples import samples_page

    spec = recipe.streams[stream]
    views = ", ".join(f"@{v}" for v in sorted(recipe.views(stream))) or "no view"
    size, patch = sizes(recipe, stream).values()
    facts = [spec.data["type"], f"losses {', '.join(spec.losses)}", f"which read {views}", f"seed {recipe.train.seed}",
             f"from visit {visit}"] + ([f"{size} px in patches of {patch}"] if size else [])
    return samples_page(stream, facts, samples, bad)
