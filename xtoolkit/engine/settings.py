"""The keys of the `optim`, `train`, `init` and `schedule` blocks: types, defaults and meaning in one place. No torch."""

from dataclasses import dataclass, field
from typing import Literal


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
    """

    lr: float
    type: Literal["AdamW"] = "AdamW"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float | None = 1.0
    warmup: float = 0
    decay: Literal["linear", "cosine", "constant"] = "linear"
    min_lr: float = 0.0
    lr_mult: dict[str, float] = field(default_factory=dict)


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
        workers: loader processes a stream; 0 loads in the main process.
        threads: torch threads; null leaves torch's choice.
        device: cpu, cuda, or auto (cuda where there is one).
        max_bad: share of a stream's samples that may be unreadable before the run stops.
    """

    steps: int
    output: str
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 42
    accumulate: int = 1
    log_every: int = 50
    checkpoint_every: int = 5000
    keep: int = 2
    workers: int = 4
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_bad: float = 0.01


@dataclass(frozen=True)
class Init:
    """The `init` block: a whole model's weights to start from. `init: PATH` is short for `init: {path: PATH}`.

    Attributes:
        path: a file (safetensors or torch) with the model's own names, or a folder: a run's output, one of its checkpoints, or
            one that holds such a file.
        allow_missing: patterns of the model's names that start as drawn if the file lacks them: `losses.bbp.*`.
        allow_unexpected: patterns of the file's names that are left out if the model does not have them, or not in that shape.
    """

    path: str
    allow_missing: list[str] = field(default_factory=list)
    allow_unexpected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScheduleBlock:
    """The `schedule` block: either `every_step` (with `every`), or `sample`.

    Attributes:
        every_step: groups of streams in order; a group is one optimizer update over the sum of its streams' losses.
        every: {stream: n}: the stream takes part in every n-th step only, the first included.
        sample: {stream: weight}: one stream a step, drawn by seed.
    """

    every_step: list[list[str]] | None = None
    every: dict[str, int] = field(default_factory=dict)
    sample: dict[str, float] | None = None


def train_problems(train: Train) -> list[tuple[tuple, str]]:
    """Every number of a `train` block that is out of its range: (keys below `train`, what is wrong)."""
    least = {"steps": 1, "accumulate": 1, "log_every": 1, "checkpoint_every": 1, "keep": 1, "workers": 0, "threads": 1}
    found = [((key,), f"must be at least {low}, not {getattr(train, key)}") for key, low in least.items()
             if getattr(train, key) is not None and getattr(train, key) < low]
    if not 0 <= train.max_bad <= 1:
        found.append((("max_bad",), f"must be a share in [0, 1], not {train.max_bad}"))
    return found
