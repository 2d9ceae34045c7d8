"""Where a run computes, and in which precision."""

import torch

from xtoolkit.engine import distributed
from xtoolkit.registry import ConfigError


def pick_device(name: str) -> torch.device:
    """The torch device of `train.device`; under torchrun each process takes the CUDA device of its local rank."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device: cuda was asked for and this machine has none; set train.device to cpu or auto")
    return torch.device("cuda", distributed.local_rank()) if name == "cuda" else torch.device(name)


def autocast(device: torch.device, precision: str):
    """The context in which a forward pass runs: bf16 autocast, or nothing for fp32. Evaluation uses it too."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
