"""The two fused operations as the benchmark sees them: inputs, bytes that must move, ways to compute, the truth."""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PASSES = ("forward", "backward", "both")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KERNEL, EAGER, RELEASED = "kernel", "eager reference", "released code's way"
COMPILED, REDUCED = "torch.compile", "torch.compile reduce-overhead"


@dataclass(frozen=True)
class Case:
    """One size and type. ``some``: box_loss gets a ``valid`` in which some boxes do not count."""

    size: tuple[int, ...]
    dtype: str = "float32"
    some: bool = False

    def __str__(self) -> str:
        return " x ".join(f"{s:,}" for s in self.size) + (", some valid" if self.some else "")


@dataclass(frozen=True)
class Inputs:
    """Arguments of the operation, of which the first gets a gradient, and the gradients of its results."""

    args: tuple[Tensor | None, ...]
    upstream: tuple[Tensor, ...]


@dataclass(frozen=True)
class Way:
    """One way to compute an operation: a tuple of losses from its arguments. ``syncs``: it asks the host something."""

    run: Callable[..., tuple[Tensor, ...]]
    syncs: bool = False


class Operation(ABC):
    """What is measured of an operation."""

    name: str
    upstream: tuple[float, ...]

    def __init__(self):
        self.module = importlib.import_module(f"xtoolkit.kernels.{self.name}")

    @abstractmethod
    def arguments(self, case: Case, generator: torch.Generator) -> tuple[Tensor | None, ...]:
        """Random arguments of a case, on the generator's device."""

    @abstractmethod
    def truth(self, *args: Tensor | None) -> tuple[Tensor, ...]:
        """The losses of float64 arguments, by code that is not the toolkit's."""

    @abstractmethod
    def peers(self, case: Case) -> dict[str, Way]:
        """What others wrote, by name."""

    @abstractmethod
    def floor_bytes(self, case: Case) -> dict[str, int]:
        """Bytes that each pass must read and write if nothing is read twice within a pass; masks are left out."""

    @abstractmethod
    def averaged(self, case: Case) -> int:
        """How many terms the mean is over, which is what a gradient is divided by."""

    def inputs(self, case: Case, device: str, seed: int = 0) -> Inputs:
        """Fresh arguments, and gradients of the losses that are not one and differ.

        For float16 these are scaled by a power of two, as training in float16 scales its loss: a mean over many terms
        has gradients that float16 cannot hold, and the error would measure that.
        """
        args = self.arguments(case, torch.Generator(device).manual_seed(seed))
        args[0].requires_grad_()
        # Not beyond 2^15, or the scaled gradient of a loss that is itself float16 would overflow.
        scale = 2.0 ** min(round(math.log2(self.averaged(case))), 15) if case.dtype == "float16" else 1.0
        return Inputs(args, tuple(torch.tensor(u * scale, device=device) for u in self.upstream))

    def ways(self, case: Case, kernel: bool, compiled: tuple[str, ...]) -> dict[str, Way]:
        """Every way to compute a case: the kernel and the reference first, then what others wrote or torch compiles."""
        ways = {KERNEL: Way(self._losses(self.module.fused))} if kernel else {}
        ways[EAGER] = Way(self._losses(self.module.reference))
        ways.update(self.peers(case))
        if compiled:
            torch._dynamo.reset()
        return ways | {name: Way(self._compiled(name)) for name in compiled}

    def _compiled(self, name: str) -> Callable[..., tuple[Tensor, ...]]:
        mode = {COMPILED: "default", REDUCED: "reduce-overhead"}[name]
        run = torch.compile(self._losses(self.module.reference), mode=mode, fullgraph=True, dynamic=False)
        if name == COMPILED:
            return run

        def step(*args):
            # Forward passes whose backward never runs would otherwise count as one ever longer step.
            torch.compiler.cudagraph_mark_step_begin()
            return run(*args)
        return step

    @staticmethod
    def _losses(operation: Callable) -> Callable[..., tuple[Tensor, ...]]:
        def losses(*args):
            found = operation(*args)
            return found if isinstance(found, tuple) else (found,)
        return losses


