"""The keys of the `optim`, `train`, `init` and `schedule` blocks: types, defaults and meaning in one place. No torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from xtoolkit.hints import Count, NotNegative, Positive, Range, Share
from xtoolkit.registry import nearest

Beta = Annotated[float, Range(0, 1, open_high=True)]
Factor = Annotated[float, Range(0, 1, open_low=True)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(-2**63, 2**63 - 1)]  # 64 bits


@dataclass(frozen=True)
class Optim:
    """The `optim` block.

    Attributes:
        lr: peak learning rate.
        type: AdamW only (torch's, fused where the device has it).
        betas: X-FM's text and code say 0.9, 0.98; its Table 10 says 0.999.
        eps: added to the root of the second moment.
        weight_decay: not applied to biases, norms, relative-position tables and the temperature.
        clip: largest gradient norm over all parameters; null: no clipping.
        warmup: steps of linear warm-up from 0; below 1: a share of all steps.
        decay: shape from the peak to `min_lr` at the last step.
        min_lr: the learning rate at the end.
        lr_mult: {encoder or loss: factor}.
        layer_decay: factor of the rate for each layer further from an encoder's top, for all encoders or {encoder: factor};
            1: none. BEiT fine-tunes with 0.65 (base) to 0.85. Multiplied by `lr_mult`.
    """

    lr: Positive
    type: Literal["AdamW"] = "AdamW"
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01
    clip: Positive | None = 1.0
    warmup: NotNegative = 0
    decay: Literal["linear", "cosine", "constant"] = "linear"
    min_lr: NotNegative = 0.0
    lr_mult: dict[str, NotNegative] = field(default_factory=dict)
    layer_decay: Factor | dict[str, Factor] = 1.0


@dataclass(frozen=True)
class Train:
    """The `train` block.

    Attributes:
        steps: optimizer steps of the whole run (a step with several update groups counts once).
        output: the run's folder.
        precision: bf16 (autocast) or fp32.
        seed: of everything that is drawn.
        accumulate: micro-batches that a stream's batch is split into; ITC and ITM then see the rows of one micro-batch only.
        log_every: steps between two log lines.
        checkpoint_every: steps between two checkpoints; the last step is always kept.
        keep: checkpoints kept, the newest.
        keep_best: EVALUATION.METRIC, of an evaluation with `every`: the checkpoint where it is largest is kept too. The run ends
            with its weights, on which evaluations without `every` then run, once. -EVALUATION.METRIC: where it is smallest.
        workers: loader processes a stream; 0 loads in the main process.
        threads: torch threads; null leaves torch's choice.
        device: cpu, cuda, or auto (cuda where there is one).
        max_bad: share of a stream's samples that may be unreadable before the run stops.
    """

    steps: Count
    output: str
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: Seed = 42
    accumulate: Count = 1
    log_every: Count = 50
    checkpoint_every: Count = 5000
    keep: Count = 2
    keep_best: str | None = None
    workers: Whole = 4
    threads: Count | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_bad: Share = 0.01


@dataclass(frozen=True)
class Init:
    """The `init` block: a whole model's weights to start from. `init: PATH` is short for `init: {path: PATH}`; over an inherited
    block it replaces the path and leaves the other keys.

    Attributes:
        path: a file (safetensors or torch) with the model's own names, or a folder: a run's output, one of its checkpoints, or
            one that holds such a file; null: none, the weights are drawn, or those that the encoders' own `init:` keys name.
        parts: `all`: every encoder and loss of the model must be in the weights, and every one of theirs in the model.
            `shared`, for fine-tuning: encoders and losses that only the weights have are left there, those that only the model
            has start as drawn, or by an encoder's own `init:`, and a line says which. Within a part that both have every name
            must fit, except an encoder's output layer that only one of them has built.
        allow_missing: patterns of the model's names that the file may lack: they start as without it. `losses.bbp.*`.
        allow_unexpected: patterns of the file's names that are left out if the model does not have them, or not in that shape.
        own: encoders that start by their own `init:` whatever the weights have of them: a text encoder swapped for another's.
    """

    path: str | None
    parts: Literal["all", "shared"] = "all"
    allow_missing: list[str] = field(default_factory=list)
    allow_unexpected: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScheduleBlock:
    """The `schedule` block: either `every_step` (with `every`), or `sample`.

    Attributes:
        every_step: groups of streams in order; a group is one optimizer update over the sum of its streams' losses.
        every: {stream: n}: the stream takes part in every n-th step only, the first included. {stream: [[step, n], ...]}: from
            each of these steps on (counted from 0, rising) in every n-th, that step included; null: in none. Before the
            first it takes part in none.
        sample: {stream: weight}: one stream a step, drawn by seed.
    """

    every_step: list[list[str]] | None = None
    every: dict[str, Count | list[tuple[Whole, Count | None]]] = field(default_factory=dict)
    sample: dict[str, Positive] | None = None


def optim_problems(optim: Optim, encoders, losses, steps: int | None = None) -> list[tuple[tuple, str]]:
    """What is wrong with an `optim` block beyond the type and range of each key: (keys below `optim`, what is wrong).

    Args:
        encoders: {name: the encoder whose module it is}.
        losses: names of the recipe's.
        steps: optimizer steps of the run, to hold ``warmup`` against; None: not checked.
    """
    owners = [name for name, owner in encoders.items() if name == owner]
    found = []
    for key, what, names in (("lr_mult", "neither an encoder nor a loss", [*owners, *losses]),
                             ("layer_decay", "no encoder", owners)):
        given = getattr(optim, key)
        for name in [n for n in (given if isinstance(given, dict) else ()) if n not in names]:
            said = f"; it shares the module of `{encoders[name]}`: name that" if name in encoders else nearest(name, names)
            found.append(((key, name), f"`{key}` names {what} with parameters of its own: `{name}`{said}" if name in encoders
                          else f"`{key}` names {what}: `{name}`{said}"))
    if optim.min_lr > optim.lr:
        found.append((("min_lr",), f"`optim.min_lr`: {optim.min_lr} is above the peak lr {optim.lr}"))
    if steps is not None and warmup_steps(optim, steps) > steps:
        found.append((("warmup",), f"`optim.warmup`: {optim.warmup:g} steps are more than the run's {steps}; "
                                   "below 1 it is a share of all steps, e.g. 0.1"))
    return found


def init_problems(init: Init, encoders: dict) -> list[tuple[tuple, str]]:
    """What is wrong with an `init` block against the blocks of the encoders: (keys below `init`, what is wrong)."""
    said = [f"no encoder: `{name}`{nearest(name, encoders)}" for name in init.own if name not in encoders]
    for name, block in [(name, encoders[name]) for name in init.own if isinstance(encoders.get(name), dict)]:
        if "shares" in block:
            said.append(f"encoder `{name}`, which shares the module of `{block['shares']}`: name that")
        elif block.get("init") is None:
            said.append(f"encoder `{name}`, which has no `init` of its own: set `encoders.{name}.init`, or leave it out")
    return [(("own",), f"`own` names {what}") for what in said]


def best_by(keep_best: str) -> tuple[str, str, int]:
    """(evaluation, metric, 1, or -1 where smaller is better) of ``train.keep_best``."""
    evaluation, _, metric = keep_best.removeprefix("-").partition(".")
    return evaluation, metric, -1 if keep_best.startswith("-") else 1


def best_problem(keep_best: str, evaluate: dict) -> str | None:
    """What is wrong with ``train.keep_best`` against the `evaluate` block; None: nothing. Metrics are known once computed."""
    name, metric, _ = best_by(keep_best)
    if not metric:
        return f"`keep_best` is EVALUATION.METRIC, e.g. {name or 'val'}.accuracy (-{name or 'val'}.error: smaller is better)"
    if name not in evaluate:
        return f"`keep_best` names no evaluation: `{name}`{nearest(name, evaluate)}"
    if not isinstance(evaluate[name], dict) or evaluate[name].get("every") is None:
        return f"`keep_best` chooses by evaluation `{name}`, which never runs in between: give it `evaluate.{name}.every`"
    return None


def warmup_steps(optim: Optim, steps: int) -> int:
    """Steps of warm-up: ``warmup`` itself, or below 1 that share of all steps."""
    return int(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)


def schedule_problems(block: ScheduleBlock, streams, steps: int | None = None) -> list[tuple[tuple, str]]:
    """What is wrong with a `schedule` block against the names of the streams: (keys below `schedule`, what is wrong).

    Args:
        steps: of the run: what comes after them is not asked about; None: it never ends.
    """
    streams = list(streams)
    if block.every_step is not None and block.sample is not None:
        return [((), "`every_step` and `sample` exclude each other; remove one (`null` removes an inherited key)")]
    found = _sample_problems(block, streams) if block.sample is not None else _every_problems(block, streams, steps)
    scheduled = list(block.sample) if block.sample is not None else sum(groups_of(block, streams), [])
    return found + [((), f"stream `{name}` is never scheduled; add it, or remove it with `streams.{name}: null`")
                    for name in streams if name not in scheduled]


def groups_of(block: ScheduleBlock, streams) -> list[list[str]]:
    """The groups of ``every_step``; without it all streams are one."""
    return [list(group) for group in block.every_step] if block.every_step is not None else [list(streams)]


def intervals(block: ScheduleBlock, stream: str) -> list[tuple[int, int | None]]:
    """[(step, n)], rising from step 0: from there on the stream takes part in every n-th step; None: in none."""
    given = block.every.get(stream, 1)
    given = [(0, given)] if isinstance(given, int) else [tuple(pair) for pair in given]
    return given if given and given[0][0] == 0 else [(0, None), *given]


def _sample_problems(block, streams):
    found = [(("sample", name), f"unknown stream `{name}`{nearest(name, streams)}")
             for name in block.sample if name not in streams]
    if not block.sample:
        found.append((("sample",), "empty; give each stream a weight"))
    if block.every:
        found.append((("every",), "only goes with `every_step`; with `sample` lower the stream's weight instead"))
    return found


def _every_problems(block, streams, steps):
    groups = groups_of(block, streams)
    named = sum(groups, [])
    found = [(("every_step",), f"unknown stream `{name}`{nearest(name, streams)}")
             for name in dict.fromkeys(named) if name not in streams]
    found += [(("every_step",), f"stream `{name}` stands in {named.count(name)} places; a step draws a stream once")
              for name in dict.fromkeys(named) if named.count(name) > 1]
    if not all(groups) or not groups:
        found.append((("every_step",), "an empty group; a group is a list of at least one stream, e.g. [[a, b], [c]]"))
    for name, interval in block.every.items():
        if name not in named:
            found.append((("every", name), f"`{name}` stands in no group of `every_step`{nearest(name, named)}"))
        starts = [step for step, _ in intervals(block, name)]
        if starts != sorted(set(starts)):
            found.append((("every", name), f"the steps of {interval} must rise"))
    starts = sorted({step for name in named for step, _ in intervals(block, name) if steps is None or step < steps})
    idle = [step for step in starts if all([n for start, n in intervals(block, name) if start <= step][-1] != 1
                                           for name in named)]
    if idle and named:
        found.append((("every",), f"step {idle[0] + 1} would have no stream; at every time one must take part in each step"))
    return found
