"""A model, data and a recipe that train in milliseconds, with dropout and two streams that share an encoder."""

from types import SimpleNamespace

import torch
from torch import nn

from xtoolkit.batch import Batch
from xtoolkit.recipe.settings import Optim, ScheduleBlock, Train

WIDTH = 8


class Losses(dict):
    """What a model returns: losses, and beside them what is only logged."""

    def __init__(self, values, log):
        super().__init__(values)
        self.log = log


class ToyEncoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.dense, self.norm, self.dropout = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(dropout)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(4, WIDTH))
        self.gamma = nn.Parameter(torch.ones(WIDTH))
        self.updates = 0

    def forward(self, x):
        return self.dropout(self.norm(self.gamma * self.dense(x) + self.relative_position_bias_table[0]))

    def after_update(self):
        self.updates += 1


class ToyModel(nn.Module):
    """Stream `a` has losses one and two, stream `b` loss one and a bad one on demand; of loss one it knows what guessing is."""

    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"body": ToyEncoder(dropout), "side": ToyEncoder(0.0)})
        self.losses = nn.ModuleDict({name: nn.Linear(WIDTH, n) for name, n in (("one", 1), ("two", 2), ("idle", 2))})
        self.losses["two"].temperature = nn.Parameter(torch.ones(1, 1))
        self.poison = {}

    def after_update(self):
        for encoder in self.encoders.values():
            encoder.after_update()

    def forward(self, stream, batch, share=None, known=None):
        x = batch["x"]
        h = self.encoders["body"](x)
        one = (self.losses["one"](h).float()[:, 0] - x.sum(1)).square().mean()
        values, log = {"one": one}, {"one.size": h.detach().float().norm()}
        if known is not None:  # how often x summed to more than 0, beside what its mean costs
            none = torch.zeros(2, dtype=torch.long)
            seen = known.counts("one", none, none.index_add(0, (x.sum(1) > 0).long(), torch.ones(len(x), dtype=torch.long)))
            log |= {"one.guess": x.sum(1).square().mean(), "one.seen": seen[1].float()}
        if stream == "a":
            side = self.losses["two"](self.encoders["side"](x)) * self.losses["two"].temperature
            values["two"] = side.float().square().mean()
        if stream in self.poison:
            name, factor = self.poison[stream]
            values[name] = values[name] * factor
        return Losses(values, log)


class ToyData:
    """So many samples, of sources with such digests."""

    def __init__(self, samples=64, **digests):
        self.samples, self.digests = samples, digests

    def __len__(self):
        return self.samples


class ToyLoader:
    """Batches that are a function of (stream, visit) and, over ranks, slices of one global batch; faulty: each third has a bad sample."""

    def __init__(self, stream, rows, rank=0, world=1, parts=1, faulty=False):
        self.stream, self.rows, self.rank, self.world, self.parts, self.faulty = stream, rows, rank, world, parts, faulty
        self.wait_s, self.visits, self.dataset, self.bad = 0.0, [], ToyData(), 0

    def at(self, visit, part=0):
        if part == 0:
            self.visits.append(visit)
            self.bad += self.faulty and visit % 3 == 0
        generator = torch.Generator().manual_seed(1000 * ord(self.stream) + visit)
        x = torch.randn(self.rows, WIDTH, generator=generator)
        place = self.rank * self.parts + part
        return Batch(x=x.chunk(self.world * self.parts)[place])

    def report(self):
        return {"bad": {"odd": self.bad} if self.bad else {}}

    def counted(self):
        return {"bad": self.bad}

    def count_on(self, counted):
        self.bad = counted["bad"]

    def close(self):
        pass


def recipe(output, steps=10, schedule=None, optim=None, evaluate=None, rows=8, **train):
    streams = {"a": SimpleNamespace(batch_size=rows, losses={"one": 1.0, "two": 0.5}, data={}),
               "b": SimpleNamespace(batch_size=rows, losses={"one": 2.0}, data={})}
    schedule = schedule or ScheduleBlock(every_step=[["a", "b"]], every={"b": 2})
    optim = optim or Optim(lr=1e-2, warmup=3)
    train = Train(steps=steps, output=str(output), **{"device": "cpu", "precision": "fp32", "log_every": 1,
                                                      "checkpoint_every": 5, **train})
    config = {"encoders": {"body": {"dropout": 0.3}}, "schedule": {"every_step": [["a", "b"]]},
              "optim": {"lr": optim.lr}, "streams": {"a": {"batch_size": rows}},
              "train": {"steps": steps, "output": str(output), "seed": train.seed}}
    return SimpleNamespace(config=config, streams=streams, schedule=schedule, optim=optim, train=train,
                           evaluate=evaluate or {}, plugins=[],
                           source=SimpleNamespace(where=lambda *keys: ".".join(keys)))


def loaders(rows=8, rank=0, world=1, parts=1, faulty=False):
    return {name: ToyLoader(name, rows, rank, world, parts, faulty) for name in ("a", "b")}
