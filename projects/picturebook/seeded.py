"""Random generators that depend on an item's key alone, so that adding items never changes others."""

import hashlib
import random


def rng(*key: object) -> random.Random:
    """A generator seeded by the sha256 of the key's parts."""
    text = "/".join(str(part) for part in key)
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
