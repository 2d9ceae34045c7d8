"""Puts a checked recipe together - data, model, evaluations, hooks - and runs it."""

import json
import time
from pathlib import Path

import torch

from xtoolkit.engine import checkpoint, distributed
from xtoolkit.engine.initial import load_initial
from xtoolkit.recipe.folder import check_folder, latest
from xtoolkit.engine.trainer import Trainer, pick_device
from xtoolkit.model import Model
from xtoolkit.recipe import Recipe
from xtoolkit.registry import DATASET_REGISTRY, TASK_REGISTRY, ConfigError

EVAL_BATCH = 64  # pictures a batch in evaluation


class Run:
    """A recipe with everything it names, built: ready to train or to evaluate.

    Args:
        recipe: checked, its files included.
        streams: False: the streams' data is not touched, there are no ``loaders``: enough to evaluate.

    Attributes:
        tokenizer: of all streams.
        model: on the CPU, weights as constructed.
        loaders: {stream: Loader}.
        eval_loaders: {evaluation: EvalLoader}.
        tasks: {evaluation: Task}.
        results: {evaluation: what its last run returned}.
    """

    def __init__(self, recipe: Recipe, streams: bool = True):
        from xtoolkit.data.loader import EvalLoader, Loader
        from xtoolkit.data.text import load_tokenizer

        self.recipe, self.results = recipe, {}
        self.tokenizer = load_tokenizer(recipe.tokenizer)
        self.model = Model(recipe)
        self.model.check_tokenizer(self.tokenizer)
        if recipe.train.threads is not None:
            torch.set_num_threads(recipe.train.threads)
        train, pin = recipe.train, pick_device(recipe.train.device).type == "cuda"
        self.loaders = {
            name: Loader(name, self._dataset(stream.data, ("streams", name, "data"), recipe.views(name), True),
                         stream.batch_size, train.seed, train.workers, distributed.rank(), distributed.world(),
                         train.max_bad, train.accumulate, pin)
            for name, stream in (recipe.streams if streams else {}).items()}
        self.tasks = {name: TASK_REGISTRY.build(block, recipe.source.where("evaluate", name), tokenizer=self.tokenizer,
                                                output=Path(train.output) / "evaluations" / name)
                      for name, block in recipe.evaluate.items()}
        self.eval_loaders = {
            name: EvalLoader(self._dataset(block["data"], ("evaluate", name, "data"), frozenset(), False),
                             block.get("batch_size") or EVAL_BATCH, train.workers, name, train.max_bad, pin)
            for name, block in recipe.evaluate.items()}

    def _dataset(self, block, place, views, train):
        sizes = self.model.sizes(DATASET_REGISTRY.get(block["type"]).FIELDS)
        return DATASET_REGISTRY.build(block, self.recipe.source.where(*place), tokenizer=self.tokenizer, views=views, train=train,
                                      **{"image_size": None, "patch_size": None} | sizes)

    def evaluator(self, name: str):
        """A callable that runs one evaluation and returns its metrics."""
        def evaluate():
            self.results[name] = self.tasks[name].evaluate(self.model, self.eval_loaders[name])
            return self.results[name]["metrics"]
        return evaluate

    def close(self) -> None:
        for loader in self.loaders.values():
            loader.close()


def train(recipe: Recipe, resume: bool = False, say=print, report=lambda run: None) -> dict:
    """Trains a recipe from its first step, or on from its newest checkpoint.

    Args:
        report: called with the Run once all is done, in the first process.

    Returns:
        {evaluation: what ``Task.evaluate`` returned} of the last step.
    """
    from xtoolkit.engine.hooks import default_hooks

    check_folder(recipe.train.output, resume)
    from xtoolkit.kernels.choice import describe  # only here: it imports Triton

    kernels = describe(pick_device(recipe.train.device).type)
    if distributed.is_main():
        say(f"kernels: {kernels}")
    run = Run(recipe)
    try:
        if not (resume and latest(recipe.train.output)):
            load_initial(run.model, recipe)
        trainer = Trainer(run.model, recipe, run.loaders, {name: run.evaluator(name) for name in run.tasks},
                          default_hooks(run.tokenizer), resume=resume, kernels=kernels)
        trainer.fit()
        if distributed.is_main():
            report(run)
    finally:
        run.close()
        distributed.leave()
    return run.results


def evaluate(recipe: Recipe, say=print, report=lambda run: None) -> dict:
    """Runs a recipe's evaluations on the newest checkpoint of its folder, in one process.

    Reads no training data: the report then shows no masked examples.
    """
    if distributed.world() > 1:
        raise ConfigError("--eval-only runs in one process: start it without torchrun")
    if not recipe.evaluate:
        raise ConfigError("--eval-only: the recipe has no `evaluate` block: there is nothing to run")
    path = latest(recipe.train.output)
    if path is None:
        raise ConfigError(f"--eval-only: {recipe.train.output} holds no checkpoint; train first, or name another folder "
                          "(train.output=...)")
    run = Run(recipe, streams=False)
    try:
        checkpoint.load(path, run.model)
        run.model.to(pick_device(recipe.train.device))
        say(f"evaluating {path}")
        for name in run.tasks:
            started = time.perf_counter()
            run.evaluator(name)()
            say(f"{name}: {time.perf_counter() - started:.1f} s")
        record = Path(recipe.train.output) / "results.json"
        known = json.loads(record.read_text()) if record.exists() else {"step": checkpoint.read_record(path)["step"]}
        known["evaluations"] = {name: result["metrics"] for name, result in run.results.items()}
        record.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        report(run)
    finally:
        run.close()
    return run.results
