"""FLAVA: image, text and multimodal encoders, trained by six losses on pictures, texts and pairs."""

from . import codebook, data, encoders, losses  # noqa: F401  importing registers them
