"""SigLIP 2's parts: a decoder that captions and says boxes, and what its losses ask of it."""

from . import cappa, decoder, locca  # noqa: F401  importing registers them
