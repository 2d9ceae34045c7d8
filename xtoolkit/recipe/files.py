"""Files that a recipe names and that are not there: data, weights, the tokenizer."""

from xtoolkit.recipe.folder import latest
from xtoolkit.recipe.problems import Problems
from xtoolkit.recipe.recipe import Purpose
from xtoolkit.registry import ENCODER_REGISTRY


class Files:
    """What a purpose needs: see ``reading.checked``."""

    def __init__(self, found: Problems, purpose: Purpose):
        self.found, self.data, self.purpose = found, found.data, purpose

    def check(self, encoders, idle, datasets) -> bool:
        """Reports what is missing or cannot be read, and returns whether any of it is what a recipe whose data are there does
        without: not so the weights of a top-level `init`, which whoever names them has misspelt or not yet made.

        Args:
            encoders: whose weights are needed.
            idle: streams whose data are not.
            datasets: [(place, class, block)] of all data blocks.
        """
        from xtoolkit.data import paths
        from xtoolkit.weights.hub import missing, missing_model

        before = len(self.found.problems)
        tokenizer = self.data.get("tokenizer")
        if isinstance(tokenizer, str):
            local = "://" in tokenizer
            if problem := paths.problem(tokenizer) if local else missing(tokenizer, "tokenizer"):
                self.found.say(("tokenizer",), problem)
        absent = len(self.found.problems) > before
        starts, init = self._starts_from_init(), self.data.get("init")
        path = init.get("path") if isinstance(init, dict) else init
        if starts and isinstance(path, str) and (problem := missing_model(path)):
            self.found.say(("init", "path") if isinstance(init, dict) else ("init",), problem)
        own = init.get("own") if isinstance(init, dict) else None
        for name in [n for n in encoders if starts and (path is None or isinstance(own, list) and n in own)]:
            block = self.data["encoders"][name]
            if isinstance(block, dict) and isinstance(block.get("init"), str):
                owner = ENCODER_REGISTRY.get(block["type"]).HUB if block.get("type") in ENCODER_REGISTRY else ""
                if problem := missing(block["init"], f"encoders.{name}.init", owner):
                    self.found.say(("encoders", name, "init"), problem)
                    absent = True
        for place, cls, block in datasets:
            unread = self.purpose == "build" or place[0] == "streams" and (self.purpose == "evaluate" or place[1] in idle)
            with self.found.asked(cls, "missing", *place):
                wrong = [] if unread else cls.missing(block)
                for key, problem in wrong:
                    self.found.say(place + tuple(key.split(".")), problem)
                absent |= any(key in dict(wrong) and paths.problem(path) for key, path in cls.paths(block))
        return absent

    def _starts_from_init(self) -> bool:
        """Whether weights come from ``init:`` keys: not where a checkpoint overwrites them all."""
        if not self.data["streams"]:
            return True  # there is no checkpoint of evaluations alone
        if self.purpose != "resume":
            return self.purpose in ("train", "build")
        output = self.data["train"].get("output")
        return not (isinstance(output, str) and latest(output))
