"""Puts a checked recipe together - data, model, evaluations, hooks - and runs it."""

import time
from pathlib import Path

import torch

from xtoolkit.engine import checkpoint, distributed, figures, records
from xtoolkit.engine.initial import load_initial
from xtoolkit.engine.trainer import Trainer, pick_device
from xtoolkit.model import Model
from xtoolkit.recipe import Purpose, Recipe
from xtoolkit.recipe.folder import EVALUATIONS, check_folder, check_resumed, evaluated, is_complete, latest
from xtoolkit.registry import DATASET_REGISTRY, HOOK_REGISTRY, TASK_REGISTRY, ConfigError

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
        hooks: of the recipe, in its order.
    """

    def __init__(self, recipe: Recipe, streams: bool = True):
        from xtoolkit.data.loader import EvalLoader, Loader
        from xtoolkit.data.text import load_tokenizer

        self.recipe = recipe
        self.hooks = [HOOK_REGISTRY.build(block, recipe.source.where("hooks", name)) for name, block in recipe.hooks.items()]
        for name, hook in zip(recipe.hooks, self.hooks):
            hook.name = name
        self.tokenizer = load_tokenizer(recipe.tokenizer)
        self.model = Model(recipe)
        self.model.check_tokenizer(self.tokenizer)
        if recipe.train.threads is not None:
            torch.set_num_threads(recipe.train.threads)
        train, pin = recipe.train, pick_device(recipe.train.device).type == "cuda"
        self.loaders = {
            name: Loader(name, self._dataset(stream.data, ("streams", name, "data"), recipe.views(name), True),
                         stream.batch_size, train.seed, train.workers, distributed.rank(), distributed.world(),
                         train.max_bad, train.accumulate, pin, recipe.contrasts(name))
            for name, stream in (recipe.streams if streams else {}).items()}
        self.tasks = {
            name: TASK_REGISTRY.build(block, recipe.source.where("evaluate", name), tokenizer=self.tokenizer,
                                      output=Path(train.output) / EVALUATIONS / name)
            for name, block in recipe.evaluate.items()}
        self._eval_data = {name: self._dataset(block["data"], ("evaluate", name, "data"), recipe.task_views(name), False)
                           for name, block in recipe.evaluate.items()}
        self.eval_loaders = {name: EvalLoader(data, recipe.evaluate[name].get("batch_size") or EVAL_BATCH, train.workers,
                                              name, train.max_bad, pin)
                             for name, data in self._eval_data.items()}

    def _dataset(self, block, place, views, train):
        sizes = self.model.sizes(DATASET_REGISTRY.get(block["type"]).FIELDS)
        return DATASET_REGISTRY.build(block, self.recipe.source.where(*place), tokenizer=self.tokenizer, views=views, train=train,
                                      **{"image_size": None, "patch_size": None} | sizes)

    def evaluator(self, name: str, last: int):
        """A callable ``evaluate(step)`` that runs one evaluation, on every process, and returns its record.

        Args:
            last: the step whose figures are drawn, which takes a pass over the data for their pictures; at others there
                are none.
        """
        task, data, loader = self.tasks[name], self._eval_data[name], self.eval_loaders[name]

        def evaluate(step):
            result, drawn = task.evaluate(self.model, loader, distributed.Ranks()), []
            if step == last and distributed.is_main():
                drawn = figures.with_pictures(task.figures(result["examples"]), data, loader)
            return figures.record(task, result, drawn)

        return evaluate

    def close(self) -> None:
        for loader in self.loaders.values():
            loader.close()


def check_start(recipe: Recipe, purpose: Purpose) -> None:
    """What the machine and the run's folder say against a start, before anything is planned or built.

    Raises:
        ConfigError: every reason.
        CheckpointError: the checkpoint to go on from is damaged.
    """
    from xtoolkit.kernels.choice import use_triton  # only here: it imports Triton

    found, output = [], recipe.train.output
    if purpose == "evaluate":
        if not recipe.evaluate:
            found.append("--eval-only: the recipe has no `evaluate` block: there is nothing to run")
        if latest(output) is None:
            found.append(f"--eval-only: {output} holds no checkpoint; train first, or name another folder (train.output=...)")
    for check in (lambda: purpose == "evaluate" or check_folder(output, purpose == "resume"),
                  lambda: purpose == "resume" and check_resumed(output, recipe.config, recipe.train.steps),
                  lambda: use_triton(pick_device(recipe.train.device).type)):
        try:
            check()
        except ConfigError as error:
            found += error.problems
    if found:
        raise ConfigError(found)


def train(recipe: Recipe, resume: bool = False, say=print, report=lambda output, names: None) -> dict:
    """Trains a recipe from its first step, or on from its newest checkpoint. A run that is complete is left as it is.

    Args:
        report: called once all is done, in the first process, with the run's folder and the evaluations' names.

    Returns:
        {evaluation: {metric: number}}, the newest of each.
    """
    from xtoolkit.engine.hooks import default_hooks
    from xtoolkit.kernels.choice import describe  # only here: it imports Triton

    output, steps, names = recipe.train.output, recipe.train.steps, list(recipe.evaluate)
    check_start(recipe, "resume" if resume else "train")
    if is_complete(output, steps, names):
        if distributed.is_main():
            say(f"{output} is finished: all {steps} steps are taken and evaluated. --eval-only evaluates it again; more "
                "`train.steps` go on from here")
            report(output, names)
        return {name: record["metrics"] for name, record in evaluated(output).items() if name in names}
    kernels = describe(pick_device(recipe.train.device).type)
    if distributed.is_main():
        say(f"kernels: {kernels}")
    run = Run(recipe)
    try:
        if not (resume and latest(output)):
            load_initial(run.model, recipe)
        trainer = Trainer(run.model, recipe, run.loaders, {name: run.evaluator(name, steps) for name in run.tasks},
                          default_hooks(run.tokenizer, run.hooks), resume=resume, kernels=kernels)
        trainer.fit()
        if distributed.is_main():
            report(output, names)
    finally:
        run.close()
        distributed.leave()
    return trainer.evaluations


def evaluate(recipe: Recipe, say=print, report=lambda output, names: None) -> dict:
    """Runs a recipe's evaluations on the newest checkpoint of its folder. Reads no training data.

    What the folder holds of other evaluations stays.

    Args:
        report: as ``train``'s.

    Returns:
        {evaluation: {metric: number}}.
    """
    check_start(recipe, "evaluate")
    output, main, found = recipe.train.output, distributed.is_main(), {}
    path, device = latest(output), pick_device(recipe.train.device)
    distributed.join(device)
    run = Run(recipe, streams=False)
    try:
        step = checkpoint.load(path, run.model)["step"]
        run.model.to(device).eval()
        if main:
            say(f"evaluating {path}")
        for name in run.tasks:
            started = time.perf_counter()
            record = run.evaluator(name, step)(step)
            found[name] = record["metrics"]
            if main:
                records.write_evaluation(output, name, step, record)
                say(f"{name}: {time.perf_counter() - started:.1f} s")
        if main:
            records.write_results(output, {"step": step})
            report(output, list(found))
        distributed.barrier()
    finally:
        run.close()
        distributed.leave()
    return found
