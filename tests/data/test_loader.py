"""The loader: the same batches for any number of workers and ranks; bad samples replaced, counted, and fatal above a share."""

import torch
import pytest

from xtoolkit.data.loader import Loader
from xtoolkit.data.errors import BadDataError

STREAMS = ("text", "image", "pairs", "region")


def tensors(value, prefix=""):
    """Every tensor of a field by name."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if value is None or isinstance(value, (list, dict)):
        return {}
    return {k: t for name, v in vars(value).items() for k, t in tensors(v, f"{prefix}.{name}").items()}


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stream", STREAMS)
def test_batches_do_not_depend_on_workers_or_history(datasets, stream):
    here = Loader(stream, datasets[stream], 8, seed=1, workers=0)
    there = Loader(stream, datasets[stream], 8, seed=1, workers=2)
    batches = [here.at(v) for v in range(5)]
    assert all(same(there.at(v), batches[v]) for v in range(5))
    assert same(there.at(1), batches[1]) and same(there.at(2), batches[2]), "after a jump"
    there.close()
    other = Loader(stream, datasets[stream], 8, seed=2, workers=0)
    assert not same(other.at(0), batches[0])
    assert batches[0].size == 8
