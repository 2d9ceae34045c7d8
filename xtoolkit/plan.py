"""What a recipe will do, before any weight exists: passes per stream, cut edges, parameters, floating-point operations."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from xtoolkit.batch import Batch
from xtoolkit.graph import Ref
from xtoolkit.model import Model, trainable
from xtoolkit.recipe import Recipe
from xtoolkit.recipe.problems import tell
from xtoolkit.registry import DATASET_REGISTRY, ConfigError, filled

ROWS = 4  # rows of the batch that is counted; every count is linear in the rows but for contrast's tiny matrix


@dataclass
class PassPlan:
    """One pass: ``gflops`` is the forward of one row (a text, or a picture where the stream has no text)."""

    name: str
    readers: list
    graph: bool
    runs: float
    cuts: list
    gflops: float = 0.0


@dataclass
class StreamPlan:
    """One stream: its passes, and GFLOPs a row, forward once and backward twice where a graph is built.

    ``dropped`` are the inputs that it cannot fill, ``encoder.slot``; ``unknown`` says what could not be counted, and why.
    """

    name: str
    batch_size: int
    tokens: int | None
    losses: dict
    passes: list[PassPlan] = field(default_factory=list)
    head_gflops: float = 0.0
    gflops: float | None = None
    dropped: list = field(default_factory=list)
    unknown: str | None = None


@dataclass
class Plan:
    """The whole plan.

    ``parameters`` is what ``count_parameters`` returns. ``weights`` says where those come from, a line each; ``notes`` what was
    left out with the loss that it reads.
    """

    streams: list[StreamPlan]
    parameters: dict
    left_out: list
    idle: list
    cuts: dict
    weights: list
    notes: list

    def __str__(self) -> str:
        """The plan as a person reads it."""
        lines = []
        for s in self.streams:
            losses = " + ".join(f"{w:g} {n}" if w != 1 else n for n, w in s.losses.items())
            length = f", {s.tokens} tokens a text" if s.tokens else ""
            work = f"FLOPs unknown: {s.unknown}" if s.unknown else f"{s.gflops:,.2f} GFLOPs a row"
            lines.append(f"stream {s.name}: {losses}; {s.batch_size} a batch{length}; {work}")
            for p in s.passes:
                runs = f" x{p.runs:g}" if p.runs != 1 else ""
                graph = "graph   " if p.graph else "no graph"
                cuts = f"   cut: {', '.join(p.cuts)}" if p.cuts else ""
                lines.append(f"    {p.name + runs:<24} {graph} {p.gflops:10,.3f} GFLOPs   read by {', '.join(p.readers)}{cuts}")
            lines.append(f"    {'heads of the losses':<24} graph    {s.head_gflops:10,.3f} GFLOPs")
            if s.dropped:
                lines.append(f"    left empty, as this stream has nothing to fill them: {', '.join(s.dropped)}")
        if not self.streams:
            lines.append("no streams: nothing is trained, the evaluations are all there is")
        lines.append("stop gradient: " + ("; ".join(f"{e} for {', '.join(l)}" for e, l in self.cuts.items()) or "nowhere"))
        if self.left_out:
            lines.append("not built, since nothing reads them: " + ", ".join(self.left_out))
        if self.idle:
            lines.append("streams without an active loss, left out: " + ", ".join(self.idle))
        if self.notes:
            lines.append("left out with the loss that they read: " + ", ".join(self.notes))
        lines.append("weights: " + "; ".join(self.weights))
        if not (p := self.parameters):
            return "\n".join([*lines, "parameters unknown"])
        lines.append(f"trainable parameters: {p['trainable']:,}; in transformer layers {p['transformer_layers']:,}; "
                     f"without the losses' output matrices {p['without_output_matrix']:,}")
        lines += [f"    {name:<24} {count:>13,}" for name, count in p["parts"].items()]
        if p["frozen"]:
            lines.append("frozen: " + ", ".join(f"{name} {count:,}" for name, count in p["frozen"].items()))
        return "\n".join(lines)


def make_plan(recipe: Recipe, length: int | None = None, checkpoint=None) -> Plan:
    """Counts a recipe on the meta device.

    Args:
        recipe: checked.
        length: tokens a text, specials included; None: each stream's ``max_tokens``.
        checkpoint: path of that which the weights are read from; None: those that the recipe starts from.

    Raises:
        ConfigError: parts that do not fit each other.
    """
    unknown, model = None, None
    try:
        with torch.device("meta"):
            model = Model(recipe)
    except ConfigError:
        raise
    except Exception as e:  # of any part, a plugin's too: a run builds it where there are numbers, and goes on
        unknown = f"cannot be built on shapes alone: {tell(e)}"
    streams = [_stream(model, recipe, name, length, unknown) for name in recipe.streams]
    return Plan(streams, count_parameters(model) if model else {}, recipe.left_out, recipe.idle,
                {f"{a} -> {b}": sorted(losses) for (a, b), losses in recipe.graph.cuts.items()},
                [f"those of the checkpoint {checkpoint}"] if checkpoint else origins(recipe), list(recipe.source.notes))


def origins(recipe: Recipe) -> list[str]:
    """Where the first weights come from, a line each."""
    drawn, blocks = f"drawn from seed {recipe.train.seed}", {name: recipe.config["encoders"][name] for name in recipe.reached}
    named = {name: f"{name} from {block['init']}" for name, block in blocks.items() if block.get("init") is not None}
    if init := recipe.init:
        allowed = [f"{what} {', '.join(patterns)}" for what, patterns in
                   (("may be missing there:", init.allow_missing), ("left out there:", init.allow_unexpected)) if patterns]
        what = "the whole model from" if init.parts == "all" else "all encoders and losses that are in"
        own = "".join(f", but {said}" for name, said in named.items() if name in init.own)
        rest = [said for name, said in named.items() if name not in init.own]
        others = f"if not there, {', '.join(rest)}; " if rest else ""
        drawn = f"; {others}the others {drawn}" if init.parts == "shared" else ""
        return [f"{what} {init.path}{own}{drawn}" + "".join(f"; {a}" for a in allowed)]
    return [*named.values(), f"the rest {drawn}" if named else f"all {drawn}"]


def count_parameters(model: Model) -> dict:
    """Parameters by what becomes of them.

    Returns:
        ``trainable``: those that a gradient of some stream reaches; ``parts``: the same of each encoder and loss;
        ``transformer_layers``: of those the ones in repeated layers of encoders (X-FM Table 9, "Trans.");
        ``without_output_matrix``: without output matrices that losses own, as X-FM's 327M is counted; ``frozen``: the others, of
        each part that has any, as a teacher whose output every loss reads without a gradient.
    """
    learns = _learning(model.recipe)
    own = {name: trainable(module) if name in learns else 0 for name, module in model.parts()}
    layers = sum(trainable(m) for name, encoder in model.encoders.items() if name in learns for m in encoder.modules()
                 if isinstance(m, nn.ModuleList))
    matrices = sum(p.numel() for name, loss in model.losses.items() if name in learns for n, p in loss.named_parameters()
                   if n.endswith("decoder.weight"))
    total = sum(own.values())
    frozen = {name: sum(p.numel() for p in module.parameters()) - own[name] for name, module in model.parts()}
    return {"trainable": total, "transformer_layers": layers, "without_output_matrix": total - matrices, "parts": own,
            "frozen": {name: count for name, count in frozen.items() if count}}


def _learning(recipe: Recipe) -> set[str]:
    """The losses of streams, and the encoders through which a gradient of theirs runs or whose output layer they train."""
    found = {loss for stream in recipe.streams.values() for loss in stream.losses}
    heads = [Ref.parse(need.ref).name for loss in found for need in recipe.needs[loss] if need.head]
    return found | {recipe.graph.encoders[name].owner for name in heads} | \
        {p.node.encoder for stream in recipe.streams for p in recipe.passes(stream) if p.graph}


def _stream(model: Model | None, recipe: Recipe, name: str, length: int | None, unknown: str | None) -> StreamPlan:
    stream = recipe.streams[name]
    cls = DATASET_REGISTRY.get(stream.data["type"])
    block = filled(cls, stream.data)
    longest = cls.max_length(block)
    plan = StreamPlan(name, stream.batch_size, longest and (length or longest), dict(stream.losses),
                      dropped=_dropped(recipe, name), passes=_passes(recipe, name), unknown=unknown)
    if model is None:
        return plan
    try:
        batch = cls.example(block, ROWS, model.sizes(stream.fields), recipe.views(name), plan.tokens)
    except Exception as e:  # a plugin's dataset may not say what it looks like
        plan.unknown = f"{cls.__name__}.example: {tell(e)}"
        return plan
    plan.passes, plan.head_gflops, plan.unknown = count(model, recipe, name, batch, batch.size)
    plan.gflops = None if plan.unknown else trained(plan.passes, plan.head_gflops)
    return plan


def _dropped(recipe: Recipe, name: str) -> list[str]:
    """The optional slots that stay empty in the passes of a stream, ``encoder.slot (source)``."""
    gone = [f"{p.node.wiring}.{slot} ({source})" for p in recipe.passes(name)
            for slot, source in recipe.graph.encoders[p.node.wiring].inputs.items() if slot not in dict(p.node.inputs)]
    return list(dict.fromkeys(gone))


def _passes(recipe: Recipe, name: str) -> list[PassPlan]:
    return [PassPlan(p.node.label, list(p.readers), p.graph, p.runs, p.cuts) for p in recipe.passes(name)]


def trained(passes: list[PassPlan], head_gflops: float) -> float:
    """GFLOPs a row of forward and backward: each pass once, and twice more where it has a graph; heads always have one."""
    return sum(p.gflops * (3 if p.graph else 1) for p in passes) + 3 * head_gflops


def count(model: Model, recipe: Recipe, name: str, batch: Batch, rows: int) -> tuple[list[PassPlan], float, str | None]:
    """The passes of a stream on one batch, each with the forward GFLOPs of a row; those of the losses' heads; what is unknown.

    Args:
        model: on the meta device.
        batch: on the meta device.
        rows: what counts are per.

    Raises:
        ConfigError: parts that do not fit each other, with the encoder or loss that found out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    passes, running = _passes(recipe, name), []
    entries = {p.run or p.node: entry for p, entry in zip(recipe.passes(name), passes)}

    class Watch:
        """Adds a pass's operations to its entry. Inputs are computed before the watch begins, so nothing is counted twice."""

        def __init__(self, key):
            self.entry = entries[key]

        def __enter__(self):
            self.before = counter.get_total_flops()
            running.append(self.entry)

        def __exit__(self, kind, *_):
            self.entry.gflops += (counter.get_total_flops() - self.before) / rows / 1e9
            if kind is None:
                running.pop()

    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.device("meta"):
            losses = model.train()(name, batch, observer=Watch)
    except Exception as e:  # of any part, a plugin's too: which is to be named
        what = f"encoder pass `{running[-1].name}`" if running else f"a loss of {', '.join(recipe.streams[name].losses)}"
        if isinstance(e, NotImplementedError) or isinstance(e, RuntimeError) and "meta" in str(e):
            return passes, 0.0, f"{what} cannot run on shapes alone: {tell(e)}"
        raise ConfigError(f"{recipe.source.where('streams', name)}: stream `{name}` cannot run: {what}: {tell(e)}") from e
    for loss, value in losses.items():
        if not isinstance(value, Tensor) or value.dim():
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ConfigError(f"{recipe.source.where('losses', loss)}: loss `{loss}` ({type(model.losses[loss]).__name__}) must "
                              f"return a scalar tensor, or a dict of them; on stream `{name}` it gives {got}")
    heads = counter.get_total_flops() / rows / 1e9 - sum(p.gflops for p in passes)
    return passes, heads if heads > 1e-12 else 0.0, None  # a difference of sums: rounding may leave a trace below 0
