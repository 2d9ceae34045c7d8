"""A folder of pictures (ImageNet, ImageNet-21k) -> image-only samples."""

import hashlib
import os
import random
from pathlib import Path

from xtoolkit.data.convert.official import BadRecord, Report
from xtoolkit.data.convert.writer import Draft, Options, write_pictures

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def convert(images: Path, options: Options, prefix: str = "train") -> Report:
    """Writes every picture below a folder, in an order drawn once: neighbours are not of one class.

    Args:
        images: the folder, searched to the bottom for ``.jpg``, ``.jpeg``, ``.png`` and ``.webp`` in any case.
        prefix: of the shards.

    Raises:
        BadRecord: names the picture; also where there is none.
    """
    report, images = Report(options.skip_bad), Path(images)
    found = sorted(os.path.relpath(os.path.join(folder, name), images)
                   for folder, _, names in os.walk(images) for name in names if name.lower().endswith(ENDINGS))
    if not found:
        raise BadRecord(f"{images}: no {', '.join(ENDINGS)} in it")
    random.Random(0).shuffle(found)
    drafts = (Draft(prefix, None, images / name, {"image_id": _identity(name), "file": name}, name) for name in found)
    return write_pictures(drafts, options, report)


def _identity(name: str) -> str:
    """The name of a picture, short: equal for equal paths in the folder."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
