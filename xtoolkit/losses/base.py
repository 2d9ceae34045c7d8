"""The base class of losses: what a loss declares, and what it returns."""

from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.features import Features
from xtoolkit.graph import Need


class Loss(nn.Module):
    """Reads features, owns its private head, returns a scalar.

    A subclass takes its YAML keys in ``__init__`` (and by name, if it asks: ``widths: dict[ref, int]``,
    ``vocab_size_of: int``, ``patch_size_of: int``, and ``modules``, the built encoders by name, for one that copies another).

    Attributes:
        VIEWS: {key: mark} for keys whose reference must be under that mark: without it there would be nothing to predict.
        CONTRASTS: True if it learns from rows that do not belong together: every batch must then show two different pictures.
    """

    VIEWS: dict = {}
    CONTRASTS = False

    @classmethod
    def needs(cls, block: dict) -> list[Need]:
        """What the loss reads, from its YAML block alone (defaults filled in): the plan is made before any weight exists."""
        raise TypeError(f"{cls.__name__} declares no needs")

    def load_init(self) -> None:
        """Called once the encoders have loaded their ``init``: a head that starts as a copy of one copies it here."""

    def forward(self, f: Features, batch: Batch) -> Tensor | dict[str, Tensor]:
        """A scalar, or a dict of scalars that are summed and logged apart (``bbp.l1``, ``bbp.giou``)."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def after_update(self) -> None:
        """Called after every optimizer update, on all ranks: what a loss keeps of its batches, as a running mean, moves here,
        once for all parts and streams of the update."""

    def guess(self, f: Features, batch: Batch) -> Tensor | dict[str, Tensor] | None:
        """What ``forward`` would return for one who knows how often each answer comes, and looks at no sample: the line of
        guessing, below which the loss has learnt. None: no such line is known.

        Asked after ``forward`` of the first batch that a stream takes after each log step, without gradients, on all ranks at
        once. It makes no pass of its own, draws nothing at random and asks the device for no value.

        Returns:
            As ``forward``; of a dict, those of its parts.
        """
        return None
