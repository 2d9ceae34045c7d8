"""The base class of encoders: named modules that losses and other encoders read."""

import inspect

from torch import Tensor, nn

from xtoolkit.features import Encoded


class Encoder(nn.Module):
    """A module whose output several losses may read. Projections, similarities and teachers are encoders too.

    A subclass takes its YAML keys in ``__init__`` (and, if it asks by name, ``widths: dict[slot, int]``), sets
    ``self.width``, and names its input slots as keyword arguments of ``forward``; a slot with a default is optional.

    A slot that is wired to ``$field`` receives the field as ``Field.read`` gives it under the view's marks: of ``$text`` the
    ids are already the masked ones under ``@mask_text``, of ``$image`` there is a ``patch_mask`` only under ``@mask_image``.
    A slot wired to another encoder receives what that encoder returned. A slot with a default is left out on streams that
    cannot fill it.

    Attributes:
        width: channels of the output.
        patch_size, image_size: pixels a side of a patch and of a picture, where it reads pictures: data is made to them.
        embeddings: a module from token ids (B, L) to what its first layer reads, with ``word_embeddings`` (V, width): a decoder
            may start as a copy of it. None: it has none.
        codes: how many codes an image tokenizer has: an encoder whose output is a code a patch, (B, N) int64 below ``codes``, or
            an object with those as its ``codes``. None: it is none.
        vocab_size, pad_id: of the token ids that it reads, where it does: a tokenizer is held against them.
        POOLS: name of a field that it reads whole where another describes parts of it (``"image"``, of which ``$region``
            does): rows for the parts are then pooled from its output. None: it cannot serve on such streams.
        TRAINABLE: False if no gradient ever reaches through (a teacher).
        REFERS: keys whose value names another encoder; the constructor gets the built modules as ``modules[name]``.
        HUB: the organisation on the hub whose names ``init`` takes without a prefix; empty: none.
        HEADS: output layers that the encoder owns and builds when a loss declares one (``Need(head=...)``).
    """

    width: int
    patch_size: int | None = None
    image_size: int | None = None
    codes: int | None = None
    vocab_size: int | None = None
    pad_id: int | None = None
    embeddings: nn.Module | None = None
    POOLS: str | None = None
    TRAINABLE = True
    REFERS: tuple = ()
    HEADS: tuple = ()
    HUB: str = ""

    def build_head(self, name: str) -> None:
        """Builds the output layer ``name``; called once for each head that a loss declares. Encoders with HEADS override it.

        Called again it builds the layer anew: that is how weights are asked which of their names are an output layer's.
        """
        raise ValueError(f"{type(self).__name__} has no head `{name}`; it has: {', '.join(self.HEADS) or 'none'}")

    def load_init(self) -> None:
        """Loads the weights that an ``init`` key names; called once, after construction, where a run starts from such weights."""

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of such an encoder of another ``image_size``, by its own names, as this one can load them; what depends on
        no size, or on one that cannot be changed, stays as it is. Called before a whole model is loaded."""
        return state

    def after_update(self) -> None:
        """Called after every optimizer update; a moving-average teacher moves here."""

    def forward(self, *, view: str | None) -> Encoded | Tensor:
        """Subclasses add a keyword a slot. ``view`` names what sets this pass apart (``mask_text``), None for the plain one."""
        raise TypeError(f"{type(self).__name__} defines no forward")


def slots(cls) -> dict[str, bool]:
    """The input slots of an encoder class: {name: required}."""
    parameters = inspect.signature(cls.forward).parameters.values()
    return {p.name: p.default is inspect.Parameter.empty for p in parameters
            if p.name not in ("self", "view") and p.kind is not p.VAR_KEYWORD}
