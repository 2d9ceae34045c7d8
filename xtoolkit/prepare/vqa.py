"""VQA v2's questions and annotations -> rows of a picture, a question and its answers; and the answers that one can give."""

from collections import Counter
from pathlib import Path

from xtoolkit.prepare.official import BadFile, BadRecord, Report, field
from xtoolkit.prepare.records import each
from xtoolkit.prepare.run import Job, run
from xtoolkit.prepare.spans import Span
from xtoolkit.prepare.streaming import elements, header, join
from xtoolkit.prepare.writer import ListPart, Options, RowPart

LEAST = 9  # questions that an answer must be the first of, to be a candidate
SAME = (("info", "version"), ("info", "year"), ("data_type",), ("data_subtype",))  # what both files of a split say
FIRST = ("0.9", "1.0")  # what VQA v1 says of its version


def convert(questions: Path, annotations: Path | None, options: Options, prefix: str = "train",
            folder: str | None = None) -> Report:
    """Writes ``PREFIX.jsonl``, a row a question in the order of the questions' file, without ``annotations`` without answers.

    A row has ``image`` (``train2014/COCO_train2014_000000000009.jpg``), ``image_id``, ``question``, ``question_id``; of the
    annotations ``answers``, each once with its share of the annotators as its weight, ``annotations``, the annotators' ten
    answers as they gave them, ``question_type`` and ``answer_type``.

    Args:
        questions: ``v2_OpenEnded_mscoco_train2014_questions.json`` and the like.
        annotations: ``v2_mscoco_train2014_annotations.json``; None where the release keeps them.
        folder: of the pictures, ``val2014`` say; None: that of the split.

    Raises:
        BadFile: the two are not of one version, year or split; they are VQA v1's; they have no ``data_subtype``.
    """
    files = [Path(path) for path in (questions, annotations) if path is not None]
    said = [header(path) for path in files]
    for keys in SAME:
        found = [_said(one, keys) for one in said]
        if len(set(found)) > 1:
            raise BadFile(f"{files[0].name} and {files[1].name} are not of one release: `{'.'.join(keys)}` is {found[0]} in the "
                          f"first and {found[1]} in the second; give the questions and annotations of one split and version")
    _refuse_first(files[0], said[0])
    split = _said(said[0], ("data_subtype",))
    if not isinstance(split, str):
        raise BadFile(f"{files[0].name}: no `data_subtype`, which says whose pictures are asked about: is it a file of VQA v2?")
    where = folder or split.replace("test-dev", "test")
    payload = [Span.whole(path) for path in files], f"{where}/COCO_{where}_{{:012d}}.jpg"
    return run(f"vqa-{prefix}", [Job(prefix, RowPart, write_questions, payload)], options, Report(options.skip_bad), 1)


def _refuse_first(path: Path, said: dict):
    if str(version := _said(said, ("info", "version"))) in FIRST:
        raise BadFile(f"{path.name}: `info.version` is {version}: this is VQA v1, and what is read here VQA v2, with other "
                      "pairs of question and picture; give the files whose names begin with v2_")


def _said(found, keys):
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def write_questions(payload: tuple, part: RowPart):
    """The work of one job: a split."""
    files, picture = payload
    names, report = [Path(span.path).name for span in files], part.report
    sources = {name: each(elements(span.path, key), f"{name}: {key[:-1]}", parse, report, "question_id", "question")
               for span, name, key, parse in zip(files, names, ("questions", "annotations"), (_question, _annotation))}
    for number, found in join(sources):
        if missing := [name for name in names if name not in found]:
            report.bad(f"{next(iter(found))}: question {number} is not in {missing[0]}: are both of one split and version?")
            continue
        row = {key: value for name in names for key, value in found[name][1].items()}
        image = row.pop("picture")
        part.write({"question_id": number, "image": picture.format(image), "image_id": f"coco-{image}", **row}, row["question"])


def _question(record, where):
    """(id, (id, what a row says of it))"""
    number, said = field(record, "question_id", int, where), field(record, "question", str, where)
    if not said.strip():
        raise BadRecord(f"{where}: the question is empty")
    return number, (number, {"picture": field(record, "image_id", int, where), "question": said})


def _annotation(record, where):
    number = field(record, "question_id", int, where)
    said = [field(one, "answer", str, f"{where}: answer {n}") for n, one in enumerate(field(record, "answers", list, where))]
    counts = Counter(answer for answer in said if answer.strip())
    if not counts:
        raise BadRecord(f"{where}: no answers")
    kinds = {key: field(record, key, str, where) for key in ("question_type", "answer_type")}
    answers = [{"text": answer, "weight": count / len(said)} for answer, count in counts.most_common()]
    return number, (number, {"answers": answers, "annotations": said, **kinds})


def convert_answers(annotations: list, options: Options, prefix: str = "answers", least: int = LEAST) -> Report:
    """Writes ``PREFIX.txt``, a candidate a line, the most frequent first: what classifiers choose and rankers rank.

    A candidate is the answer (``multiple_choice_answer``, that of most annotators) of ``least`` questions at least. The
    literature's 3,129 are those of 9 in VQA v2's train and val together, normalised as the evaluation does. Here they stand
    as the release has them, so that their number may differ a little: where all annotators agree the evaluation normalises
    nothing, and ``t shirt`` would be wrong for ``t-shirt``.

    Raises:
        BadFile: annotations of VQA v1.

    Source: the release of bottom-up attention (Anderson et al. 2018), ``tools/compute_softscore.py``.
    """
    for path in map(Path, annotations):
        _refuse_first(path, header(path))
    payload = [Span.whole(path) for path in annotations], least
    return run(f"vqa-{prefix}", [Job(prefix, ListPart, write_answers, payload)], options, Report(options.skip_bad), 1)


def write_answers(payload: tuple, part: ListPart):
    """The work of one job."""
    files, least = payload
    counts = Counter()
    for span in files:
        place = f"{Path(span.path).name}: annotation"
        counts.update(each(elements(span.path, "annotations"), place, _first, part.report, "question_id"))
    for answer, count in counts.most_common():
        if count >= least:
            part.write(answer)


def _first(record, where):
    return " ".join(field(record, "multiple_choice_answer", str, where).split()) or None
