"""Evaluations; importing this package registers them."""

from xtoolkit.tasks.accuracy import Accuracy
from xtoolkit.tasks.base import Task
from xtoolkit.tasks.boxes import BoxAccuracy
from xtoolkit.tasks.captions import CaptionScores
from xtoolkit.tasks.correlation import Correlation
from xtoolkit.tasks.linear_probe import LinearProbe
from xtoolkit.tasks.masked_words import MaskedWords
from xtoolkit.tasks.matching import Matching
from xtoolkit.tasks.neighbours import NearestNeighbours
from xtoolkit.tasks.pointing import PointingGame
from xtoolkit.tasks.retrieval import Retrieval
from xtoolkit.tasks.vqa import VQAAccuracy

__all__ = ["Accuracy", "BoxAccuracy", "CaptionScores", "Correlation", "LinearProbe", "MaskedWords", "Matching",
           "NearestNeighbours", "PointingGame", "Retrieval", "Task", "VQAAccuracy"]