class BoxLoss(Operation):
    """box_loss: boxes (N, 4), cx, cy, w, h."""

    name = "box_loss"
    upstream = (0.7, 1.3)
    PAIRWISE_LIMIT = 4096

    def arguments(self, case, generator):
        """Boxes inside the picture, with sides from 0.1 to 0.5, no two of whose edges nearly coincide.

        A float32 rounding may swap two edges that nearly coincide, and a swap changes the gradient by as much as the
        gradient itself: at a million boxes the error would measure luck. Edges that coincide exactly may occur.
        """
        (n,), dtype, device = case.size, DTYPES[case.dtype], generator.device

        def boxes(count):
            u = torch.rand(count, 8, generator=generator, device=device)
            centre, sides = 0.3 + 0.4 * u[:, :4], 0.1 + 0.4 * u[:, 4:]
            return tuple(torch.cat([centre[:, i:i + 2], sides[:, i:i + 2]], 1).to(dtype) for i in (0, 2))

        pred, target = boxes(n)
        while (close := _nearly_coincide(pred, target).nonzero()[:, 0]).numel():
            pred[close], target[close] = boxes(close.numel())
        valid = torch.rand(n, generator=generator, device=device) < 0.7 if case.some else None
        if case.some:
            valid[:1] = True
        return pred, target, valid

    def truth(self, pred, target, valid):
        if valid is not None:
            pred, target = pred[valid], target[valid]
        return torchvision_giou(pred, target)

    def peers(self, case):
        ways = {} if case.size[0] > self.PAIRWISE_LIMIT else {RELEASED: Way(released_boxes, syncs=True)}
        return ways | {"torchvision GIoU + L1": Way(torchvision_giou, syncs=True),
                       "fvcore GIoU + L1": Way(fvcore_giou, syncs=True)}

    def averaged(self, case):
        return case.size[0]

    def floor_bytes(self, case):
        box = 4 * DTYPES[case.dtype].itemsize
        forward, backward = 2 * box * case.size[0], 3 * box * case.size[0]
        return {"forward": forward, "backward": backward, "both": forward + backward}


class MaskedMSE(Operation):
    """masked_mse: tokens (B, N, D), of which 75 in 196 are masked, behind a summary token as the losses see them."""

    name = "masked_mse"
    upstream = (1.7,)

    def arguments(self, case, generator):
        (b, n, d), device = case.size, generator.device
        pred, target = (torch.randn(b, n + 1, d, generator=generator, device=device).to(DTYPES[case.dtype])[:, 1:]
                        for _ in range(2))
        order = torch.rand(b, n, generator=generator, device=device).argsort(1)
        return pred, target, order < self.masked(n)

    @staticmethod
    def masked(n: int) -> int:
        """Masked tokens of a picture of n: at least one."""
        return max(round(n * 75 / 196), 1)

    def truth(self, pred, target, mask):
        return gathered_mse(pred, target, mask)

    def peers(self, case):
        return {RELEASED: Way(gathered_mse, syncs=True)}

    def averaged(self, case):
        return case.size[0] * self.masked(case.size[1]) * case.size[2]

    def floor_bytes(self, case):
        (b, n, d), element = case.size, DTYPES[case.dtype].itemsize
        rows = 2 * b * self.masked(n) * d * element
        return {"forward": rows, "backward": rows + b * n * d * element, "both": 2 * rows + b * n * d * element}


def corners(box: Tensor) -> Tensor:
    """(N, 4) cx, cy, w, h as x1, y1, x2, y2."""
    centre, half = box[:, :2], box[:, 2:] / 2
    return torch.cat([centre - half, centre + half], 1)


def _nearly_coincide(pred: Tensor, target: Tensor, margin: float = 1e-5) -> Tensor:
    """(N,) bool, True where an edge of one box is within ``margin`` of one of the other's along the same axis."""
    a, b = (corners(box.double()).view(-1, 2, 2) for box in (pred, target))
    gap = (a[:, :, None] - b[:, None]).abs()  # (N, low or high of a, low or high of b, axis)
    return ((gap > 0) & (gap < margin)).flatten(1).any(1)


def _l1(pred: Tensor, target: Tensor) -> Tensor:
    return 4 * F.l1_loss(pred, target)


def released_boxes(pred: Tensor, target: Tensor, valid: None = None) -> tuple[Tensor, Tensor]:
    """What the release of X-FM does: all N x N pairs for their diagonal, after asking the host twice for bad boxes."""
    from torchvision.ops import generalized_box_iou
    a, b = corners(pred), corners(target)
    if any((box[:, 2:] < box[:, :2]).any() for box in (a, b)):
        giou = torch.zeros(pred.shape[0], device=pred.device)
    else:
        giou = 1 - torch.diag(generalized_box_iou(a, b))
    return _l1(pred, target), giou.sum() / pred.shape[0]


def torchvision_giou(pred: Tensor, target: Tensor, valid: None = None) -> tuple[Tensor, Tensor]:
    """torchvision's GIoU loss and the L1 loss beside it."""
    from torchvision.ops import generalized_box_iou_loss
    return _l1(pred, target), generalized_box_iou_loss(corners(pred), corners(target), reduction="mean", eps=1e-7)


def fvcore_giou(pred: Tensor, target: Tensor, valid: None = None) -> tuple[Tensor, Tensor]:
    """fvcore's GIoU loss and the L1 loss beside it."""
    from fvcore.nn import giou_loss
    return _l1(pred, target), giou_loss(corners(pred), corners(target), reduction="mean", eps=1e-7)


def gathered_mse(pred: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor]:
    """What the release does: the masked tokens, gathered by a boolean index."""
    return (F.mse_loss(pred[mask], target[mask]),)


OPERATIONS = {op.name: op for op in (BoxLoss, MaskedMSE)}
