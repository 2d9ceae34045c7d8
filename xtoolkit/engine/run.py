"""Puts a checked recipe together - data, model, evaluations, hooks - and runs it."""

import time
from pathlib import Path

import torch

from xtoolkit.batch import Batch
from xtoolkit.engine import checkpoint, distributed, figures, records
from xtoolkit.engine.guessing import judge_run, sentences
from xtoolkit.engine.initial import load_initial
from xtoolkit.engine.start import check_start, placed
from xtoolkit.engine.device import autocast, pick_device
from xtoolkit.engine.trainer import Trainer
from xtoolkit.engine.writers import write_record
from xtoolkit.features import Features
from xtoolkit.model import Losses, Model
from xtoolkit.plan import Plan, make_plan
from xtoolkit.recipe import Recipe
from xtoolkit.recipe.folder import AGAIN, EVALUATIONS, best, chosen, evaluated, is_complete
from xtoolkit.recipe.settings import Whole
from xtoolkit.registry import DATASET_REGISTRY, HOOK_REGISTRY, TASK_REGISTRY, ConfigError, fits, nearest
from xtoolkit.tasks.base import evaluating, share

EVAL_BATCH = 64  # pictures a batch in evaluation


class Run:
    """A recipe with everything it names, built: to be looked at, trained and evaluated. ``xtoolkit.build`` makes one.

    Data are opened when they are first asked for. Nothing is written before ``train`` or ``evaluate(step=...)``.

    Args:
        recipe: checked.
        init: load the weights that the recipe starts from; without, they are as constructed, for a checkpoint to fill.

    Attributes:
        tokenizer: of all streams.
        model: on ``train.device``.
        tasks: {evaluation: Task}.
        hooks: of the recipe, in its order.

    Raises:
        ConfigError: what only a constructor can judge.
        WeightsError: weights to start from that do not fit.
    """

    def __init__(self, recipe: Recipe, init: bool = True):
        from xtoolkit.data.text import load_tokenizer

        self.recipe, self._datasets, self._loaders, device = recipe, {}, {}, pick_device(recipe.train.device)
        self.hooks = [HOOK_REGISTRY.build(block, recipe.source.where("hooks", name)) for name, block in recipe.hooks.items()]
        for name, hook in zip(recipe.hooks, self.hooks):
            hook.name = name
        self.tokenizer = load_tokenizer(recipe.tokenizer)
        if recipe.train.threads is not None:
            torch.set_num_threads(recipe.train.threads)
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, but not from the caller's generator
            self.model = Model(recipe)
            self.model.check_tokenizer(self.tokenizer)
            if init:
                load_initial(self.model, recipe, self.tokenizer)
        self.model.to(device)
        self.tasks = {
            name: TASK_REGISTRY.build(block, recipe.source.where("evaluate", name), tokenizer=self.tokenizer,
                                      output=Path(recipe.train.output) / EVALUATIONS / name)
            for name, block in recipe.evaluate.items()}

    def __repr__(self) -> str:
        recipe, count = self.recipe, sum(p.numel() for p in self.model.parameters())
        parts = lambda kinds: ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
        return (f"run in {recipe.train.output}: {count:,} parameters, {recipe.train.precision} on {self.device}\n"
                f"  encoders: {parts({n: type(e).__name__ for n, e in self.model.encoders.items()})}\n"
                f"  losses: {parts({n: type(loss).__name__ for n, loss in self.model.losses.items()})}\n"
                f"  streams: {parts({n: stream.data['type'] for n, stream in recipe.streams.items()})}\n"
                f"  evaluations: {parts({n: type(task).__name__ for n, task in self.tasks.items()})}")

    # ---- to be looked at --------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the model is, and where batches are put."""
        return next(self.model.parameters()).device

    def plan(self) -> Plan:
        """What a step does: ``print(run.plan())``."""
        return make_plan(self.recipe)

    def batch(self, stream: str, visit: int = 0) -> Batch:
        """The batch that training reads at a visit of a stream, whole, on the model's device.

        Raises:
            ConfigError: no such stream or visit, or its data are not there.
            BadDataError: its data cannot be used.
        """
        if not fits(visit, Whole):
            raise ConfigError(f"visit: {visit!r} is none; give an integer of at least 0")
        loader = self._loader(stream, workers=0, parts=1)
        return loader.at(visit).to(self.device)

    def losses(self, stream: str, batch: Batch) -> Losses:
        """{loss: 0-d tensor} of a stream, unweighted, in the recipe's precision; ``.log`` holds what is only shown."""
        self._known(stream)
        with autocast(self.device, self.recipe.train.precision):
            return self.model(stream, batch)

    def features(self, batch: Batch) -> Features:
        """What encoders say about a batch, each computed when it is read: ``run.features(batch)["text@mask_text"]``.

        They are computed in the recipe's precision, as losses read them; what is made of them is the reader's own affair.
        """
        return self.model.features(batch, lambda: autocast(self.device, self.recipe.train.precision))

    # ---- data -------------------------------------------------------------------------------------------------------
    @property
    def loaders(self) -> dict:
        """{stream: Loader}, all opened."""
        train = self.recipe.train
        for name in self.recipe.streams:
            if name not in self._loaders:
                ranks = distributed.Ranks() if distributed.world() > 1 else None
                self._loaders[name] = self._loader(name, train.workers, train.accumulate, ranks)
        return self._loaders

    def eval_loader(self, name: str):
        """The EvalLoader of an evaluation."""
        from xtoolkit.data.loader import EvalLoader

        train = self.recipe.train
        block = self.recipe.evaluate[name]
        size = block.get("batch_size") or EVAL_BATCH
        return EvalLoader(self._dataset("evaluate", name), size, train.workers, name, train.max_bad,
                          self.device.type == "cuda", shared=distributed.world() > 1, limit=block.get("limit"))

    def _loader(self, stream, workers, parts, ranks=None):
        from xtoolkit.data.loader import Loader

        self._known(stream)
        train = self.recipe.train
        return Loader(stream, self._dataset("streams", stream), self.recipe.streams[stream].batch_size, train.seed, workers,
                      distributed.rank(), distributed.world(), train.max_bad, parts, self.device.type == "cuda",
                      self.recipe.contrasts(stream), ranks)

    def _known(self, stream):
        if stream not in self.recipe.streams:
            idle = " with an active loss" if stream in self.recipe.idle else nearest(stream, self.recipe.streams)
            raise ConfigError(f"no stream `{stream}`{idle}")

    def _dataset(self, kind: str, name: str):
        """What a stream (kind ``streams``) or an evaluation (``evaluate``) reads, opened once."""
        if (kind, name) not in self._datasets:
            recipe = self.recipe
            block = recipe.streams[name].data if kind == "streams" else recipe.evaluate[name]["data"]
            cls, where = DATASET_REGISTRY.get(block["type"]), lambda *key: recipe.source.where(kind, name, "data", *key)
            if missing := [f"{where(*key.split('.'))}: {problem}" for key, problem in cls.missing(block)]:
                raise ConfigError(missing)
            sizes = {"image_size": None, "patch_size": None} | self.model.sizes(cls.FIELDS)
            self._datasets[kind, name] = recipe.dataset(kind, name, tokenizer=self.tokenizer, **sizes)
        return self._datasets[kind, name]

    # ---- to be run --------------------------------------------------------------------------------------------------
    def train(self, resume: bool = False, say=print, report=lambda output, names: None) -> dict:
        """Trains from the first step, or on from the newest checkpoint. A run that is complete is left as it is.

        Args:
            resume: go on from the newest checkpoint of ``train.output``, whatever the model holds now.
            report: called once all is done, in the first process, with the run's folder and the evaluations' names.

        Returns:
            {evaluation: {metric: number}}, the newest of each.
        """
        from xtoolkit.engine.hooks import default_hooks
        from xtoolkit.kernels.choice import describe  # only here: it imports Triton

        output, steps, names = self.recipe.train.output, self.recipe.train.steps, list(self.recipe.evaluate)
        if not self.recipe.streams:
            raise ConfigError("the recipe has no `streams`: it trains nothing; run.evaluate(step=0) evaluates it")
        check_start(self.recipe, "resume" if resume else "train")
        if is_complete(output, steps, names):
            if distributed.is_main():
                say(f"{output} is finished: all {steps} steps are taken and evaluated. {AGAIN} evaluates it "
                    "again; more `train.steps` go on from here")
                for line in sentences(judge_run(output, self.recipe)):
                    say(line)
                report(output, names)
            return {name: record["metrics"] for name, record in evaluated(output).items() if name in names}
        kernels = describe(self.device.type)
        if distributed.is_main():
            say(f"kernels: {kernels}")
        try:
            trainer = Trainer(self.model, self.recipe, self.loaders, {name: self.evaluator(name, steps) for name in names},
                              default_hooks(self.tokenizer, self.hooks), resume=resume, kernels=kernels)
            trainer.fit()
            if distributed.is_main():
                report(output, names)
        finally:
            self.close()
            distributed.leave()
        return trainer.evaluations

    def load_newest(self) -> int:
        """Puts the weights of the folder's newest checkpoint into the model, or of the best, where ``train.keep_best`` has kept
        one; returns the step that they are of."""
        path = chosen(self.recipe.train.output)
        if path is None:
            raise ConfigError(f"train.output: {self.recipe.train.output} holds no checkpoint: train first")
        return checkpoint.load(path, self.model)["step"]

    def evaluate(self, step: int | None = None, say=print, report=lambda output, names: None) -> dict:
        """Runs the evaluations on the model as it is, on all processes. Reads no training data.

        Args:
            step: that the weights are of: what is found is then kept in the run's folder, in the place of what the same
                evaluations found before. None: nothing is written.
            report: as ``train``'s; not called where nothing is written.

        Returns:
            {evaluation: {metric: number}}.

        Raises:
            NoFigures: a task gave what is no number, or found nothing to score; what the others found is kept.
        """
        output, found, wrong = self.recipe.train.output, {}, []
        keeps, kept = step is not None and distributed.is_main(), best(output)
        distributed.join(self.device)
        if keeps and not self.recipe.streams:
            write_record(output, self.recipe, self.tokenizer, step, self.device, None)
        try:
            for name in self.tasks:
                started = time.perf_counter()
                try:
                    record = self.evaluator(name, step)(step)
                except ConfigError as error:
                    wrong += error.problems
                    continue
                found[name] = record["metrics"]
                if kept is not None and kept["step"] == step:
                    record["selected"] = kept
                if keeps:
                    records.write_evaluation(output, name, step, record)
                if distributed.is_main():
                    say(f"{name}: {time.perf_counter() - started:.1f} s")
            if keeps:
                records.write_results(output, {})  # what training left there is of its own step
                report(output, list(found))
            distributed.barrier()
        finally:
            distributed.leave()
        if wrong:
            raise records.NoFigures(wrong)
        return found

    def evaluator(self, name: str, last: int | None):
        """A callable ``evaluate(step)`` that runs one evaluation, on every process, and returns its record.

        A task's ``evaluate`` always runs alike: in eval mode, without gradients, in the recipe's precision.

        Args:
            last: the step whose figures are drawn, for whose pictures each process looks through its part of the data; at
                others there are none.
        """
        task, data, loader = self.tasks[name], self._dataset("evaluate", name), self.eval_loader(name)
        limit, where = self.recipe.evaluate[name].get("limit"), self.recipe.source.where("evaluate", name)
        with placed(f"{where}: evaluation `{name}`"):
            task.check(self.model, data)

        def evaluate(step):
            of, ranks, drawn = f"evaluation `{name}`: {type(task).__name__}", distributed.Ranks(), []
            with evaluating(self.model), placed(f"{where}: evaluation `{name}`"):
                result = task.evaluate(self.model, loader, ranks)
                read = loader.judge(ranks)
            result |= {key: records.numbers(result[key], f"{of}: its {key}") for key in ("metrics", "floor")}
            if step is not None and step == last:
                made = figures.good(task.figures(result["examples"]), f"{of}.figures")
                drawn = figures.with_pictures(made, data, share(loader, ranks, "cpu"), ranks)
            bad = ", ".join(f"{count:,} {kind}" for kind, count in read["bad"].items())
            left_out = {"left_out": f"{sum(read['bad'].values()):,} of {read['read']:,} samples left out: {bad}"} if bad else {}
            return figures.record(task, result, drawn, of) | ({"limit": limit} if limit else {}) | left_out

        return evaluate

    def close(self) -> None:
        """Ends the workers of the loaders."""
        for loader in self._loaders.values():
            loader.close()
