"""Every mistake of a configuration, from signatures and wiring alone, each with file, line and the word that was meant."""

import math

from xtoolkit.graph import Need, Ref
from xtoolkit.recipe.config import Config, unknown_keys
from xtoolkit.recipe.files import Files
from xtoolkit.recipe.problems import Problems
from xtoolkit.recipe.recipe import Purpose, Recipe, Stream, reached
from xtoolkit.recipe.settings import (
    Init, Optim, ScheduleBlock, Train, best_by, best_problem, init_problems, optim_problems, schedule_problems,
)
from xtoolkit.recipe.wiring import Wiring, misread
from xtoolkit.registry import (
    DATASET_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, ConfigError, arguments, check, fits, nearest,
    not_numbers, schema,
)

TOP = ("tokenizer", "plugins", "init", "encoders", "losses", "stop_gradient", "streams", "schedule", "evaluate", "hooks",
       "optim", "train")
STREAM = ("batch_size", "losses", "data")


class FilesMissing(ConfigError):
    """Among the mistakes are data, weights or a tokenizer that are not there."""


class Checker:
    """Collects the problems of one configuration.

    Args:
        lacking: see Problems.
    """

    def __init__(self, config: Config, missing_files: bool, purpose: Purpose = "train", lacking: list[str] | None = None):
        self.config, self.data, self.where = config, config.data, config.where
        self.missing_files, self.purpose, self.found = missing_files, purpose, Problems(config, lacking)
        self.wiring, self.say = Wiring(self.found), self.found.say
        self.datasets: list = []  # (place, class, block) of every data block without mistakes
        self.unknown: set[str] = set()  # evaluations of no known type
        # Without streams there are evaluations alone, of the weights that `init` names.
        self.trains = bool(self.data.get("streams") or not self.data.get("evaluate"))

    def recipe(self) -> Recipe:
        """The recipe, built block by block. Raises ConfigError with every problem found."""
        must = ("encoders", "train", *(("losses", "streams", "optim") if self.trains else ()))
        kinds = {"schedule": ScheduleBlock, "optim": Optim, "train": Train, "init": Init}
        kinds = {key: kind for key, kind in kinds.items() if key in {*must, "schedule"} | self.data.keys()}
        keys = [*self.data, *(path[0] for path in self.config.absent if len(path) == 1)]
        self.found.problems += unknown_keys(keys, TOP, self.where, "the recipe", kinds) + self.config.idle()
        self.found.problems += not_numbers(self.data, self.where)
        self.data |= {key: {} for key in ("losses", "streams") if key not in {*must} | self.data.keys()}
        given = {key: self.data.get(key, {}) for key in ("losses", "streams", "stop_gradient", "evaluate", "hooks", "schedule")}
        given |= {key: self.data.get(key) for key in must}
        if shapeless := [key for key, block in given.items() if not isinstance(block, dict)]:
            lacks = [key for key in shapeless if self.data.get(key) is None]
            if {*must} <= {*lacks}:  # another kind of file: its keys are no mistakes
                self.found.problems.clear()
            self.found.problems += [f"{self.where(key)}: `{key}` must be a mapping" for key in shapeless if key not in lacks]
            if lacks and {"columns", "rows"} <= self.data.keys():
                self.say((), "a table of recipes: `xtoolkit ablate --config` runs it")
            elif lacks:
                self.say((), f"no whole recipe: it lacks `{'`, `'.join(lacks)}`; a recipe has `{'`, `'.join(must)}`, its own or "
                         "those of its `_BASE_`")
            for key in [key for key in kinds if key not in shapeless]:
                self._settings(key, kinds[key])
            raise ConfigError(self.found.problems)
        if not isinstance(self.data.get("tokenizer"), str):
            self.say(("tokenizer",), "missing key `tokenizer`: a hub name, a folder or sample://...")
        self._names()
        graph = self.wiring.graph()
        needs = self.wiring.needs(graph)
        graph.cuts.update(self.wiring.cuts(graph, needs))
        streams, idle, trained = self._streams(graph, needs)
        task_needs = self._tasks(graph, needs, trained)
        self._hooks()
        blocks = {key: self._settings(key, cls) for key, cls in kinds.items()}
        if self.trains:
            self._schedule(blocks["schedule"])
            self._rates()
        for path, message in init_problems(blocks["init"], self.data["encoders"]) if blocks.get("init") else ():
            self.say(("init", *path), message)
        by = blocks["train"] and blocks["train"].keep_best
        if by and best_by(by)[0] not in self.unknown and (wrong := best_problem(by, given["evaluate"])):
            self.say(("train", "keep_best"), wrong)
        from xtoolkit.weights.hub import no_model

        if isinstance(path := blocks.get("init") and blocks["init"].path, str) and (problem := no_model(path)):
            self.say(("init", "path") if isinstance(self.data["init"], dict) else ("init",), problem)
        if self.missing_files:
            # A file with mistakes may not say what it reaches: then every encoder counts.
            read = [*(needs[loss] for loss in trained if loss in needs), *task_needs.values()]
            known = self.data["encoders"] if self.found.problems else reached(graph, self.data["encoders"], read)
            if Files(self.found, self.purpose).check(list(known), idle, self.datasets):
                raise FilesMissing(self.found.problems)
        if self.found.problems:
            raise ConfigError(self.found.problems)
        init = blocks["init"] if "init" in blocks and blocks["init"].path is not None else None
        if not self.trains:
            return Recipe(self.config, graph, {k: v for k, v in needs.items() if k in trained}, task_needs, {}, ScheduleBlock(),
                          None, blocks["train"], init=init)
        if not streams:
            raise ConfigError(f"{self.where('streams')}: no stream has an active loss: there is nothing to train")
        schedule = _without_idle(blocks["schedule"], streams)
        if left := schedule_problems(schedule, list(streams), blocks["train"].steps):  # what idle streams leave behind
            raise ConfigError([f"{self.where('schedule', *path)}: {message}" for path, message in left])
        return Recipe(self.config, graph, {k: v for k, v in needs.items() if k in trained}, task_needs, streams, schedule,
                      blocks["optim"], blocks["train"], idle, init)

    def _names(self):
        """Names become files of the run's folder and columns of the log."""
        for kind, what in (("streams", "a stream"), ("evaluate", "an evaluation"), ("hooks", "a hook")):
            for name in self.data.get(kind) or {}:
                if not name.isidentifier():
                    self.say((kind, name), f"`{name}` cannot name {what}; take one word of letters, digits and _")

    # ---- streams -----------------------------------------------------------------------------------------------------------
    def _streams(self, graph, needs):
        """{name: Stream} of those that can be; idle ones; the losses that some stream names, however wrong the rest of it."""
        streams, idle, trained = {}, [], set()
        for name, block in self.data["streams"].items():
            at = ("streams", name)
            if not isinstance(block, dict):
                self.say(at, "a stream is a mapping with batch_size, losses and data")
                trained.update(self.data["losses"])
                continue
            self.found.problems += unknown_keys(block, STREAM, lambda k: self.where(*at, k), f"stream `{name}`")
            size = block.get("batch_size")
            if not fits(size, int) or size < 1:
                self.say(at + ("batch_size",), f"`batch_size` of stream `{name}` must be a whole number above 0, not {size!r}")
            active, weights = {}, block.get("losses") or {}
            if not isinstance(weights, dict):
                self.say(at + ("losses",), "write `losses: {name: weight}`")
                trained.update(self.data["losses"])
                self._dataset(block.get("data"), at + ("data",), f"stream `{name}`")
                continue
            trained.update(loss for loss, weight in weights.items() if weight != 0)
            for loss, weight in weights.items():
                if loss not in self.data["losses"]:
                    self.say(at + ("losses", loss), f"unknown loss `{loss}`{nearest(loss, self.data['losses'])}")
                elif not fits(weight, float) or weight < 0:
                    self.say(at + ("losses", loss), f"the weight of `{loss}` must be a number of at least 0, not {weight!r}")
                elif weight:
                    active[loss] = weight
            wanted = [n for loss in active for n in needs.get(loss, [])]
            views = frozenset().union(*(Ref.parse(n.ref).marks for n in wanted))
            cls = self._dataset(block.get("data"), at + ("data",), f"stream `{name}`", views)
            if not active:
                idle.append(name)
            if cls is None or not active or not fits(size, int):
                continue
            stream = Stream(name, size, active, block["data"], frozenset(cls.FIELDS))
            self._reads(stream, {loss: needs.get(loss, []) for loss in active}, graph, cls)
            streams[name] = stream
        return streams, idle, trained

    def _reads(self, stream, needs, graph, cls):
        """Whether the stream has the fields that its losses read, and what their marks need."""
        try:
            graph.pooled(stream.fields)
        except ValueError as e:
            self.say(("streams", stream.name, "data", "type"), f"stream `{stream.name}` ({cls.__name__}): {e}")
            return
        for loss, wanted in needs.items():
            for need in wanted:
                if why := misread(graph, need.ref, stream.fields):
                    self.say(("streams", stream.name, "losses", loss), f"loss `{loss}` reads {need.ref}, {why}; "
                             f"stream `{stream.name}` ({cls.__name__}) has only $" + ", $".join(sorted(stream.fields)))
                    break

    def _dataset(self, block, at, what, views=frozenset()):
        """The class of a data block, after reporting its mistakes; None if it has no usable class."""
        if not isinstance(block, dict):
            self.say(at, f"{what} needs a `data` block with a `type`")
            return None
        cls = self.found.block_class(DATASET_REGISTRY, block, *at)
        if cls is not None and at not in self.found.bad:
            with self.found.asked(cls, "check", *at):
                mistakes = cls.check(block, views)
                for key, message in mistakes:
                    self.say(at + tuple(key.split(".")), message)
                if not mistakes:
                    self.datasets.append((at, cls, block))
        return cls

    # ---- evaluations -------------------------------------------------------------------------------------------------------
    def _tasks(self, graph, needs, trained) -> dict[str, list[Need]]:
        found = {}
        for name, block in (self.data.get("evaluate") or {}).items():
            at = ("evaluate", name)
            cls = self.found.block_class(TASK_REGISTRY, block, *at)
            if not isinstance(block, dict):
                continue
            for key, what in (("every", " of steps"), ("batch_size", " of pictures"), ("limit", " of samples")):
                value = block.get(key)
                if value is not None and (not fits(value, int) or value < 1):
                    self.say(at + (key,), f"`{key}` must be a whole number{what} above 0, not {value!r}")
            known = cls is not None and at not in self.found.bad
            wanted = self.wiring.good(self.found.needs(cls, block, *at), block, at, graph) if known else []
            heads = {key: block.get(key, schema(cls)[key].default) for key in cls.HEADS} if known else {}
            read = [*wanted, *(n for key in heads.keys() & cls.MARKED for n in needs.get(heads[key], []))] if known else []
            marks = frozenset().union(*(Ref.parse(n.ref).marks for n in read))
            if cls is None and "type" in block and "data" not in block:
                self.unknown.add(name)  # a misspelt `type` has replaced a whole block: what else was in it is not asked
                continue
            dataset = self._dataset(block.get("data"), at + ("data",), f"evaluation `{name}`", marks)
            if not known:
                continue
            if dataset is not None and not cls.FIELDS <= dataset.FIELDS.keys():
                self.say(at + ("data", "type"), f"{cls.__name__} reads batches of $" + ", $".join(sorted(cls.FIELDS))
                          + f"; {dataset.__name__} gives $" + ", $".join(sorted(dataset.FIELDS)))
            for need in wanted if dataset is not None else ():
                if why := misread(graph, need.ref, frozenset(dataset.FIELDS)):
                    self.say(at, f"evaluation `{name}` reads {need.ref}, {why}; its data ({dataset.__name__}) has only $"
                             + ", $".join(sorted(dataset.FIELDS)))
            for key, loss in heads.items():
                method = cls.HEADS[key]
                if loss is None:
                    continue
                without = (f"go without (`evaluate.{name}.{key}: null`)" if fits(None, schema(cls)[key].type) else
                           f"remove this evaluation (`evaluate.{name}: null`)")
                if loss not in self.data["losses"]:
                    meant = nearest(loss, self.data["losses"])
                    self.say(at + (key,), f"unknown loss `{loss}`{meant}{' Or' if meant.endswith('?') else '; or'} {without}")
                elif self.found.lacking:
                    continue  # what the loss is, or who trains it, may be a plugin's
                elif method and (head := self._loss_class(loss)) is not None and not hasattr(head, method):
                    self.say(at + (key,), f"loss `{loss}` cannot serve as `{key}` of {cls.__name__}: it has no `{method}`")
                elif loss not in trained and self.trains:
                    self.say(at + (key,), f"evaluation `{name}` reads the head of loss `{loss}`, which no stream trains; "
                             f"train it, or {without}")
                else:
                    trained.add(loss)
                    wanted += needs.get(loss, [])
                    self.found.alike(name, dataset, loss)
            found[name] = wanted
        return found

    def _loss_class(self, loss):
        block = self.data["losses"][loss]
        known = isinstance(block, dict) and block.get("type") in LOSS_REGISTRY
        return LOSS_REGISTRY.get(block["type"]) if known else None

    # ---- hooks -------------------------------------------------------------------------------------------------------------
    def _hooks(self):
        for name, block in self.data.get("hooks", {}).items():
            self.found.block_class(HOOK_REGISTRY, block, "hooks", name)
            for kind in ("streams", "losses", "evaluate"):
                if name in (self.data.get(kind) or {}):
                    self.say(("hooks", name), f"`{name}` is already in `{kind}`; the log could not tell their numbers apart")

    # ---- settings ----------------------------------------------------------------------------------------------------------
    def _settings(self, key, cls):
        block = self.data.get(key) or {}
        if cls is Init and isinstance(block, str):
            block = {"path": block}
        elif not isinstance(block, dict):
            self.say((key,), f"`{key}` must be a path, or a mapping of: {', '.join(schema(cls))}")
            return None
        block = block if self.trains or cls is not Train else {"steps": 1} | block  # none is taken
        mistakes = check(cls, block, self.where(key), lambda *keys: self.where(key, *keys))
        self.found.problems += mistakes
        if mistakes or not_numbers(block, self.where):
            return None
        values = arguments(cls, block)
        return cls(**{k: tuple(v) if k == "betas" else v for k, v in values.items()})

    def _schedule(self, block):
        if block is not None:
            for path, message in schedule_problems(block, list(self.data["streams"]), self._good("train", Train).get("steps")):
                self.say(("schedule", *path), _named(path, message))

    def _good(self, key, cls) -> dict:
        """The values of a block that are right by themselves."""
        block, keys = self.data[key], schema(cls)
        return {k: v for k, v in block.items() if k in keys and v is not None and fits(v, keys[k].type)
                and not not_numbers(v, self.where)}

    def _rates(self):
        owners = {name: block["shares"] if isinstance(block, dict) and "shares" in block else name
                  for name, block in self.data["encoders"].items()}
        optim = Optim(**{"lr": math.inf} | self._good("optim", Optim))  # a rate that is wrong holds nothing else up
        for path, message in optim_problems(optim, owners, self.data["losses"], self._good("train", Train).get("steps")):
            self.say(("optim", *path), _named(path, message))


def _named(path, message: str) -> str:
    """A message that begins with what must be, with the key that it is about."""
    return f"`{'.'.join(path)}` {message}" if path and message.startswith("must") else message


def _without_idle(block: ScheduleBlock, streams) -> ScheduleBlock:
    """The schedule over the streams that have work."""
    if block.sample is not None:
        return ScheduleBlock(sample={k: v for k, v in block.sample.items() if k in streams})
    groups = block.every_step if block.every_step is not None else [list(streams)]
    groups = [[s for s in g if s in streams] for g in groups]
    return ScheduleBlock([g for g in groups if g], {k: v for k, v in block.every.items() if k in streams})
