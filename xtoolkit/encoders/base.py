"""The base class of encoders: named modules that losses and other encoders read."""

import inspect

from torch import Tensor, nn

from xtoolkit.features import Encoded


class Encoder(nn.Module):
    """A module whose output several losses may read. Projections, similarities and teachers are encoders too.

    A subclass takes its YAML keys in ``__init__`` (and, if it asks by name, ``widths: dict[slot, int]``), sets
    ``self.width``, and names its input slots as keyword arguments of ``forward``; a slot with a default is optional.

    A slot that is wired to ``$text`` receives a TextField whose ``ids`` are already the masked ones under ``@mask_text``; one
    wired to ``$image`` an ImageField whose ``patch_mask`` is None unless the view is ``@mask_image``. A slot wired to another
    encoder receives what that encoder returned. An encoder that reads ``$image`` always sees full pictures: regions are pooled
    from its output by ``Features``.

    Attributes:
        width: channels of the output.
        TRAINABLE: False if no gradient ever reaches through (a teacher).
        REFERS: keys whose value names another encoder; the constructor gets the built modules as ``modules[name]``.
        HUB: the organisation on the hub whose names ``init`` takes without a prefix; empty: none.
        HEADS: output layers that the encoder owns and builds when a loss declares one (``Need(head=...)``).
    """

    width: int
    TRAINABLE = True
    REFERS: tuple = ()
    HEADS: tuple = ()
    HUB: str = ""

    def build_head(self, name: str) -> None:
        """Builds the output layer ``name``; called once for each head that a loss declares. Encoders with HEADS override it."""
        raise ValueError(f"{type(self).__name__} has no head `{name}`; it has: {', '.join(self.HEADS) or 'none'}")

    def after_update(self) -> None:
        """Called after every optimizer update; a moving-average teacher moves here."""

    def forward(self, *, view: str | None) -> Encoded | Tensor:
        """Subclasses add a keyword a slot. ``view`` names what sets this pass apart (``mask_text``), None for the plain one."""
        raise TypeError(f"{type(self).__name__} defines no forward")


def slots(cls) -> dict[str, bool]:
    """The input slots of an encoder class: {name: required}."""
    parameters = inspect.signature(cls.forward).parameters.values()
    return {p.name: p.default is inspect.Parameter.empty for p in parameters if p.name not in ("self", "view")}
