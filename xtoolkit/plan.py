"""What a recipe will do, before any weight exists: passes per stream, cut edges, parameters, floating-point operations."""

from dataclasses import dataclass, field

import torch
from torch import nn

from xtoolkit.batch import Batch, ImageField, RegionField, TextField
from xtoolkit.model import Model, trainable
from xtoolkit.recipe import Recipe
from xtoolkit.registry import ConfigError

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
    """One stream: its passes, and GFLOPs a row, forward once and backward twice where a graph is built."""

    name: str
    batch_size: int
    tokens: int | None
    losses: dict
    passes: list[PassPlan] = field(default_factory=list)
    head_gflops: float = 0.0
    gflops: float = 0.0


@dataclass
class Plan:
    """The whole plan.

    ``parameters`` maps names to counts: total, transformer layers, the paper's count, a line a part. ``weights`` says where
    those come from, a line each.
    """

    streams: list[StreamPlan]
    parameters: dict
    left_out: list
    idle: list
    cuts: dict
    weights: list


def make_plan(recipe: Recipe, length: int | None = None) -> Plan:
    """Counts a recipe on the meta device.

    Args:
        recipe: checked.
        length: tokens a text, specials included; None: each stream's ``max_tokens``.
    """
    with torch.device("meta"):
        model = Model(recipe)
    streams = [_stream(model, recipe, name, length) for name in recipe.streams]
    return Plan(streams, count_parameters(model), recipe.left_out, recipe.idle,
                {f"{a} -> {b}": sorted(losses) for (a, b), losses in recipe.graph.cuts.items()}, origins(recipe))


def origins(recipe: Recipe) -> list[str]:
    """Where the first weights come from, a line each."""
    drawn = f"drawn from seed {recipe.train.seed}"
    if init := recipe.init:
        allowed = [f"{what} {', '.join(patterns)}" for what, patterns in
                   (("may be missing there:", init.allow_missing), ("left out there:", init.allow_unexpected)) if patterns]
        return [f"the whole model from {init.path}" + "".join(f"; {a}" for a in allowed)]
    blocks = {name: recipe.config["encoders"][name] for name in recipe.reached}
    named = [f"{name} from {block['init']}" for name, block in blocks.items() if block.get("init") is not None]
    return [*named, f"the rest {drawn}" if named else f"all {drawn}"]


def count_parameters(model: Model) -> dict:
    """Trainable parameters.

    ``transformer_layers`` counts the repeated layers of encoders (X-FM Table 9, "Trans."); ``without_output_matrix`` leaves
    out output matrices that losses own, as X-FM's 327M does.
    """
    own = {name: trainable(module) for name, module in model.parts()}
    layers = sum(trainable(m) for e in model.encoders.values() for m in e.modules() if isinstance(m, nn.ModuleList))
    matrices = sum(p.numel() for n, p in model.losses.named_parameters() if n.endswith("decoder.weight"))
    total = trainable(model)
    return {"trainable": total, "transformer_layers": layers, "without_output_matrix": total - matrices, "parts": own}


def _stream(model: Model, recipe: Recipe, name: str, length: int | None) -> StreamPlan:
    stream = recipe.streams[name]
    tokens = None
    if "text" in stream.fields:
        tokens = length or _max_tokens(stream.data)
    plan = StreamPlan(name, stream.batch_size, tokens, dict(stream.losses))
    batch, rows = _meta_batch(model, stream, tokens)
    plan.passes, plan.head_gflops = count(model, recipe, name, batch, rows)
    plan.gflops = trained(plan.passes, plan.head_gflops)
    return plan


def trained(passes: list[PassPlan], head_gflops: float) -> float:
    """GFLOPs a row of forward and backward: each pass once, and twice more where it has a graph; heads always have one."""
    return sum(p.gflops * (3 if p.graph else 1) for p in passes) + 3 * head_gflops


def count(model: Model, recipe: Recipe, name: str, batch: Batch, rows: int) -> tuple[list[PassPlan], float]:
    """The passes of a stream on one batch, each with the forward GFLOPs of a row; and those of the losses' heads.

    Args:
        model: on the meta device.
        batch: on the meta device.
        rows: what counts are per.
    """
    from torch.utils.flop_counter import FlopCounterMode

    passes, entries = [], {}
    for p in recipe.passes(name):
        entry = PassPlan(p.node.label, list(p.readers), p.graph, p.runs, p.cuts)
        entries[(p.node, p.by_run)] = entry
        passes.append(entry)

    class Watch:
        """Adds a pass's operations to its entry. Inputs are computed before the watch begins, so nothing is counted twice."""

        def __init__(self, node, run):
            key = next((k for k in entries if k[0] == node and (k[1] is not None) == (run is not None)), None)
            self.entry = entries[key]

        def __enter__(self):
            self.before = counter.get_total_flops()

        def __exit__(self, *exc):
            self.entry.gflops += (counter.get_total_flops() - self.before) / rows / 1e9

    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.device("meta"):
            model.train()(name, batch, observer=Watch)
    except (AttributeError, KeyError, TypeError, ValueError) as e:  # parts that do not fit each other
        raise ConfigError(f"{recipe.source.where('streams', name)}: stream `{name}` cannot run: {e}") from e
    return passes, counter.get_total_flops() / rows / 1e9 - sum(p.gflops for p in passes)


