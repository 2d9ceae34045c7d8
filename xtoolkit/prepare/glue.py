"""GLUE's eight tasks of sentences, from the official TSVs -> rows of texts with a label, a file a split."""

from dataclasses import dataclass, replace
from pathlib import Path

from xtoolkit.prepare.lines import lines
from xtoolkit.prepare.official import BadFile, BadRecord, MissingFile, Report
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.writer import Options, RowPart
from xtoolkit.registry import nearest

SPLITS = ("train", "dev", "test")
BINARY, ENTAILMENT = ("0", "1"), ("not_entailment", "entailment")


@dataclass(frozen=True)
class Task:
    """How the release writes a task.

    Attributes:
        folder: where its files lie in the release.
        texts: the columns of its one or two sentences.
        label: the column of the label.
        classes: the labels that there are, numerals as they are written; None: a number from 0 to 5.
        heading: the columns of train and dev where their files have no line that says them.
        splits: its files, ``SPLIT.tsv``.
    """

    folder: str
    texts: tuple[str, ...]
    label: str = "label"
    classes: tuple[str, ...] | None = BINARY
    heading: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS


PAIR = ("sentence1", "sentence2")
TASKS = {
    "cola": Task("CoLA", ("sentence",), heading=("source", "label", "original", "sentence")),
    "sst2": Task("SST-2", ("sentence",)),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality"),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate"),
    "stsb": Task("STS-B", PAIR, "score", None),
    "mnli": Task("MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"),
                 splits=("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")),
    "qnli": Task("QNLI", ("question", "sentence"), classes=ENTAILMENT),
    "rte": Task("RTE", PAIR, classes=ENTAILMENT),
}


def convert(root: Path, options: Options, tasks: list | None = None, names: dict | None = None) -> Report:
    """Writes ``TASK/SPLIT.jsonl``: ``sentence``, or ``sentence1`` and ``sentence2``, ``label``, and ``id``, the release's index.

    Cells are apart by tabs, and a quote is a character like any other. Tests have no labels, so theirs are null: what the
    server scores are the ids. Where a ``test_labels.tsv`` (index, label) lies beside, as in the sample pack, they are its.

    Args:
        root: the folder of CoLA, SST-2 and the others, as the release unpacks.
        tasks: which of TASKS; None: those whose folder is there.
        names: {split: what it is called}, for one task, whose files then lie in ``out`` itself; None: every split.
    """
    root, whole = Path(root), Report(options.skip_bad)
    if wrong := next((task for task in tasks or () if task not in TASKS), None):
        raise MissingFile(f"{root}: GLUE has no task `{wrong}`{nearest(wrong, TASKS)}")
    found = tasks or [name for name, task in TASKS.items() if (root / task.folder).is_dir()]
    if not found:
        folders = ", ".join(task.folder for task in TASKS.values())
        raise MissingFile(f"{root}: none of GLUE's folders is in it: {folders}")
    for name in found:
        task = TASKS[name]
        splits = {split: split for split in task.splits} if names is None else names
        files = {split: root / task.folder / f"{split}.tsv" for split in splits}
        if missing := [path for path in files.values() if not path.is_file()]:
            raise MissingFile(f"{missing[0]}: no such file; GLUE's {task.folder} has {', '.join(task.splits)}")
        jobs = [Job(splits[split], RowPart, write_rows, (name, Span.whole(path), _labels(path))) for split, path in files.items()]
        where = replace(options, out=options.out / name) if names is None and options.out else options
        one = run("-".join(["glue", name, *(names or {}).values()]), jobs, where, Report(options.skip_bad), len(jobs))
        for kept in ("written", "bins"):
            setattr(one, kept, {f"{name}/{key}" if kept == "written" else key: n for key, n in getattr(one, kept).items()})
        whole.add(one.as_dict())
    return whole


def _labels(path: Path) -> Span | None:
    beside = path.with_name(f"{path.stem}_labels.tsv")
    return Span.whole(beside) if beside.is_file() else None


def write_rows(payload: tuple, part: RowPart):
    """The work of one job: a split of a task."""
    name, span, beside = payload
    task, labelled = TASKS[name], "test" not in Path(span.path).stem
    keys = ("sentence",) if len(task.texts) == 1 else PAIR
    columns = (*task.texts, *((task.label,) if labelled else ()))
    secret = {}
    if beside is not None:
        found = _rows(beside, ("index", "label"), (), task, part.report)
        secret = {row["index"]: _label(row["label"], task, where) for where, _, row in found}
    for where, number, row in _rows(span, columns, task.heading if labelled else (), task, part.report):
        try:
            index = row.get("index", row.get("id", str(number)))
            if not index.isdecimal():
                raise BadRecord(f"{where}: its index is {index[:60]!r}, not a number")
            if beside is not None and index not in secret:
                raise BadRecord(f"{where}: index {index} is not in {Path(beside.path).name}")
            texts = [row[column] for column in task.texts]
            if task.label in row and row[task.label] == "-":
                part.report.leave_out("rows without an agreed label", where)
            elif not all(map(str.strip, texts)):
                part.report.leave_out("rows with an empty text", where)
            else:
                label = _label(row[task.label], task, where) if labelled else secret.get(index)
                part.write({**dict(zip(keys, texts)), "label": label, "id": int(index)}, *texts)
        except BadRecord as error:
            part.report.bad(str(error))


def _label(word: str, task: Task, where: str) -> int | float | str:
    """A class's number or name, or a number from 0 to 5."""
    if task.classes is None:
        try:
            if 0 <= (score := float(word)) <= 5:
                return score
        except ValueError:
            pass
        raise BadRecord(f"{where}: the label is {word[:60]!r}, not a number from 0 to 5")
    if word not in task.classes:
        raise BadRecord(f"{where}: the label is {word[:60]!r}, none of {', '.join(task.classes)}")
    return int(word) if task.classes is BINARY else word


def _rows(span: Span, columns: tuple, heading: tuple, task: Task, report: Report):
    """(where, number, {column: cell}) of each row of a TSV."""
    number = -1
    for where, text, _ in lines(span, report):
        if not text.strip("\r\n"):  # QQP's release has a few
            report.leave_out("empty lines", where)
            continue
        cells = text.rstrip("\r\n").split("\t")
        if not heading:
            heading = cells
            if missing := [name for name in columns if name not in heading]:
                raise BadFile(f"{where}: no column {', '.join(missing)}; it has {', '.join(heading)[:200]}. It should be "
                              f"GLUE's {task.folder}/{Path(span.path).name}")
            continue
        number += 1
        if len(cells) == len(heading):
            yield where, number, dict(zip(heading, cells))
        elif task.folder == "QQP":  # a question with a line break or a tab in it: the release cut it
            report.leave_out("rows that a line break cut", where)
        else:
            report.bad(f"{where}: {len(cells)} cells, and there are {len(heading)} columns: {', '.join(heading)[:200]}")
