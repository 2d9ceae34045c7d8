"""The answers to questions that a model chooses from or ranks, and the number of each among them."""

from xtoolkit.data import paths
from xtoolkit.data.classes import class_names
from xtoolkit.metrics.vqa import normalise
from xtoolkit.registry import ConfigError


class Candidates:
    """Answers that are numbered.

    Args:
        given: the answers, or a file of one a line, the most frequent first.

    Attributes:
        answers: all, in order.

    Raises:
        ConfigError: a file that cannot be read, fewer than two answers, or one twice.
    """

    def __init__(self, given: list[str] | str):
        try:
            self.answers = tuple(class_names(given))
        except ConfigError as error:
            raise ConfigError([line.replace("data.classes", "data.candidates").replace(" classes, two", " answers, two")
                               for line in error.problems]) from None
        numbered = list(enumerate(self.answers))
        self._numbers = {normalise(answer): n for n, answer in reversed(numbered)} | {answer: n for n, answer in numbered}

    def number(self, answer: str) -> int:
        """Of an answer, else of the one that the evaluation holds for it; -1: it is none of them."""
        answer = answer.strip()
        return self._numbers.get(answer, self._numbers.get(normalise(answer), -1))


def candidate_paths(block: dict) -> list[tuple[str, str]]:
    """The path of candidates, where a block names one, as ``StreamDataset.paths`` has it."""
    return [("candidates", block["candidates"])] if isinstance(block.get("candidates"), str) else []


def missing_candidates(block: dict) -> list[tuple[str, str]]:
    return [(key, f"{line}; give a file of an answer a line, as `{paths.TOOL} vqa-answers` writes it")
            for key, path in candidate_paths(block) if (line := paths.no_folder(path, files=True))]
