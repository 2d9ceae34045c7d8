"""GradientAudit: which parts of a model learn, seen from their gradients."""

import torch

from xtoolkit.hooks.base import Hook
from xtoolkit.registry import HOOK_REGISTRY, Count


@HOOK_REGISTRY.register
class GradientAudit(Hook):
    """Writes the gradient of each layer and head every ``every`` steps: a cut too many, or a layer that no longer learns, shows.

    YAML: {type: GradientAudit, every: 100}

    A part is an encoder's numbered layer (``vision.blocks.3``), the rest of an encoder (``vision``) or a loss's head.
    Written as ``<hook>.<part>.norm``, the L2 norm before clipping, and ``<hook>.<part>.zero``, the share of the part's
    values whose gradient is exactly 0 or absent; of several groups of streams in a step the largest norm and the
    smallest share. ``<hook>.<part>.silent`` says at how many audits of the run so far there was no gradient at all,
    once there was one. A gradient that is not finite ends the run, and names its parameters: it needs no audit.

    Args:
        every: steps between two audits.
    """

    def __init__(self, every: Count = 100):
        self.every, self.silent, self._found = every, {}, {}

    def after_backward(self, trainer):
        if (trainer.done + 1) % self.every:
            return
        parts: dict[str, list] = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parts.setdefault(part_of(name), []).append(parameter)
        for part, parameters in parts.items():
            used = [p.grad for p in parameters if p.grad is not None]
            zero = torch.zeros((), device=trainer.device)
            norm = torch.linalg.vector_norm(torch.stack([g.float().norm() for g in used])) if used else zero
            filled = sum((g.count_nonzero() for g in used), start=zero)
            share = 1 - filled / sum(p.numel() for p in parameters)
            if part in self._found:
                norm, share = torch.maximum(norm, self._found[part][0]), torch.minimum(share, self._found[part][1])
            self._found[part] = norm, share

    def after_step(self, trainer):
        if not self._found:
            return
        # One transfer for all parts.
        numbers = torch.stack([torch.stack(pair) for pair in self._found.values()]).tolist()
        values = {}
        for part, (norm, share) in zip(self._found, numbers):
            values |= {f"{self.name}.{part}.norm": norm, f"{self.name}.{part}.zero": share}
            if share == 1 and norm == 0:
                self.silent[part] = self.silent[part] + 1 if part in self.silent else 1
            if part in self.silent:
                values[f"{self.name}.{part}.silent"] = self.silent[part]
        self._found = {}
        trainer.write(values)

    def state_dict(self):
        return {"silent": self.silent}

    def load_state_dict(self, state):
        self.silent = dict(state["silent"])


def part_of(name: str) -> str:
    """``encoders.vision.blocks.3.attn.proj.weight`` belongs to ``vision.blocks.3``, ``losses.itm.head.weight`` to ``itm``."""
    words = name.split(".")[1:]
    number = next((i for i, word in enumerate(words) if word.isdigit()), None)
    return ".".join(words[:number + 1]) if number is not None and name.startswith("encoders.") else words[0]
