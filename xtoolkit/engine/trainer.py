"""The training loop: a step of grouped updates, and the hooks called around it."""

import hashlib
import time

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from xtoolkit.engine import checkpoint, distributed
from xtoolkit.engine.device import autocast, pick_device
from xtoolkit.engine.finite import not_finite
from xtoolkit.engine.environment import git_hash, versions
from xtoolkit.engine.guessing import Known
from xtoolkit.engine.optim import build_optimizer, owner_of, set_lr
from xtoolkit.engine.records import numbers
from xtoolkit.recipe.folder import RESUME, check_folder, check_resumed, latest, refusal
from xtoolkit.recipe.plugins import record as record_of
from xtoolkit.engine.schedule import Schedule
from xtoolkit.engine.start import placed
from xtoolkit.engine.storage import check_room, checkpoint_bytes, inside, stopped, sweep
from xtoolkit.hooks.base import named, state_of
from xtoolkit.registry import ConfigError


class Stopped(Exception):
    """A signal asked the run to end; it has written a checkpoint. ``code`` is the exit status that shells expect."""

    def __init__(self, signum: int, step: int):
        self.code = 128 + signum
        super().__init__(f"stopped after step {step}; go on with {RESUME}")


class Trainer:
    """Runs a recipe's schedule over its streams.

    With ``accumulate`` above 1 a rank's slice of a batch is fetched, run and differentiated in that many parts, and
    their losses are averaged: exact for losses that are means over as many rows in each part; a contrastive loss sees
    the negatives of its own part only, as it would on a smaller device.

    A run is a pure function of the recipe and the step: batches come by visit, and torch's generator is seeded from
    (seed, step, stream, rank, part) before each forward pass, so a resumed run needs nothing but weights and step.

    Args:
        model: ``model(stream, batch)`` gives ``{loss: 0-d tensor}`` with ``.log``; has ``encoders`` and ``losses``.
        recipe: see ``xtoolkit.recipe``.
        loaders: {stream: loader}, built for this rank and with ``parts=accumulate``.
        evaluators: {name: evaluate}, for the Evaluate hook: ``evaluate(step)``, called on every process, returns the record of
            an evaluation (``figures.record``), whose ``metrics`` are {name: number or None}.
        hooks: in the order in which they are called; None: no hooks. ``hooks.default_hooks`` makes those of a full run.
        output: the run's folder; None: ``recipe.train.output``.
        resume: go on from the newest checkpoint of ``output``; without one, start at step 0.
        kernels: which kernels are in use (``kernels.choice.describe``), for the record.

    Attributes:
        done: steps taken.
        values: numbers of the last step as tensors on the device: ``loss``, ``<stream>.<loss>``, ``<stream>.<logged>``,
            ``<stream>.<loss>.guess`` of a stream's first batch after a log step, ``norm``, and at log steps ``norm.<encoder>``
            (before clipping; of several groups the largest).
        resumed_from: the checkpoint that the run went on from, or None.
        resumed_steps: what ``train.steps`` was when that was written; ``resumed_plugins``: its record of plugins.
        latest: the last numbers that the log wrote (``log``).
        counts: what guesses have counted (``guessing.Known``), kept in checkpoints.
        evaluations: {name: {metric: number}}, the newest of each.
        seconds: time spent in steps, earlier parts of a resumed run included.
        computed: processor time of this thread in the steps of this start.
        lr: the rate of the last step, before ``lr_mult``.
        stop: number of the signal that asked the run to end; 0: none did.

    Raises:
        ConfigError: the folder is in use, a stream has no loader, or the recipe differs from the one to be resumed.
    """

    def __init__(self, model, recipe, loaders, evaluators=None, hooks=None, output=None, resume: bool = False,
                 kernels: str | None = None):
        self.recipe, self.train, self.loaders = recipe, recipe.train, loaders
        self.evaluators, self.hooks = evaluators or {}, list(hooks or [])
        self.output, self.kernels = output or self.train.output, kernels
        self.resume, self.resumed_from, self.resumed_steps, self.resumed_plugins = resume, None, None, {}
        self.device = pick_device(self.train.device)
        distributed.join(self.device)
        self.ranks = distributed.Ranks()
        check_folder(self.output, resume)
        if lacking := [f"streams.{name}: no loader was given" for name in recipe.streams if name not in loaders]:
            raise ConfigError(lacking)
        if self.train.threads is not None:
            torch.set_num_threads(self.train.threads)
        self.schedule = Schedule(recipe.schedule, self.train.seed, recipe.streams, self.train.steps)
        self.model = model.to(self.device).train()
        self.optimizer = build_optimizer(model, recipe.optim)
        self._named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.done, self.seconds, self.computed, self.lr, self.stop = 0, 0.0, 0.0, 0.0, 0
        self.values, self.latest, self.evaluations, self._called = {}, {}, {}, None  # no hook is being called
        self.counts = {}
        # On the device, 1 once anything was not finite: the optimizer reads it there and leaves updates out from then.
        self.optimizer.found_inf = self._failed = torch.zeros((), device=self.device)
        self._unchecked = []
        if resume:
            self._load()
        check_room(self.output, checkpoint_bytes(self.model, self.optimizer), self.train, self.done)
        # No process may write into the folder before all have looked at it.
        distributed.barrier()

    # ---- the loop ---------------------------------------------------------------------------------------------------
    def fit(self) -> None:
        """Takes the steps that are left, with hooks around them.

        Raises:
            NonFiniteError: a loss or a gradient was none.
            StorageError: the disk is full, or refuses.
            Stopped: a signal came, and a checkpoint is written.
        """
        found = inside(self.output)
        try:
            try:
                self._call("before_train")
                while self.done < self.train.steps:
                    self._call("before_step")
                    self.step()
                    self._call("after_step")
                self._call("after_train")
            finally:
                self._call("close")
        except OSError as error:  # also of a file that cannot be closed, as its last lines cannot be written
            raise stopped(error, self.output) from error
        finally:
            if self.done == 0 and not self.resume:
                sweep(self.output, found)

    def step(self) -> dict[str, torch.Tensor]:
        """One step: every group of the schedule, one update each. Returns ``values``."""
        started, computed, step, self.values = time.perf_counter(), time.thread_time(), self.done, {}
        self.lr = set_lr(self.optimizer, step, self.recipe.optim, self.train.steps)
        for group in self.schedule.groups(step):
            self.optimizer.zero_grad(set_to_none=True)
            total = sum(self._backward(stream, step) for stream in group)
            self._update(group, total, step)
        self.done += 1
        if self.device.type == "cpu" or self.is_log_step:
            self.check_finite()
        self.seconds += time.perf_counter() - started
        self.computed += time.thread_time() - computed
        return self.values

    def _backward(self, stream, step):
        """Gradients of one stream's weighted sum of losses, added to what is there. Returns the sum."""
        spec, parts, whole = self.recipe.streams[stream], self.train.accumulate, 0
        visit = self.schedule.visit(stream, step)
        batches = [self.loaders[stream].at(visit, part) for part in range(parts)]
        # Guesses are asked of the first batch since a log step, which depends on the step alone: a resumed run asks alike.
        known = Known(stream, self.counts) if visit == self.schedule.visit(stream, step - step % self.train.log_every) else None
        where = self.recipe.source.where("streams", stream)
        shares = distributed.shares(batches) if parts * self.ranks.world > 1 else lambda part: None
        for part, batch in enumerate(batches):
            torch.manual_seed(_seed(self.train.seed, step, stream, self.ranks.rank, part))
            with autocast(self.device, self.train.precision), placed(f"{where}: stream `{stream}`"):
                losses = self.model(stream, batch.to(self.device, non_blocking=True), share=shares(part), known=known)
            total = sum(spec.losses[name] * value.float() for name, value in losses.items()) / parts
            total.backward()
            whole = whole + total.detach()
            self._note(stream, step, losses, parts)
        return whole

    def _note(self, stream, step, losses, parts):
        self._unchecked += [(step, f"stream `{stream}`: loss `{name}`", value.detach()) for name, value in losses.items()]
        for name, value in (losses | losses.log).items():
            key, value = f"{stream}.{name}", value.detach() / parts
            self.values[key] = self.values[key] + value if key in self.values else value

    def _update(self, group, total, step):
        """Reduces, clips and applies the gradients of a group; nothing here waits for the device."""
        if self.ranks.world > 1:
            distributed.reduce_gradients([p for _, p in self._named])
            total = distributed.mean(total)
        self._call("after_backward")
        used = [(name, p) for name, p in self._named if p.grad is not None]
        many = self.device.type == "cuda"
        norm = get_total_norm([p.grad for _, p in used], foreach=many)
        self._unchecked.append((step, f"streams {group}: the gradient norm", norm))
        self._failed.copy_(torch.maximum(self._failed, 1 - (torch.isfinite(norm) & torch.isfinite(total)).float()))
        self.values["loss"] = self.values["loss"] + total if "loss" in self.values else total
        self._keep_largest("norm", norm)
        if self.is_log_step_after(step + 1):
            for owner, gradients in _by_encoder(used, self.model.encoders).items():
                self._keep_largest(f"norm.{owner}", get_total_norm(gradients, foreach=many))
        if self.recipe.optim.clip is not None:
            # A norm that is not finite would spread to every gradient, and hide which of them began it.
            finite = torch.where(torch.isfinite(norm), norm, torch.zeros_like(norm))
            clip_grads_with_norm_([p for _, p in used], self.recipe.optim.clip, finite, foreach=many)
        self.optimizer.step()
        self.model.after_update()

    def _keep_largest(self, key, norm):
        self.values[key] = torch.maximum(self.values[key], norm) if key in self.values else norm

    # ---- what hooks ask for -----------------------------------------------------------------------------------------
    @property
    def is_log_step(self) -> bool:
        """Whether the numbers of the step just taken are due for the log."""
        return self.is_log_step_after(self.done)

    def is_log_step_after(self, done: int) -> bool:
        return done % self.train.log_every == 0 or done == self.train.steps

    def write(self, values: dict) -> None:
        """Hands numbers of this step, by name, to every hook that keeps a record. ConfigError for what is none, with its hook."""
        self._call("write", self._numbers(values))

    def log(self, values: dict) -> None:
        """``write`` for the numbers of a log step themselves: they are ``latest`` from now on."""
        self.latest = self._numbers(values)
        self._call("write", self.latest)

    def _numbers(self, values):
        of = named(self._called) if self._called is not None else "Trainer.write"
        return {"step": self.done} | numbers(values, of) | {"step": self.done}

    def check_finite(self) -> None:
        """Asks the device whether all went well since the last question.

        Raises:
            NonFiniteError: naming the first step, stream and loss that did not.
        """
        entries, self._unchecked = self._unchecked, []
        if bool(self._failed):
            raise not_finite(entries, self._named, self.done, self.output)

    def samples(self, stream: str) -> int:
        """Rows of a stream seen so far, over all ranks."""
        return self.schedule.visit(stream, self.done) * self.recipe.streams[stream].batch_size

    def save(self) -> None:
        """Writes a checkpoint of this step (the first process does; the others wait)."""
        self.check_finite()
        if distributed.is_main():
            record = {"config": self.recipe.config, "versions": versions(), "git": git_hash(),
                      "plugins": record_of(self.recipe.plugins), "data": self.data_manifest(),
                      "seconds": self.seconds, "kernels": self.kernels,
                      "hooks": {hook.name: state_of(hook) for hook in self.hooks if hook.name is not None},
                      "counted": {name: loader.counted() for name, loader in self.loaders.items()}}
            checkpoint.save(self.output, self.done, self.model, self.optimizer, record, self.train.keep, self.counts)
        distributed.barrier()

    def sizes(self) -> dict[str, int]:
        """{stream: its number of samples}."""
        return {name: len(loader.dataset) for name, loader in self.loaders.items()}

    def data_manifest(self) -> dict:
        """{stream: samples, and the digest of each source}: a visit means the same batch only while these stay."""
        return {name: {"samples": len(loader.dataset), "digests": loader.dataset.digests}
                for name, loader in self.loaders.items()}

    # ---- starting ---------------------------------------------------------------------------------------------------
    def _call(self, moment, *arguments):
        outer = self._called
        for self._called in self.hooks:
            getattr(self._called, moment)(self, *arguments)
        self._called = outer

    def _load(self):
        record, path = check_resumed(self.output, self.recipe.config, self.train.steps), latest(self.output)
        if record is None:
            return
        had = record["data"]
        found = [line for name, has in self.data_manifest().items() if name in had for line in _changed(name, had[name], has)]
        if found:
            raise ConfigError(refusal(path, found))
        checkpoint.load(path, self.model, self.optimizer, self.counts)
        self.done, self.seconds, self.resumed_from = record["step"], record["seconds"], path
        self.resumed_steps, self.resumed_plugins = record["config"]["train"]["steps"], record["plugins"]
        for hook in self.hooks:
            if hook.name in record["hooks"]:
                hook.load_state_dict(record["hooks"][hook.name])
        # What the first process counted.
        for name, counted in record["counted"].items() if distributed.is_main() else ():
            if name in self.loaders:
                self.loaders[name].count_on(counted)


def _changed(stream, had, has):
    """What has changed of a stream's data since a checkpoint, a line each."""
    if had["samples"] != has["samples"]:
        return [f"data of stream `{stream}`: had {had['samples']} samples, has {has['samples']}"]
    return [f"data of stream `{stream}`: what source `{name}` holds has changed, at the same number of samples"
            for name, digest in had["digests"].items() if None not in (digest, now := has["digests"].get(name)) and digest != now]


def _seed(*parts):
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1


def _by_encoder(used, encoders):
    gradients: dict[str, list] = {}
    for name, parameter in used:
        owner = owner_of(name)
        if name.startswith("encoders.") and owner in encoders:
            gradients.setdefault(owner, []).append(parameter.grad)
    return gradients
