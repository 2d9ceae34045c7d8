"""A loader over batches that are there already."""


class Batches(list):
    """Has ``len`` and ``batches(numbers)``, as an EvalLoader has."""

    def batches(self, numbers):
        return (self[number] for number in numbers)
