"""SigLIP 2's parts: towers, a decoder that captions and says boxes, self-distillation, and the losses over them."""

from . import cappa, contrast, crops, decoder, distillation, locca, prototypes, towers  # noqa: F401  importing registers them
