"""Output layer and cross-entropy in one: the scores of all words for all tokens never exist at the same time.

Shape letters: M masked tokens, D width, V vocabulary, C words of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN_BYTES = 64 << 20  # up to this size the float32 scores are simply made: docs/benchmarks/step.md
WORDS = 4096            # of a chunk: M x 4096 scores stay near the core, and are work enough for a GPU


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Mean over M tokens of -log softmax(hidden weight^T + bias)[label].

        loss = 1 / M  sum_m  log sum_v exp(s[m, v]) - s[m, label_m],    s = hidden weight^T + bias

    If M x V float32 scores take more than ``PLAIN_BYTES`` they are made ``WORDS`` words at a time, twice: the forward
    pass keeps one number a token (the log of the sum), the backward pass makes each chunk again and turns it into its
    part of the three gradients. That is one matrix product more than a plain backward pass has, against reading and
    writing M x V numbers several times; nothing of size M x V, and no low-precision copy of the whole matrix, is held
    between the passes. Smaller ones take the plain way, ``cross_entropy(linear(...))``. The rule looks at shapes alone.

    Rules:
        Products run in autocast's type where it is on, otherwise in the type of the inputs; the softmax and the sum
        over tokens in float32 (float64 for float64).
        No token: exactly 0, attached to the graph, with gradient 0.
        No label is ignored: one outside 0 .. V - 1 makes the loss NaN (asking would stop the device; NaN is found by
        the check that each update makes). NaN and inf in the inputs reach the loss.
        Made in parts, it has no second derivative.

    Args:
        hidden: (M, D), any float type.
        weight: (V, D), the output matrix.
        bias: (V,), or None.
        labels: (M,) int64.

    Returns:
        A scalar: float32, float64 for float64 inputs.

    Raises:
        ValueError: shapes or types that do not fit.

    Source: X-FM, equations 1 and 4. The log of a sum in parts is the softmax of FlashAttention (2205.14135, 3.1);
    making the scores again in the backward pass is Cut Cross-Entropy's way (2411.09009, 4.2).
    """
    _check(hidden, weight, bias, labels)
    # On the meta device operations are only counted, and a count knows linear layers.
    if hidden.is_meta or labels.shape[0] * weight.shape[0] * 4 <= PLAIN_BYTES:
        return cross_entropy(F.linear(hidden, weight, bias), labels)
    return _in_parts(hidden, weight, bias, labels, _product_dtype(hidden))[0]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The same from scores (M, V) that exist: the reference, and for output layers that give nothing but scores."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    outside = ((labels < 0) | (labels >= scores.shape[1])).any()
    total = F.cross_entropy(scores, labels.clamp(0, scores.shape[1] - 1), reduction="sum")
    return (total / max(labels.shape[0], 1)).masked_fill(outside, float("nan"))


