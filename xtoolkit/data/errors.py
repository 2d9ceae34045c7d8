"""What can be wrong with data: one sample (skipped and counted), or so much of it that a run must stop."""


DEAD = "dead shard"  # the kind of a sample whose shard cannot be fetched


class BadSample(Exception):
    """A sample that cannot be used; it is replaced by another and counted under ``kind``.

    Attributes:
        kind: a few words that are equal for equal troubles: ``corrupt image``, ``broken json``, ``empty caption``.
        path: the shard.
        detail: which sample, and what exactly was wrong.
    """

    def __init__(self, kind: str, path: str, detail: str):
        super().__init__(f"{path}: {kind}: {detail}")
        self.kind, self.path, self.detail = kind, path, detail


class DeadShard(BadSample):
    """A remote shard that could not be fetched, however often it was tried: whichever sample of it is read is bad."""

    def __init__(self, path: str, detail: str):
        super().__init__(DEAD, path, detail)


class BadDataError(RuntimeError):
    """More of a stream than `train.max_bad` allows is unreadable, or a batch of it cannot be learned from."""
