"""The model of a recipe: the encoders and losses that it reaches, and one forward from a stream's batch to its losses."""

import torch
from torch import Tensor, nn

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
            spec = self.graph.encoders[name]
            widths = self._widths(name)
            if spec.owner == name:
                self._seed(name)
                self.encoders[name] = ENCODER_REGISTRY.build(
                    config["encoders"][name], where("encoders", name), widths=widths, modules=self.encoders)
                for head in sorted(self._heads(name)):  # now: a copy of the encoder has them too
                    self._seed(name, head)
                    self.encoders[name].build_head(head)
            elif other := {s: w for s, w in widths.items() if w != self._widths(spec.owner).get(s, w)}:
                raise ConfigError(f"{where('encoders', name)}: encoder `{name}` shares `{spec.owner}`, whose inputs have "
                                  f"widths {self._widths(spec.owner)}; here they have {other}")
        for name, needs in recipe.needs.items():
            self._seed(name)
            self.losses[name] = LOSS_REGISTRY.build(
                config["losses"][name], where("losses", name),
                widths={n.ref: self.encoder(Ref.parse(n.ref).name).width for n in needs if not n.ref.startswith("$")},
                vocab_size_of=self._below(needs, "vocab_size"), patch_size_of=self._below(needs, "patch_size"),
                modules={n: self.encoder(n) for n in recipe.reached})
        self._with_graph = {s: {p.node for p in recipe.passes(s) if p.graph and p.run is None} for s in recipe.streams}

    def _seed(self, *name) -> None:
        """Each part's first weights come from the recipe's seed and its own name: two recipes that differ in one part start
        the others alike, as a controlled comparison needs."""
        torch.manual_seed(stable_key(self.recipe.train.seed, *name))

    def _heads(self, owner: str) -> set[str]:
        """The output layers of an encoder that losses declare."""
        wanted = [n for needs in self.recipe.needs.values() for n in needs if n.head]
        return {n.head for n in wanted if self.graph.encoders[Ref.parse(n.ref).name].owner == owner}

    def encoder(self, name: str) -> nn.Module:
        """The module of an encoder of the recipe, which another may own."""
        return self.encoders[self.graph.encoders[name].owner]

    def _widths(self, name: str) -> dict[str, int]:
        """{slot: width of what it reads} of an encoder's inputs that are encoders."""
        inputs = self.graph.encoders[name].inputs
        return {slot: self.encoder(source).width for slot, source in inputs.items() if not source.startswith("$")}

    def _below(self, needs, attribute: str):
        """An attribute of the first encoder that has it, among those that ``needs`` are computed from; None without one."""
        names = self.graph.below(Ref.parse(n.ref).name for n in needs)
        return next((v for n in names if (v := getattr(self.encoder(n), attribute)) is not None), None)

    def check_tokenizer(self, tokenizer) -> None:
        """Raises ConfigError where the ids of a tokenizer are not those that the encoders of texts expect."""
        where, name = self.recipe.source.where, tokenizer.name
        sizes = [e.vocab_size for e in self.encoders.values() if e.vocab_size is not None]
        if sizes and tokenizer.vocab_size > min(sizes):
            raise ConfigError(f"{where('tokenizer')}: tokenizer `{name}` has {tokenizer.vocab_size} tokens, the text encoder a "
                              f"vocabulary of {min(sizes)}: set its `vocab_size`")
        for encoder, module in self.encoders.items():
            if module.pad_id is not None and module.pad_id != tokenizer.pad:
                raise ConfigError(f"{where('encoders', encoder)}: tokenizer `{name}` pads with id {tokenizer.pad}, encoder "
                                  f"`{encoder}` expects {module.pad_id}: set its `pad_id: {tokenizer.pad}`")

    def sizes(self, fields=None) -> dict[str, int]:
        """``image_size`` and ``patch_size`` in pixels a side, to which data is made: of the first encoder that has both and
        reads one of ``fields`` itself (None: any); empty without one."""
        for name in self.recipe.reached:
            read = {s[1:] for s in self.graph.encoders[name].inputs.values() if s.startswith("$")}
            module = self.encoder(name)
            if None not in (module.image_size, module.patch_size) and read & set(fields or read):
                return {"image_size": module.image_size, "patch_size": module.patch_size}
        return {}

    def load_init(self) -> None:
        """Loads the weights that ``init:`` keys name, encoders first, inputs first; copies are made after what they copy."""
        for part in (*self.encoders.values(), *self.losses.values()):
            part.load_init()

    def fit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A whole model's tensors by name, those of encoders of another size as these can load them (``Encoder.fit``)."""
        for name, encoder in self.encoders.items():
            prefix = f"encoders.{name}."
            own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            if own:
                state = {n: t for n, t in state.items() if not n.startswith(prefix)}
                state |= {prefix + n: t for n, t in encoder.fit(own).items()}
        return state

    def forward(self, stream: str, batch: Batch, observer=None, share=None, known=None) -> Losses:
        """The active losses of a stream on one of its batches.

        Features are computed on first use, shared by the losses that agree on them, and forgotten when this returns.

        Args:
            observer, share: see ``Features``.
            known: likewise; given, what guessing would cost is logged beside each loss as ``<loss>.guess``.
        """
        f = Features(self.graph, self.encoders, batch, self.recipe.needs, self._with_graph[stream], observer, share, known=known)
        values = {}
        for name in self.recipe.streams[stream].losses:
            value = self.losses[name](f.bound(name), batch)
            values[name] = _summed(f, name, value) if isinstance(value, dict) else value
        if known is not None:
            self._guess(f, values)
        return Losses(values, f.logged)

    @torch.no_grad()
    def _guess(self, f, names):
        for name in names:
            value = self.losses[name].guess(f.bound(name), f.batch)
            value = _summed(f, name, value, ".guess") if isinstance(value, dict) else value
            if value is not None:
                f.logged[f"{name}.guess"] = value

    def features(self, batch: Batch, context=None) -> Features:
        """Free reading of any feature, nothing cut and nothing declared: for evaluations and notebooks.

        Args:
            context: see ``Features``.
        """
        return Features(self.graph, self.encoders, batch, context=context)

    def after_update(self) -> None:
        """Called after every optimizer update: averages of encoders and losses move."""
        for _, part in self.parts():
            part.after_update()

    def parts(self):
        """(name, module) of every encoder and loss: what ``lr_mult`` and reports name."""
        yield from self.encoders.items()
        yield from self.losses.items()


def _summed(f, name, parts, what=""):
    """The sum of what a loss returned in parts, each of which is logged."""
    f.logged.update({f"{name}.{part}{what}": value.detach() for part, value in parts.items()})
    return sum(parts.values())


def trainable(model: nn.Module) -> int:
    """Parameters that an optimizer would move."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