# Every cast below is written out, so that autocast finds nothing to do in either pass.
@torch.library.custom_op("xtoolkit::linear_cross_entropy", mutates_args=())
def _in_parts(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
              dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The loss, and (M,) log of the sum that the backward pass starts from; products in ``dtype``."""
    state = hidden.to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    parts, at_label = [], torch.full(labels.shape, float("nan"), dtype=exact, device=labels.device)
    for start in range(0, weight.shape[0], WORDS):
        scores, _ = _scores(state, weight, bias, start)
        parts.append(scores.logsumexp(1))
        column, here = _place(labels, start, scores.shape[1])
        at_label = torch.where(here, scores.gather(1, column)[:, 0], at_label)
    log_sum = torch.stack(parts).logsumexp(0)
    return (log_sum - at_label).sum() / max(labels.shape[0], 1), log_sum


@torch.library.custom_op("xtoolkit::linear_cross_entropy_backward", mutates_args=())
def _in_parts_backward(upstream: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
                       log_sum: Tensor, dtype: torch.dtype, wanted: list[bool]) -> list[Tensor]:
    """Gradients of hidden, weight and bias, an empty tensor where one is not wanted."""
    state, scale = hidden.to(dtype), upstream.to(log_sum.dtype) / max(labels.shape[0], 1)
    for_hidden, for_weight, for_bias = wanted
    grad_hidden = torch.zeros_like(hidden, dtype=log_sum.dtype) if for_hidden else hidden.new_empty(0)
    grad_weight = torch.empty_like(weight) if for_weight else weight.new_empty(0)
    grad_bias = torch.empty_like(bias) if for_bias else weight.new_empty(0)
    for start in range(0, weight.shape[0], WORDS):
        scores, matrix = _scores(state, weight, bias, start)
        share = scores.sub_(log_sum[:, None]).exp_()
        column, here = _place(labels, start, share.shape[1])
        share.scatter_(1, column, share.gather(1, column) - here[:, None].to(share.dtype))
        share.mul_(scale)
        rows = slice(start, start + share.shape[1])
        if for_bias:
            grad_bias[rows] = share.sum(0)
        share = share.to(dtype)  # after the scale, as in a plain backward pass: a loss scale keeps float16 in range
        if for_hidden:
            grad_hidden += share @ matrix
        if for_weight:
            grad_weight[rows] = share.t() @ state
    return [grad_hidden.to(hidden.dtype), grad_weight, grad_bias]


@_in_parts.register_fake
def _(hidden, weight, bias, labels, dtype):
    exact = torch.promote_types(dtype, torch.float32)
    return hidden.new_empty((), dtype=exact), hidden.new_empty(labels.shape, dtype=exact)


@_in_parts_backward.register_fake
def _(upstream, hidden, weight, bias, labels, log_sum, dtype, wanted):
    return [torch.empty_like(t) if want else weight.new_empty(0) for t, want in zip((hidden, weight, bias), wanted)]


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, labels, ctx.dtype = inputs
    ctx.save_for_backward(hidden, weight, bias, labels, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, upstream, _):
    wanted = list(ctx.needs_input_grad[:3])
    gradients = _in_parts_backward(upstream, *ctx.saved_tensors, ctx.dtype, wanted)
    return *(g if want else None for g, want in zip(gradients, wanted)), None, None


def _no_second_derivative(ctx, gradients):
    raise RuntimeError("linear_cross_entropy has no second derivative where it is computed in parts; "
                       "cross_entropy(linear(hidden, weight, bias), labels) has")


_in_parts.register_autograd(_backward, setup_context=_setup_context)
_in_parts_backward.register_autograd(_no_second_derivative)


def _scores(state, weight, bias, start):
    """The float32 scores (M, C) of the words from ``start`` on, and their part of the matrix (C, D)."""
    matrix = weight[start:start + WORDS].to(state.dtype)
    offset = None if bias is None else bias[start:start + WORDS].to(state.dtype)
    scores = F.linear(state, matrix, offset)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)), matrix


def _place(labels, start, words):
    """Column (M, 1) of each label in the chunk, any column where it is elsewhere; and (M,) whether it is here."""
    column = labels - start
    return column.clamp(0, words - 1)[:, None], (column >= 0) & (column < words)


def _product_dtype(hidden):
    """The type of a linear layer's product on this device, now. Autocast leaves float64 alone."""
    kind = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return hidden.dtype
    return torch.get_autocast_dtype(kind)


def _check(hidden, weight, bias, labels):
    shapes = [tuple(t.shape) for t in (hidden, weight, labels)]
    if [len(s) for s in shapes] != [2, 2, 1] or shapes[0][1] != shapes[1][1] or shapes[0][0] != shapes[2][0]:
        raise ValueError("linear_cross_entropy takes hidden (M, D), weight (V, D) and labels (M,), not "
                         f"{shapes[0]}, {shapes[1]} and {shapes[2]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"`bias` of linear_cross_entropy must be {(shapes[1][0],)}, not {tuple(bias.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"`labels` of linear_cross_entropy must be int64, not {labels.dtype}")
