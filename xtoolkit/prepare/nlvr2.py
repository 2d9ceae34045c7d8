"""NLVR2's JSON Lines -> rows of two pictures, a sentence and whether it is true of them."""

from pathlib import Path

from xtoolkit.prepare.lines import records
from xtoolkit.prepare.official import BadRecord, Report, field
from xtoolkit.prepare.records import Finder, each
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.writer import Options, RowPart


def convert(sentences: list, images: Path, options: Options, names: dict | None = None) -> Report:
    """Writes ``SPLIT.jsonl``, a row a line: ``images``, the left and the right one, ``sentence``, ``label``, ``identifier``.

    The pictures of ``dev-850-0-1`` are ``dev-850-0-img0.png`` and ``-img1.png``. The release has those of ``train`` in a folder
    for each ``directory``, ``images/train/42/``, the others in ``dev/`` and ``test1/``. They are looked for under
    ``images/SPLIT/...``, and without the first parts of that name. Where there is no label (``test2``) it is null.

    Args:
        sentences: ``train.json``, ``dev.json``, ``test1.json``; the name says the split.
        images: the folder that the names of pictures are then below.
        names: {split: what its file is called}; None: as the split.
    """
    files = {Path(path).stem: Span.whole(path) for path in sentences}
    jobs = [Job((names or {}).get(split, split), RowPart, write_rows, (span, str(images))) for split, span in files.items()]
    Finder(images)  # that there is such a folder is said before any work
    return run("-".join(["nlvr2", *(job.prefix for job in jobs)]), jobs, options, Report(options.skip_bad), len(jobs))


def write_rows(payload: tuple, part: RowPart):
    """The work of one job: a split."""
    span, root = payload
    finder = Finder(Path(root))

    def parse(record, where):
        called, said = field(record, "identifier", str, where), field(record, "sentence", str, where)
        pair, _, number = called.rpartition("-")
        split = called.partition("-")[0]
        if not pair or not number.isdecimal():
            raise BadRecord(f"{where}: `identifier` is {called[:60]!r}, not like dev-850-0-1")
        folder = field(record, "directory", str | int | None, where)
        folder = f"images/{split}" if folder is None or split != "train" else f"images/{split}/{folder}"
        pictures = [finder(f"{folder}/{pair}-img{n}.png", where) for n in (0, 1)]
        if missing := [path for path in pictures if not path.is_file()]:
            raise BadRecord(f"{where}: no picture {missing[0]}, nor without the first parts of that name")
        label = field(record, "label", str | bool | None, where)
        if label is not None and str(label).lower() not in ("true", "false"):
            raise BadRecord(f"{where}: the label is {label[:60]!r}, neither True nor False")
        return called, {"images": [path.relative_to(root).as_posix() for path in pictures], "sentence": said,
                        "label": None if label is None else str(label).capitalize(), "identifier": called}

    for _, row in each(records(span, part.report), "", parse, part.report, unique="identifier"):
        part.write(row, row["sentence"])
