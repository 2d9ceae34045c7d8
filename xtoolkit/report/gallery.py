"""What the report shows of pictures and texts: gathered once, after the last evaluation, as plain data.

A gallery is a dict:

    floors     {evaluation: {metric: number}}
    retrieval  {evaluation: [{query, way, rank, right: picture, pictures: [{picture, right: bool}]}]}
    boxes      {evaluation: [{text, picture, predicted: [cx, cy, w, h], true: [...], iou}]}
    masked     {stream: [{picture or None, mask: [bool] row-major or None, words: [(text, is masked, was)] or None}]}

A picture is the bytes of a JPEG. Every part may be missing.
"""

import io

import torch
from PIL import Image
from torch import Tensor

from xtoolkit.data.images import CLIP_MEAN, CLIP_STD

# Pixels a side of a thumbnail at most, and its JPEG quality.
SIDE, QUALITY = 192, 88


def collect_gallery(results: dict, loaders: dict, batches: dict, tokenizer, mean=CLIP_MEAN, std=CLIP_STD,
                    shown: int = 6) -> dict:
    """The gallery of a run.

    Args:
        results: {evaluation: what ``Task.evaluate`` returned}.
        loaders: {evaluation: its loader}; gone through once more for the pictures that are shown.
        batches: {stream: a training Batch, on the host}, for the masks.
        tokenizer: has ``decode(ids)`` and ``special``.
        mean: of the pictures' normalisation.
        std: likewise.
        shown: masked examples a stream.
    """
    gallery = {"floors": {name: result["floor"] for name, result in results.items()},
               "retrieval": {}, "boxes": {}, "masked": {}}
    for name, result in results.items():
        examples = result["examples"]
        if not examples:
            continue
        pictures = find_pictures(loaders[name], wanted(examples), mean, std)
        if "pictures" in examples[0]:
            gallery["retrieval"][name] = [
                {"query": tokenizer.decode(e["ids"]), "way": e["way"], "rank": e["rank"], "right": pictures[e["right"]],
                 "pictures": [{"picture": pictures[p], "right": p == e["right"]} for p in e["pictures"]]}
                for e in examples]
        elif "predicted" in examples[0]:
            gallery["boxes"][name] = [
                {"text": tokenizer.decode(e["ids"]), "picture": pictures[e["image_id"]], "predicted": e["predicted"],
                 "true": e["true"], "iou": e["iou"]} for e in examples]
    for stream, batch in batches.items():
        if found := masked_examples(batch, tokenizer, mean, std, shown):
            gallery["masked"][stream] = found
    return gallery


def wanted(examples: list[dict]) -> set:
    """The image_ids that examples show."""
    names = set()
    for e in examples:
        names |= set(e["pictures"]) | {e["right"]} if "pictures" in e else {e["image_id"]} if "image_id" in e else set()
    return names


def find_pictures(loader, names: set, mean=CLIP_MEAN, std=CLIP_STD) -> dict[str, bytes]:
    """{image_id: JPEG} of some pictures of a loader, which is read no further than it must be."""
    found: dict = {}
    for batch in loader:
        for row, name in enumerate(batch.image.image_id):
            if name in names and name not in found:
                found[name] = jpeg(batch.image.pixels[row], mean, std)
        if len(found) == len(names):
            break
    return found


def jpeg(pixels: Tensor, mean=CLIP_MEAN, std=CLIP_STD, side: int = SIDE) -> bytes:
    """A normalised picture (3, H, W) as the bytes of a JPEG, made smaller where it is larger than ``side``."""
    scale = lambda values: torch.tensor(values, dtype=torch.float32)[:, None, None]
    levels = (pixels.float().cpu() * scale(std) + scale(mean)).mul(255).round().clamp(0, 255).to(torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def masked_examples(batch, tokenizer, mean, std, shown: int) -> list[dict]:
    """The first rows of a batch as the model reads them; empty if the stream masks nothing.

    On a region stream, where a picture has several texts, only the texts are masked: no picture is shown.
    """
    image = batch.image if batch.image is not None and batch.image.patch_mask is not None else None
    text = batch.text if batch.text is not None and batch.text.masked_ids is not None else None
    if image is None and text is None:
        return []
    rows = min(shown, len(image.pixels) if image is not None else len(text.ids))
    return [{"picture": None if image is None else jpeg(image.pixels[row], mean, std),
             "mask": None if image is None else image.patch_mask[row].tolist(),
             "words": None if text is None else masked_words(text, row, tokenizer)} for row in range(rows)]


def masked_words(text, row: int, tokenizer) -> list[tuple[str, bool, str]]:
    """The tokens of one text: (as the model reads it, whether it is to be predicted, what it was), without specials.

    A token that is to be predicted may read as itself or as a random other one: masking leaves some as they are.
    """
    length = text.ids.shape[1]
    chosen = {p - row * length for p in text.masked_pos.tolist() if row * length <= p < (row + 1) * length}
    found = []
    for column, (was, read) in enumerate(zip(text.ids[row].tolist(), text.masked_ids[row].tolist())):
        if not bool(text.mask[row, column]) or (was in tokenizer.special and column not in chosen):
            continue
        found.append((tokenizer.decode([read]), column in chosen, tokenizer.decode([was])))
    return found
