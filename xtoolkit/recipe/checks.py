"""Every mistake of a configuration, found from signatures and wiring alone, each with file, line and the word that was meant."""

import inspect

from xtoolkit.recipe.folder import latest
from xtoolkit.recipe.config import Config, unknown_keys
from xtoolkit.recipe.settings import Init, Optim, ScheduleBlock, Train, optim_problems, schedule_problems
from xtoolkit.graph import EncoderSpec, Graph, Need, Ref
from xtoolkit.recipe.recipe import Purpose, Recipe, Stream, reached
from xtoolkit.registry import (
    DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY, ConfigError, check, fits, nearest,
    not_numbers, schema, settled,
)

TOP = ("tokenizer", "plugins", "init", "encoders", "losses", "stop_gradient", "streams", "schedule", "evaluate", "hooks",
       "optim", "train")
STREAM = ("batch_size", "losses", "data")


class FilesMissing(ConfigError):
    """Among the mistakes are data, weights or a tokenizer that are not there."""


class Checker:
    """Collects the problems of one configuration.

    Args:
        lacking: what is wrong with its plugins, a line each: names that they might have registered are then no mistakes.
    """

    def __init__(self, config: Config, missing_files: bool, purpose: Purpose = "train", lacking: list[str] | None = None):
        self.config, self.data, self.where = config, config.data, config.where
        self.missing_files, self.purpose, self.lacking = missing_files, purpose, bool(lacking)
        self.problems: list[str] = list(lacking or [])
        self.data_paths: list = []  # (place, path) of every data block without mistakes
        self.bad: set = set()  # places of blocks whose keys are wrong: what they mean is not asked
        self.error = ConfigError

    def recipe(self) -> Recipe:
        """The recipe, built block by block. Raises ConfigError with every problem found."""
        self.problems += unknown_keys(self.data, TOP, self.where, "the recipe") + not_numbers(self.data, self.where)
        kinds = {"schedule": ScheduleBlock, "optim": Optim, "train": Train} | ({"init": Init} if "init" in self.data else {})
        given = {key: self.data.get(key) for key in ("encoders", "losses", "streams", "optim", "train")} | {
            key: self.data.get(key, {}) for key in ("stop_gradient", "evaluate", "hooks", "schedule")}
        if shapeless := [key for key, block in given.items() if not isinstance(block, dict)]:
            self.problems += [f"{self.where(key)}: `{key}` must be a mapping" for key in shapeless]
            for key in [key for key in kinds if key not in shapeless]:
                self._settings(key, kinds[key])
            raise ConfigError(self.problems)
        if not isinstance(self.data.get("tokenizer"), str):
            self.problems.append(f"{self.where('tokenizer')}: missing key `tokenizer`: a hub name, a folder or sample://...")
        graph = self._graph()
        needs = self._needs(graph)
        graph.cuts.update(self._cuts(graph, needs))
        streams, idle = self._streams(graph, needs)
        trained = {loss for s in streams.values() for loss in s.losses}
        task_needs = self._tasks(graph, needs, trained)
        self._hooks()
        blocks = {key: self._settings(key, cls) for key, cls in kinds.items()}
        self._schedule(blocks["schedule"])
        self._rates(blocks["optim"], blocks["train"])
        if self.missing_files:
            # A file with mistakes may not say what it reaches: then every encoder counts.
            read = [*(needs[loss] for loss in trained if loss in needs), *task_needs.values()]
            self._files(list(self.data["encoders"]) if self.problems else reached(graph, self.data["encoders"], read), idle)
        if self.problems:
            raise self.error(self.problems)
        if not streams:
            raise ConfigError(f"{self.where('streams')}: no stream has an active loss: there is nothing to train")
        schedule = _without_idle(blocks["schedule"], streams)
        if left := schedule_problems(schedule, list(streams)):  # what idle streams leave behind
            raise ConfigError([f"{self.where('schedule', *path)}: {message}" for path, message in left])
        return Recipe(self.config, graph, {k: v for k, v in needs.items() if k in trained}, task_needs, streams, schedule,
                      blocks["optim"], blocks["train"], idle, blocks.get("init"))

    # ---- encoders ----------------------------------------------------------------------------------------------------------
    def _graph(self) -> Graph:
        from xtoolkit.encoders.base import slots  # only here: it imports torch

        blocks, specs = self.data["encoders"], {}
        self._names()
        fields = {f: kind for name in DATASET_REGISTRY.names() for f, kind in DATASET_REGISTRY.get(name).FIELDS.items()}
        for name, block in blocks.items():
            cls = self._encoder_class(name, block)
            if cls is None:
                continue
            owner = block.get("shares", name)
            student = self._referred(cls, block, name)
            inputs = block.get("inputs")
            if inputs is None and student:
                inputs = blocks[student].get("inputs")
            shape = self._built(student) if student and not slots(cls) else cls  # a copy has the slots of what it copies
            known = slots(shape) if shape is not None else {}
            if not isinstance(inputs, dict):
                self._say(("encoders", name), f"encoder `{name}` needs `inputs: {{slot: source}}`; slots: {', '.join(known)}")
                continue
            self._inputs(name, shape, inputs, known, fields)
            good = {s: v for s, v in inputs.items() if isinstance(v, str) and (v[1:] in fields if v.startswith("$") else v in blocks)}
            pools = cls.POOLS or (shape.POOLS if shape is not None else None)
            specs[name] = EncoderSpec(name, good, owner, cls.TRAINABLE, frozenset(s for s, needed in known.items() if not needed), pools)
        self._cycles(specs)
        return Graph(specs, fields)

    def _encoder_class(self, name, block):
        """The class of an encoder's block, or of the one that it shares; None with the reason reported."""
        at, blocks = ("encoders", name), self.data["encoders"]
        if not isinstance(block, dict) or "shares" not in block:
            return self._class(ENCODER_REGISTRY, block, *at)
        self.problems += unknown_keys(block, ("shares", "inputs"), lambda k: self.where(*at, k), f"`{name}`, which shares an encoder")
        owner = block["shares"]
        others = [n for n, b in blocks.items() if n != name and isinstance(b, dict) and "shares" not in b]
        if owner not in others:
            self._say(at + ("shares",), f"`shares` must name an encoder with a `type` of its own, not `{owner}`{nearest(owner, others)}")
            return None
        return self._built(owner)

    def _built(self, name):
        """The class that an encoder's block names, or None; nothing is reported."""
        block = self.data["encoders"].get(name)
        kind = block.get("type") if isinstance(block, dict) else None
        return ENCODER_REGISTRY.get(kind) if isinstance(kind, str) and kind in ENCODER_REGISTRY else None

    def _referred(self, cls, block, name) -> str | None:
        """The encoder that the first of a class's REFERS names, if it is there."""
        found = None
        for key in cls.REFERS:
            if isinstance(block.get(key), str) and block[key] not in self.data["encoders"]:
                self._say(("encoders", name, key), f"`{key}` names unknown encoder `{block[key]}`"
                          f"{nearest(block[key], self.data['encoders'])}")
            elif found is None and isinstance(self.data["encoders"].get(block.get(key)), dict):
                found = block[key]
        return found

    def _inputs(self, name, cls, inputs, known, fields):
        """Reports wrong slots and sources of an encoder."""
        blocks, kind = self.data["encoders"], cls.__name__ if cls is not None else "an encoder"
        for slot, source in inputs.items():
            at = ("encoders", name, "inputs", slot)
            if slot not in known:
                self._say(at, f"unknown slot `{slot}` of {kind}{nearest(slot, known)}")
            if not isinstance(source, str):
                self._say(at, f"a source is an encoder's name or $field, not {source!r}")
            elif source.startswith("$") and source[1:] not in fields and not self.lacking:
                self._say(at, f"unknown field `{source}`{nearest(source[1:], fields)}")
            elif not source.startswith("$") and source not in blocks:
                self._say(at, f"unknown encoder `{source}`{nearest(source, blocks)}")
        for slot in [s for s, required in known.items() if required and s not in inputs]:
            self._say(("encoders", name), f"encoder `{name}` ({kind}) lacks the input `{slot}`")

    def _names(self):
        """Names become attributes of the model and columns of the log, one list for both kinds."""
        from torch.nn import ModuleDict  # only here: reading a file needs no torch

        taken = set(dir(ModuleDict)) | {"loss", "norm", "lr", "step"}
        for kind in ("encoders", "losses"):
            for name in self.data[kind]:
                if not name.isidentifier() or name in taken:
                    self._say((kind, name), f"`{name}` cannot name a part of a model; take another word")
        for name in self.data["losses"]:
            if name in self.data["encoders"]:
                self._say(("losses", name), f"`{name}` names an encoder already; rates and logs could not tell them apart")

    def _cycles(self, specs):
        for name in list(specs):
            seen, todo = set(), [name]
            while todo:
                for source in specs[todo.pop()].inputs.values():
                    if source == name:
                        self._say(("encoders", name), f"encoder `{name}` reads itself, through its inputs")
                        specs[name].inputs.clear()
                        todo = []
                        break
                    if source in specs and source not in seen:
                        seen.add(source)
                        todo.append(source)

    # ---- losses ------------------------------------------------------------------------------------------------------------
    def _needs(self, graph) -> dict[str, list[Need]]:
        needs = {}
        for name, block in self.data["losses"].items():
            cls = self._class(LOSS_REGISTRY, block, "losses", name)
            for key, view in cls.VIEWS.items() if cls is not None else ():
                if isinstance(block.get(key), str) and view not in Ref.parse(block[key]).marks:
                    self._say(("losses", name, key), f"`{key}` of {cls.__name__} must read a masked view: write "
                              f"`{block[key]}{'+' if '@' in block[key] else '@'}{view}`")
            if cls is not None and ("losses", name) not in self.bad:
                needs[name] = self._check_needs(cls.needs(**_filled(cls, block)), block, ("losses", name), graph)
        return needs

    def _check_needs(self, needs, block, at, graph) -> list[Need]:
        good = []
        for need in needs:
            key = next((k for k, v in block.items() if v == need.ref), None)
            place = at + ((key,) if key else ())
            ref = Ref.parse(need.ref)
            unknown = sorted(ref.marks - graph.marks.keys())
            if need.ref.startswith("$"):
                if need.ref[1:] in graph.fields:
                    good.append(need)
                elif not self.lacking:
                    self._say(place, f"`{at[-1]}` reads unknown field `{need.ref}`{nearest(need.ref[1:], graph.fields)}")
            elif ref.name not in self.data["encoders"]:
                self._say(place, f"`{at[-1]}` reads unknown encoder `{ref.name}`{nearest(ref.name, self.data['encoders'])}")
            elif unknown and self.lacking:
                continue
            elif unknown:
                self._say(place, f"unknown view `@{unknown[0]}`{nearest(unknown[0], graph.marks)}")
            elif ref.name in graph.encoders:
                heads = self._built(graph.encoders[ref.name].owner).HEADS
                if need.head and need.head not in heads:
                    self._say(place, f"`{at[-1]}` needs the head `{need.head}`, which encoder `{ref.name}` does not have")
                else:
                    good.append(need)
        return good

    def _cuts(self, graph, needs) -> dict:
        cuts = {}
        for edge, losses in (self.data.get("stop_gradient") or {}).items():
            at = ("stop_gradient", edge)
            source, arrow, reader = (p.strip() for p in edge.partition("->"))
            if not arrow or not isinstance(losses, list):
                self._say(at, "write `source -> encoder: [losses]`")
                continue
            spec = graph.encoders.get(reader)
            edges = [f"{s} -> {e.name}" for e in graph.encoders.values() for s in e.inputs.values() if not s.startswith("$")]
            if spec is None or source not in spec.inputs.values():
                if reader in self.data["encoders"] and spec is None:
                    continue  # the encoder's own mistake is reported
                self._say(at, f"no edge `{source} -> {reader}`{nearest(f'{source} -> {reader}', edges)}")
                continue
            for loss in losses:
                if loss not in self.data["losses"]:
                    self._say(at, f"unknown loss `{loss}`{nearest(loss, self.data['losses'])}")
                elif loss in needs and needs[loss] and not any(reader in graph.below([Ref.parse(n.ref).name])
                                                               for n in needs[loss]):
                    self._say(at, f"loss `{loss}` never passes `{edge}`: the cut would change nothing")
            cuts[(source, reader)] = frozenset(losses)
        return cuts

    # ---- streams -----------------------------------------------------------------------------------------------------------
    def _streams(self, graph, needs):
        streams, idle = {}, []
        for name, block in self.data["streams"].items():
            at = ("streams", name)
            if not isinstance(block, dict):
                self._say(at, "a stream is a mapping with batch_size, losses and data")
                continue
            self.problems += unknown_keys(block, STREAM, lambda k: self.where(*at, k), f"stream `{name}`")
            size = block.get("batch_size")
            if not fits(size, int) or size < 1:
                self._say(at + ("batch_size",), f"`batch_size` of stream `{name}` must be a whole number above 0, not {size!r}")
            active, weights = {}, block.get("losses") or {}
            if not isinstance(weights, dict):
                self._say(at + ("losses",), "write `losses: {name: weight}`")
                continue
            for loss, weight in weights.items():
                if loss not in self.data["losses"]:
                    self._say(at + ("losses", loss), f"unknown loss `{loss}`{nearest(loss, self.data['losses'])}")
                elif not fits(weight, float) or weight < 0:
                    self._say(at + ("losses", loss), f"the weight of `{loss}` must be a number of at least 0, not {weight!r}")
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
        return streams, idle

    def _reads(self, stream, needs, graph, cls):
        """Whether the stream has the fields that its losses read, and what their marks need."""
        for loss, wanted in needs.items():
            for need in wanted:
                if why := graph.misread(need.ref, stream.fields):
                    self._say(("streams", stream.name, "losses", loss), f"loss `{loss}` reads {need.ref}, {why}; "
                              f"stream `{stream.name}` ({cls.__name__}) has only $" + ", $".join(sorted(stream.fields)))
                    break

    def _dataset(self, block, at, what, views=frozenset()):
        """The class of a data block, after reporting its mistakes; None if it has no usable class."""
        if not isinstance(block, dict):
            self._say(at, f"{what} needs a `data` block with a `type`")
            return None
        cls = self._class(DATASET_REGISTRY, block, *at)
        if cls is not None and at not in self.bad:
            mistakes = cls.check(block, views)
            for key, message in mistakes:
                self._say(at + tuple(key.split(".")), message)
            if not mistakes:
                self.data_paths += [(at + tuple(key.split(".")), path) for key, path in cls.paths(block)]
        return cls

    # ---- evaluations -------------------------------------------------------------------------------------------------------
    def _tasks(self, graph, needs, trained) -> dict[str, list[Need]]:
        found = {}
        for name, block in (self.data.get("evaluate") or {}).items():
            at = ("evaluate", name)
            cls = self._class(TASK_REGISTRY, block, *at)
            if cls is None or at in self.bad:
                continue
            for key, what in (("every", " of steps"), ("batch_size", " of pictures")):
                value = block.get(key)
                if value is not None and (not fits(value, int) or value < 1):
                    self._say(at + (key,), f"`{key}` must be a whole number{what} above 0, not {value!r}")
            wanted = self._check_needs(cls.needs(**_filled(cls, block)), block, at, graph)
            marks = frozenset().union(*(Ref.parse(n.ref).marks for n in wanted))
            dataset = self._dataset(block.get("data"), at + ("data",), f"evaluation `{name}`", marks)
            if dataset is not None and not cls.FIELDS <= dataset.FIELDS.keys():
                self._say(at + ("data", "type"), f"{cls.__name__} reads batches of $" + ", $".join(sorted(cls.FIELDS))
                          + f"; {dataset.__name__} gives $" + ", $".join(sorted(dataset.FIELDS)))
            for need in wanted if dataset is not None else ():
                if why := graph.misread(need.ref, frozenset(dataset.FIELDS)):
                    self._say(at, f"evaluation `{name}` reads {need.ref}, {why}; its data ({dataset.__name__}) has only $"
                              + ", $".join(sorted(dataset.FIELDS)))
            for key, method in cls.HEADS.items():
                loss = block.get(key, schema(cls)[key].default)
                if loss is None:
                    continue
                if loss not in self.data["losses"]:
                    self._say(at + (key,), f"unknown loss `{loss}`{nearest(loss, self.data['losses'])}; or remove this "
                              f"evaluation (`evaluate.{name}: null`)")
                elif self.lacking:
                    continue  # what the loss is, or who trains it, may be a plugin's
                elif method and not hasattr(self._loss_class(loss), method):
                    self._say(at + (key,), f"loss `{loss}` cannot serve as `{key}` of {cls.__name__}: it has no `{method}`")
                elif loss not in trained:
                    self._say(at + (key,), f"evaluation `{name}` reads the head of loss `{loss}`, which no stream trains; "
                              f"train it, or remove this evaluation (`evaluate.{name}: null`)")
                else:
                    wanted += needs.get(loss, [])
            found[name] = wanted
        return found

    def _loss_class(self, loss):
        block = self.data["losses"][loss]
        known = isinstance(block, dict) and block.get("type") in LOSS_REGISTRY
        return LOSS_REGISTRY.get(block["type"]) if known else None

    # ---- hooks -------------------------------------------------------------------------------------------------------------
    def _hooks(self):
        for name, block in self.data.get("hooks", {}).items():
            self._class(HOOK_REGISTRY, block, "hooks", name)
            for kind in ("streams", "losses", "evaluate"):
                if name in (self.data.get(kind) or {}):
                    self._say(("hooks", name), f"`{name}` is already in `{kind}`; the log could not tell their numbers apart")

    # ---- settings ----------------------------------------------------------------------------------------------------------
    def _settings(self, key, cls):
        block = self.data.get(key) or {}
        if cls is Init and isinstance(block, str):
            block = {"path": block}
        elif not isinstance(block, dict):
            self._say((key,), f"`{key}` must be a path, or a mapping of: {', '.join(schema(cls))}")
            return None
        mistakes = check(cls, block, self.where(key), lambda *keys: self.where(key, *keys))
        self.problems += mistakes
        if mistakes or not_numbers(block, self.where):
            return None
        values = settled(cls, block)
        return cls(**{k: tuple(v) if k == "betas" else v for k, v in values.items()})

    def _schedule(self, block):
        if block is not None:
            for path, message in schedule_problems(block, list(self.data["streams"])):
                self._say(("schedule", *path), _named(path, message))

    def _rates(self, optim, train):
        names = self.data["encoders"], self.data["losses"]
        for path, message in optim_problems(optim, *names, train.steps if train else None) if optim else ():
            self._say(("optim", *path), _named(path, message))

    # ---- files -------------------------------------------------------------------------------------------------------------
    def _files(self, encoders, idle):
        """Reports what is not there of the files that the purpose needs: of ``encoders``, and not of ``idle`` streams."""
        from xtoolkit.data import paths
        from xtoolkit.weights.hub import missing, missing_model
        found = len(self.problems)
        tokenizer = self.data.get("tokenizer")
        if isinstance(tokenizer, str):
            local = "://" in tokenizer
            if problem := paths.problem(tokenizer) if local else missing(tokenizer, "tokenizer"):
                self._say(("tokenizer",), problem)
        starts, init = self._starts_from_init(), self.data.get("init")
        path = init.get("path") if isinstance(init, dict) else init
        if starts and isinstance(path, str) and (problem := missing_model(path)):
            self._say(("init", "path") if isinstance(init, dict) else ("init",), problem)
        for name in encoders if starts and not init else ():
            block = self.data["encoders"][name]
            if isinstance(block, dict) and isinstance(block.get("init"), str):
                owner = ENCODER_REGISTRY.get(block["type"]).HUB if block.get("type") in ENCODER_REGISTRY else ""
                if problem := missing(block["init"], f"encoders.{name}.init", owner):
                    self._say(("encoders", name, "init"), problem)
        for place, path in self.data_paths:
            unread = self.purpose == "build" or place[0] == "streams" and (self.purpose == "evaluate" or place[1] in idle)
            if not unread and (problem := paths.problem(path)):
                self._say(place, problem)
        self.error = FilesMissing if len(self.problems) > found else ConfigError

    def _starts_from_init(self) -> bool:
        """Whether weights come from ``init:`` keys: not where a checkpoint overwrites them all."""
        if self.purpose != "resume":
            return self.purpose in ("train", "build")
        output = self.data["train"].get("output")
        return not (isinstance(output, str) and latest(output))

    # ---- helpers -----------------------------------------------------------------------------------------------------------
    def _class(self, registry, block, *at):
        """The class that a block names, or None with the reason reported. Wrong keys are reported, and ``at`` joins ``bad``."""
        if not isinstance(block, dict):
            self._say(at, f"`{at[-1]}` must be a mapping with a `type`")
            return None
        if "type" not in block:
            self._say(at, f"`{at[-1]}` lacks `type`{nearest('', registry.names())}")
            return None
        try:
            cls = registry.find(block["type"], self.where(*at, "type"))
        except ConfigError as e:
            self.problems += [] if self.lacking else e.problems
            return None
        mistakes = check(cls, block, self.where(*at), lambda *keys: self.where(*at, *keys), registry.beside)
        self.problems += mistakes
        if mistakes:
            self.bad.add(at)
        return cls

    def _say(self, path, message):
        self.problems.append(f"{self.where(*path)}: {message}")


def _named(path, message: str) -> str:
    """A message that begins with what must be, with the key that it is about."""
    return f"`{'.'.join(path)}` {message}" if path and message.startswith("must") else message


def _filled(cls, block) -> dict:
    """A block with the defaults of its class, as ``needs`` wants it."""
    defaults = {k.name: k.default for k in schema(cls).values() if k.default is not inspect.Parameter.empty}
    return defaults | {k: v for k, v in block.items() if k in schema(cls) and v is not None}


def _without_idle(block: ScheduleBlock, streams) -> ScheduleBlock:
    """The schedule over the streams that have work."""
    if block.sample is not None:
        return ScheduleBlock(sample={k: v for k, v in block.sample.items() if k in streams})
    groups = block.every_step if block.every_step is not None else [list(streams)]
    groups = [[s for s in g if s in streams] for g in groups]
    return ScheduleBlock([g for g in groups if g], {k: v for k, v in block.every.items() if k in streams})
