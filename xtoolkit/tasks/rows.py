"""What tasks of labels keep of each row to name and to show it: its id, its pictures, its text."""

from xtoolkit.tasks.base import token_ids

IDS = ("id", "identifier", "image_id", "image", "img")  # keys of a record: GLUE's and Hateful Memes', NLVR2's; its own picture


def told_rows(batch) -> dict[str, list]:
    """Lists, one entry a row, None or empty where there is none: ``id``, ``image_id``, ``second_id``, ``ids`` (token ids),
    ``record``."""
    rows = batch["label"].rows
    none = [None] * rows
    records = list(batch["record"]) if "record" in batch else [{}] * rows
    images = [list(batch[name].image_id) if name in batch else none for name in ("image", "second")]
    ids = [_called(record, image) for record, image in zip(records, images[0])]
    return {"id": ids, "image_id": images[0], "second_id": images[1], "record": records,
            "ids": token_ids(batch["text"]) if "text" in batch else [[]] * rows}


def _called(record: dict, shown: str | None):
    """What a record is called: by its id, else by its own pictures, whichever it is shown, else by the one that is shown."""
    if isinstance(several := record.get("images"), list) and not any(key in record for key in IDS):
        return " ".join(map(str, several))
    return next((record[key] for key in IDS if record.get(key) is not None), shown)


def shown_items(example: dict, caption: str, note: str, right: bool) -> list[dict]:
    """The items of a figure for one row: its picture or both, else its text alone."""
    item = {"caption": caption, "note": note, "right": right} | ({"image": example["image_id"]} if example["image_id"] else {})
    return [item, {"image": example["second_id"], "note": "the second picture"}] if example["second_id"] else [item]
