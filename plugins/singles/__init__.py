"""RoBERTa and BEiTv2 trained alone, X-FM's single-modality baselines: the image tokenizer VQ-KD, and how its codes are used."""

from . import tokenizer, training  # noqa: F401  importing registers them