def _max_tokens(data: dict) -> int:
    values = _with_defaults(data)
    return values["max_tokens"] if "max_tokens" in values else values["tokens"]  # synthetic texts have one length


def _with_defaults(data: dict) -> dict:
    """A data block with the defaults of its dataset."""
    from xtoolkit.registry import DATASET_REGISTRY, schema
    keys = schema(DATASET_REGISTRY.get(data["type"]))
    return {k.name: k.default for k in keys.values()} | {k: v for k, v in data.items() if v is not None}


def _meta_batch(model: Model, stream, tokens) -> tuple[Batch, int]:
    """A batch of shapes: ROWS texts (or pictures), masks as the stream's data block says, and the rows that counts are per."""
    data, rows, text, image, region = _with_defaults(stream.data), ROWS, None, None, None
    with torch.device("meta"):
        if tokens:
            mask = data["mask"] or {"prob": 0, "max": 1}
            masked = max(1, min(mask["max"], round(tokens * mask["prob"]))) * rows
            ids = torch.zeros(rows, tokens, dtype=torch.long)
            flat = torch.zeros(masked, dtype=torch.long)
            text = TextField(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(rows, dtype=torch.long), ids, flat, flat)
        if "image" in stream.fields and model.image_spec():
            size, patch = model.image_spec()
            patches = (size // patch) ** 2
            image = ImageField(torch.zeros(rows, 3, size, size), torch.zeros(rows, dtype=torch.long),
                               torch.zeros(rows, patches, dtype=torch.bool), list(range(rows)))
        if stream.regions:
            each = data["max_per_image"]
            rows *= each
            ids = torch.zeros(rows, tokens, dtype=torch.long)
            flat = torch.zeros(masked * each, dtype=torch.long)
            keys = torch.zeros(rows, dtype=torch.long)
            text = TextField(ids, torch.ones_like(ids, dtype=torch.bool), keys, ids, flat, flat)
            region = RegionField(keys, torch.zeros(rows, 4), torch.ones(rows, patches, dtype=torch.bool),
                                 torch.ones(rows, dtype=torch.bool), keys)
    return Batch(text, image, region), rows


def as_text(plan: Plan) -> str:
    """The plan as a person reads it."""
    lines = []
    for s in plan.streams:
        losses = " + ".join(f"{w:g} {n}" if w != 1 else n for n, w in s.losses.items())
        length = f", {s.tokens} tokens a text" if s.tokens else ""
        lines.append(f"stream {s.name}: {losses}; {s.batch_size} a batch{length}; {s.gflops:,.2f} GFLOPs a row")
        for p in s.passes:
            runs = f" x{p.runs:g}" if p.runs != 1 else ""
            graph = "graph   " if p.graph else "no graph"
            cuts = f"   cut: {', '.join(p.cuts)}" if p.cuts else ""
            lines.append(f"    {p.name + runs:<24} {graph} {p.gflops:10,.3f} GFLOPs   read by {', '.join(p.readers)}{cuts}")
        lines.append(f"    {'heads of the losses':<24} graph    {s.head_gflops:10,.3f} GFLOPs")
    lines.append("stop gradient: " + ("; ".join(f"{e} for {', '.join(l)}" for e, l in plan.cuts.items()) or "nowhere"))
    if plan.left_out:
        lines.append("not built, since nothing reads them: " + ", ".join(plan.left_out))
    if plan.idle:
        lines.append("streams without an active loss, left out: " + ", ".join(plan.idle))
    lines.append("weights: " + "; ".join(plan.weights))
    p = plan.parameters
    lines.append(f"trainable parameters: {p['trainable']:,}; in transformer layers {p['transformer_layers']:,}; "
                 f"without the losses' output matrices {p['without_output_matrix']:,}")
    lines += [f"    {name:<24} {count:>13,}" for name, count in p["parts"].items()]
    return "\n".join(lines)
