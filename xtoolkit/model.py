"""The model of a recipe: the encoders and losses that it reaches, and one forward from a stream's batch to its losses."""


import torch
from torch import nn

from xtoolkit.batch import Batch, stable_key
from xtoolkit.features import Features
from xtoolkit.graph import Ref
from xtoolkit.recipe import Recipe
from xtoolkit.registry import ENCODER_REGISTRY, LOSS_REGISTRY, ConfigError


class Losses(dict):
    """{loss: 0-d tensor}, unweighted. ``log`` holds what is shown and not summed: parts and logged values, by dotted name."""

    def __init__(self, values: dict, log: dict):
        super().__init__(values)
        self.log = log


class Model(nn.Module):
    """Builds what a recipe reaches; computes the losses of a stream.

    Weights are random until ``load_init``. Built under ``torch.device("meta")`` it has shapes only: that is how the plan counts.

    Args:
        recipe: checked.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe, self.graph = recipe, recipe.graph
        config, where = recipe.config, recipe.source.where
        self.encoders, self.losses = nn.ModuleDict(), nn.ModuleDict()
        for name in recipe.reached:
            self._seed(name)
            block = config["encoders"][name]
            widths = {slot: self.encoders[source].width for slot, source in self.graph.encoders[name].inputs.items()
                      if not source.startswith("$")}
            self.encoders[name] = ENCODER_REGISTRY.build(
                block, where("encoders", name), widths=widths, modules=self.encoders)
        heads = {(Ref.parse(n.ref).name, n.head) for needs in recipe.needs.values() for n in needs if n.head}
        for encoder, head in sorted(heads):
            self._seed(encoder, head)
            self.encoders[encoder].build_head(head)
        for name, needs in recipe.needs.items():
            self._seed(name)
            self.losses[name] = LOSS_REGISTRY.build(
                config["losses"][name], where("losses", name),
                widths={n.ref: self.encoders[Ref.parse(n.ref).name].width for n in needs if not n.ref.startswith("$")},
                vocab_size_of=self._below(needs, "vocab_size"), patch_size_of=self._below(needs, "patch_size"))
        self._with_graph = {s: {p.node for p in recipe.passes(s) if p.graph} for s in recipe.streams}

    def _seed(self, *name) -> None:
        """Each part's first weights come from the recipe's seed and its own name: two recipes that differ in one part start
        the others alike, as a controlled comparison needs."""
        torch.manual_seed(stable_key(self.recipe.train.seed, *name))

    def _below(self, needs, attribute: str):
        """An attribute of the first encoder that has it, among those that ``needs`` are computed from; None without one."""
        names = self.graph.below(Ref.parse(n.ref).name for n in needs)
        return next((getattr(self.encoders[n], attribute) for n in names if hasattr(self.encoders[n], attribute)), None)

    @property
    def text_vocab_size(self) -> int | None:
        """The smallest vocabulary of an encoder that reads token ids: a tokenizer must not be larger."""
        sizes = [e.vocab_size for e in self.encoders.values() if hasattr(e, "vocab_size")]
        return min(sizes) if sizes else None

    def check_tokenizer(self, tokenizer) -> None:
        """Raises ConfigError where the ids of a tokenizer are not those that the encoders of texts expect."""
        where, name, size = self.recipe.source.where, tokenizer.name, self.text_vocab_size
        if size is not None and tokenizer.vocab_size > size:
            raise ConfigError(f"{where('tokenizer')}: tokenizer `{name}` has {tokenizer.vocab_size} tokens, the text encoder a "
                              f"vocabulary of {size}: set its `vocab_size`")
        for encoder, module in self.encoders.items():
            if hasattr(module, "pad_id") and module.pad_id != tokenizer.pad:
                raise ConfigError(f"{where('encoders', encoder)}: tokenizer `{name}` pads with id {tokenizer.pad}, encoder "
                                  f"`{encoder}` expects {module.pad_id}: set its `pad_id: {tokenizer.pad}`")

    def image_spec(self) -> tuple[int, int] | None:
        """(pixels a side, pixels a patch) of the encoder that reads ``$image``: data is made to this size."""
        for name, encoder in self.encoders.items():
            if "$image" in self.graph.encoders[name].inputs.values() and hasattr(encoder, "patch_size"):
                return encoder.image_size, encoder.patch_size
        return None

    def load_init(self) -> None:
        """Loads the weights that encoders' ``init:`` keys name, inputs first; teachers copy their students after that."""
        for encoder in self.encoders.values():
            if hasattr(encoder, "load_init"):
                encoder.load_init()

    def forward(self, stream: str, batch: Batch, observer=None) -> Losses:
        """The active losses of a stream on one of its batches.

        Features are computed on first use, shared by the losses that agree on them, and forgotten when this returns.

        Raises:
            ValueError: a batch with pictures and texts that shows fewer than two different pictures: no loss could tell a
                right text from a wrong one.
        """
        refuse_single_image(stream, batch)
        losses = self.recipe.streams[stream].losses
        f = Features(self.graph, self.encoders, batch, self.recipe.needs, self._with_graph[stream], observer)
        values, log = {}, {}
        for name in losses:
            value = self.losses[name](f.bound(name), batch)
            if isinstance(value, dict):
                log.update({f"{name}.{part}": v.detach() for part, v in value.items()})
                value = sum(value.values())
            values[name] = value
        return Losses(values, log | f.logged)

    def features(self, batch: Batch) -> Features:
        """Free reading of any feature, nothing cut and nothing declared: for evaluations and notebooks."""
        return Features(self.graph, self.encoders, batch)

    def parts(self):
        """(name, module) of every encoder and loss: what ``lr_mult`` and reports name."""
        yield from self.encoders.items()
        yield from self.losses.items()


def refuse_single_image(stream: str, batch: Batch) -> None:
    """Host-side check of a batch before the device sees it; reads only ``image_id``, which lives on the host."""
    if batch.text is not None and batch.image is not None and len(set(batch.image.image_id)) < 2:
        shown = ", ".join(map(str, set(batch.image.image_id))) or "no named picture"
        raise ValueError(f"a batch of stream `{stream}` shows fewer than two different pictures ({shown}): "
                         "contrast and matching need at least two")


def trainable(model: nn.Module) -> int:
    """Parameters that an optimizer would move."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
