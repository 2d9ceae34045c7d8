"""GLUE in one number, as papers average it: each names the figures of its eight tasks, and the average weighs tasks alike.

Figures are named ``TASK.METRIC``, ``mrpc.f1``; MNLI's two test sets are ``mnli_matched`` and ``mnli_mismatched``. Numbers of
different averages cannot be compared: say which one it is.
"""

# X-FM, Tables 2 and 5, and the caption of Table 2: of MRPC the mean of accuracy and F1, of QQP accuracy.
XFM = {"mnli": ("mnli_matched.accuracy", "mnli_mismatched.accuracy"), "cola": ("cola.matthews",),
       "mrpc": ("mrpc.accuracy", "mrpc.f1"), "qqp": ("qqp.accuracy",), "sst2": ("sst2.accuracy",),
       "qnli": ("qnli.accuracy",), "rte": ("rte.accuracy",), "stsb": ("stsb.pearson",)}
# FLAVA, Table 4: QQP the mean of accuracy and F1, too. Its caption has Pearson's correlation for CoLA and Matthews' for STS-B,
# which is the wrong way round (Table 5 has them right), and its column 5 prints 98.61 for QQP where its average needs 88.61.
FLAVA = XFM | {"qqp": ("qqp.accuracy", "qqp.f1")}


def task_scores(figures: dict[str, float], tasks: dict = XFM) -> dict[str, float]:
    """{task: its number in an average}, of the tasks of which all figures are there.

    Args:
        figures: {``TASK.METRIC``: per cent}.
        tasks: the average, ``XFM`` or ``FLAVA``.
    """
    return {task: sum(figures[name] for name in names) / len(names) for task, names in tasks.items()
            if all(name in figures for name in names)}


def average(scores: dict[str, float]) -> float:
    """The mean of the numbers of the eight tasks.

    Args:
        scores: as ``task_scores`` gives them.

    Raises:
        ValueError: a task is missing: a mean of fewer is another number.
    """
    if wrong := sorted(XFM.keys() ^ scores.keys()):
        raise ValueError(f"GLUE's average is over {', '.join(XFM)}; wrong or missing: {', '.join(wrong)}")
    return sum(scores.values()) / len(scores)
