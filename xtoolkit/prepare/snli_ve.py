"""SNLI-VE's JSON Lines -> rows of a picture of Flickr30k, a hypothesis and whether it follows."""

from pathlib import Path

from xtoolkit.prepare.lines import records
from xtoolkit.prepare.official import BadRecord, Report, field
from xtoolkit.prepare.records import Finder, each
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.writer import Options, RowPart

CLASSES = ("contradiction", "neutral", "entailment")


def convert(pairs: list, images: Path, options: Options) -> Report:
    """Writes ``train.jsonl`` of ``snli_ve_train.jsonl``, and so on: ``image``, ``sentence``, ``label``, ``id``.

    The picture stands for the premise; the caption that it was in SNLI is kept as ``premise``, and not read. Rows whose
    annotators did not agree (``gold_label`` is ``-``) are left out and counted.

    Args:
        pairs: the files; the names say the splits.
        images: ``flickr30k-images``, the folder that the names of pictures are then below.
    """
    files = [Span.whole(path) for path in pairs]
    jobs = [Job(Path(span.path).stem.removeprefix("snli_ve_"), RowPart, write_rows, (span, str(images))) for span in files]
    Finder(images)  # that there is such a folder is said before any work
    return run("-".join(["snli-ve", *(job.prefix for job in jobs)]), jobs, options, Report(options.skip_bad), len(jobs))


def write_rows(payload: tuple, part: RowPart):
    """The work of one job: a split."""
    span, root = payload
    finder = Finder(Path(root))

    def parse(record, where):
        called, label = field(record, "pairID", str, where), field(record, "gold_label", str, where)
        said, number = field(record, "sentence2", str, where), field(record, "Flickr30K_ID", str | int, where)
        if label == "-":
            return part.report.leave_out("pairs without an agreed label", where)
        if label not in CLASSES:
            raise BadRecord(f"{where}: `gold_label` is {label[:60]!r}, none of {', '.join(CLASSES)}")
        picture = finder(f"{number}.jpg", where)
        if not picture.is_file():
            raise BadRecord(f"{where}: no picture {picture}")
        return called, {"image": picture.relative_to(root).as_posix(), "image_id": f"flickr30k-{number}", "sentence": said,
                        "label": label, "id": called, "premise": field(record, "sentence1", str | None, where)}

    for _, row in each(records(span, part.report), "", parse, part.report, unique="pairID"):
        part.write(row, row["sentence"])
