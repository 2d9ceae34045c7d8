"""What is said of a loss or a gradient that is not finite."""

import torch

from xtoolkit.recipe.folder import latest


class NonFiniteError(RuntimeError):
    """A loss or a gradient was NaN or infinite. The update was left out: weights and checkpoints are from before it."""


def not_finite(entries: list, named: list, done: int, output) -> NonFiniteError:
    """The error that names the first step, stream and loss that was not finite.

    Args:
        entries: [(step, what, 0-d tensor)] since the last question to the device.
        named: [(name, parameter)] of the model.
        done: steps taken.
        output: the run's folder.
    """
    bad = [(step, what, float(value)) for step, what, value in entries if not bool(torch.isfinite(value))]
    step, what, value = bad[0] if bad else (done - 1, "another process's loss", float("nan"))
    others = [w for s, w, _ in bad[1:] if s == step]
    names = [name for name, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    last = latest(output)
    return NonFiniteError(
        f"step {step + 1}, {what} is {value}" + (f"; not finite either: {', '.join(others)}" if others else "")
        + (f"; first parameters with such gradients: {', '.join(names[:3])}" if names else "")
        + ". The update was left out; "
        + (f"the last checkpoint, {last}, is whole" if last else "no checkpoint was due yet")
        + ". Lower `optim.lr`, lengthen `optim.warmup` or set `train.precision: fp32`")
