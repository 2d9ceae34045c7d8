"""Teacher: a copy of an encoder that is never trained, to make targets for another."""

import copy
from typing import Literal

import torch
from torch import Tensor

from xtoolkit.encoders.base import Encoder
from xtoolkit.features import Encoded
from xtoolkit.registry import ENCODER_REGISTRY, Share


@ENCODER_REGISTRY.register
class Teacher(Encoder):
    """A moving average of an encoder, its state at the start, or random weights; always in evaluation mode.

    YAML: {type: Teacher, inputs: {image: $image}, of: vision, mode: ema, momentum: 0.999}

    Its weights are in the checkpoint and in no optimizer. Its slots are those of the encoder that it copies, whose ``inputs`` it
    takes where it has none of its own.

    Args:
        of: name of the encoder that is copied.
        mode: ``ema``: moves towards the encoder after every update; ``frozen``: stays as the encoder was at the
            start, after its ``init`` was loaded; ``random``: freshly drawn weights that stay, the control for what a
            target must know.
        momentum: of the moving average: the share that a teacher keeps of itself at each update.

    Source: BYOL (2006.07733) and data2vec (2202.03555) for the moving average. X-FM's own target is the encoder itself
    (section 3.3); these modes are the controls for it.
    """

    TRAINABLE = False
    REFERS = ("of",)

    def __init__(self, of: str, modules: dict, mode: Literal["ema", "frozen", "random"] = "ema",
                 momentum: Share = 0.999):
        super().__init__()
        student = modules[of]
        for name in ("width", "patch_size", "image_size", "vocab_size", "pad_id"):
            setattr(self, name, getattr(student, name))
        self.mode, self.momentum = mode, momentum
        self._student = (student,)  # in a tuple, so that the student's parameters do not become the teacher's
        self.encoder = copy.deepcopy(student).requires_grad_(False)
        if mode == "random":
            if not hasattr(student, "init_weights"):
                raise ValueError(f"Teacher: `{of}` ({type(student).__name__}) has no `init_weights` by which to draw it anew")
            self.encoder.init_weights()
        self.train(False)

    def load_init(self) -> None:
        """Copies the encoder again, now that its own ``init`` is loaded; a random teacher stays as it was drawn."""
        if self.mode != "random":
            self.encoder.load_state_dict(self._student[0].state_dict())

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As the encoder that is copied fits its own."""
        inner = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
        return {f"encoder.{name}": tensor for name, tensor in self.encoder.fit(inner).items()}

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves a moving average by one update."""
        if self.mode == "ema":
            own, other = list(self.encoder.parameters()), list(self._student[0].parameters())
            torch._foreach_lerp_(own, other, 1 - self.momentum)
            for own, other in zip(self.encoder.buffers(), self._student[0].buffers()):
                own.copy_(other)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, *, view: str | None, **slots) -> Encoded | Tensor:
        """What the copy gives for its slots, without a graph.

        Autocast keeps no low-precision copy of weights that need no gradient, so no later pass can be poisoned.
        """
        with torch.no_grad():
            return self.encoder(view=view, **slots)
