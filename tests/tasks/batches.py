"""A loader over batches that are there already, and the ranks of two processes."""

from torch import distributed as dist


class Batches(list):
    """Has ``len`` and ``batches(numbers)``, as an EvalLoader has."""

    def batches(self, numbers):
        return (self[number] for number in numbers)


class Two:
    """The ranks of a group of two: the first takes one thing, the second the others."""

    def part(self, count):
        return range(1) if dist.get_rank() == 0 else range(1, count)

    def gather(self, mine):
        every = [None, None]
        dist.all_gather_object(every, mine)
        return every[0] + every[1]
