"""xtoolkit: modular pretraining, fine-tuning and ablation of vision-language foundation models."""

__version__ = "0.1.0"
