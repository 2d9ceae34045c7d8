"""VL-BEiT: one transformer for texts, pictures and pairs, with a feed-forward expert for each modality."""

from . import backbone  # noqa: F401  importing registers it
