"""The few collectives that replicated training needs: joining, averaging gradients once, agreeing, gathering."""

import itertools
import os

import torch
import torch.distributed as dist

# Bytes of gradients reduced in one call: large enough to hide latency, small enough to need no second copy of a model.
BUCKET = 32 * 2**20


def join(device: torch.device) -> None:
    """Joins the processes that ``torchrun`` started; alone it does nothing.

    On CUDA both backends are up: gradients go by NCCL, questions between hosts by gloo, so that none stops the device.
    """
    if world() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def leave() -> None:
    """Leaves the group, if there is one; the end of a tool calls it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, as ``torchrun`` gave it: known before the processes have joined."""
    return _given("RANK", 0)


def local_rank() -> int:
    """The number of this process on its machine, which is that of its device."""
    return _given("LOCAL_RANK", 0)


def world() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return _given("WORLD_SIZE", 1)


def _given(name, alone):
    return int(os.environ[name]) if name in os.environ else alone


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


class Ranks:
    """How an evaluation is shared by the processes: each takes a part, and all get what all have gathered.

    Attributes:
        rank: the number of this process.
        world: how many there are; 1 without ``torchrun``.
    """

    def __init__(self):
        self.rank, self.world = rank(), world()

    def part(self, n: int) -> range:
        """This process's numbers below ``n``: contiguous, in the order of the ranks, sizes that differ by one at most."""
        return range(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def agree(self, number: int) -> int:
        """The largest of the integers that the processes bring."""
        return agree(number)

    def gather(self, items: list) -> list:
        """The lists of all processes joined in the order of the ranks, on every process; it waits for the slowest.

        Args:
            items: what pickle takes: numbers, text, plain containers, tensors on the CPU.
        """
        if self.world == 1:
            return items
        parts: list = [None] * self.world
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def mean(self, gradients: dict) -> dict:
        """{row: {parameter: gradient}}, averaged over the processes, on each; where one has none it counts as 0.

        Args:
            gradients: of tensors on the device, for parameters of one shape on all.
        """
        if self.world == 1:
            return gradients
        sizes = {(row, name): g.shape for row, found in gradients.items() for name, g in found.items()}
        everyones = dict(sorted(self.gather(list(sizes.items()))))
        device = next((g.device for found in gradients.values() for g in found.values()), None)
        made: dict = {row: {} for row in gradients}
        for (row, name), shape in everyones.items():
            own = gradients[row][name] if name in gradients[row] else torch.zeros(shape, device=device)
            made[row][name] = mean(own)
        return made


def barrier() -> None:
    """Waits for all processes, on the host."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))


def agree(number: int) -> int:
    """The largest of the integers that the processes bring (a signal's number, a flag)."""
    if world() == 1:
        return number
    largest = torch.tensor([number])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over processes of a tensor of equal shape on each."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over processes of a tensor of equal shape on each."""
    return total(values) / world()


def shares(batches: list):
    """How much a part's mean counts for the mean over all parts and ranks: ``shares(batches)(part)(count)``.

    Counted once, for all parts, on the host, where the batches are: the n-th call of each part is about the same mean.

    Args:
        batches: of all parts of this rank.
    """
    counted: list = []

    def of(part: int):
        calls = itertools.count()

        def share(count) -> float:
            if (call := next(calls)) == len(counted):
                counts = [float(count(batch)) for batch in batches]
                counted.append((counts, float(total(torch.tensor(sum(counts), dtype=torch.float64)))))
            counts, whole = counted[call]
            return counts[part] * len(batches) * world() / whole if whole else 1.0

        return share

    return of


def reduce_gradients(parameters: list) -> None:
    """Averages gradients over processes, in buckets of one type; called once after the last backward of a group.

    A parameter that got a gradient on any process gets one on all: where a process did not use it (a batch without
    boxes), it contributes zeros. The processes agree on which those are on the host, so a device is never asked.

    Args:
        parameters: the trainable ones, in the same order on all processes.
    """
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    for parameter, wanted in zip(parameters, used.tolist()):
        if wanted and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    by_type: dict = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        for bucket in _buckets(gradients):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            flat /= world()
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket])):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients):
    bucket, size = [], 0
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
