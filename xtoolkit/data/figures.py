"""What the report shows of a training batch, as plain data."""

from xtoolkit.batch import Batch, TextField


def masked_samples(batch: Batch, picture, tokenizer, shown: int) -> list[dict]:
    """One figure of the first rows of a batch as the model reads them; none if nothing of it is masked.

    On a region stream, where a picture has several texts, only the texts are masked: no picture is shown.

    Args:
        picture: ``picture(pixels)`` makes (3, H, W) uint8 of normalised pixels; None: pictures are not shown.
    """
    image = batch.image if batch.image is not None and batch.image.patch_mask is not None else None
    text = batch.text
    words = asked_words if text is not None and text.left_to_right is not None else masked_words
    text = None if text is None or text.masked_ids is None and text.left_to_right is None else text.left_to_right or text
    if image is None and text is None:
        return []
    found = []
    for row in range(min(shown, len(text.ids) if image is None else len(image.pixels))):
        found.append({} if text is None else {"words": words(text, row, tokenizer)})
        if image is not None and picture is not None:
            found[-1] |= {"image": picture(image.pixels[row]), "mask": image.patch_mask[row].tolist()}
    return [{"title": "Masked samples", "items": found}]


def masked_words(text: TextField, row: int, tokenizer) -> list[list]:
    """The tokens of one text: (as the model reads it, whether it is to be predicted, what it was), without specials.

    A token that is to be predicted may read as itself or as a random other one: masking leaves some as they are.
    """
    length = text.ids.shape[1]
    chosen = {p - row * length for p in text.masked_pos.tolist() if row * length <= p < (row + 1) * length}
    found = []
    for column, (was, read) in enumerate(zip(text.ids[row].tolist(), text.masked_ids[row].tolist())):
        if not bool(text.mask[row, column]) or (was in tokenizer.special and column not in chosen):
            continue
        found.append([tokenizer.decode([read]), column in chosen, tokenizer.decode([was])])
    return found


def asked_words(text: TextField, row: int, tokenizer) -> list[list]:
    """Likewise of a text that is read left to right: its tokens, and which of them are asked for, the end among them."""
    length = text.ids.shape[1]
    masks = {p - row * length for p in text.masked_pos.tolist() if row * length <= p < (row + 1) * length}
    chosen, found = {int(text.positions[row, column]) for column in masks}, []
    for place, token in enumerate(text.ids[row].tolist()):
        if bool(text.mask[row, place]) and place not in masks and (token not in tokenizer.special or place in chosen):
            said = tokenizer.decode([token]) or " (end)"
            found.append([said, place in chosen, said])
    return found
