"""What an edit of the package makes stale or older: real edits in a copy of it, held against lists that are written out by hand."""

import dataclasses
import shutil
import sys
from contextlib import contextmanager

import pytest

from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import FINISHED, OLDER, Jobs, write_done
from xtoolkit.ablation.table import read
from xtoolkit.cli import recipes as ours
from xtoolkit.recipe.plugins import builtin_folder
from xtoolkit.registry import DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY

FOLDER = ours.folder() / "xfm/ablations"
LANGUAGE = ["CoLA-like", "RTE-like", "SST-2-like"]
VISION = ["Image classes", "Image classes, probe"]
BOTH = ["VQA", "Entailment", "Grounding", "Retrieval, zero-shot"]
STARTS = {"text", "contrast", "codes"}
ROWS = {  # of each column, and of the starts, which have none
    "RoBERTa†": LANGUAGE, "S-MLM": LANGUAGE + BOTH, "S-ITM": LANGUAGE + BOTH, "wostop": LANGUAGE + BOTH, "BEiTv2†": VISION,
    "woMIM": VISION + BOTH, "wBEiTv2 tokenizer": VISION + BOTH, "X2-VLM†": BOTH, "Multi-task": LANGUAGE + VISION + BOTH,
    "ALL": LANGUAGE + VISION + BOTH, "ALL again": LANGUAGE + VISION + BOTH, "Shuffled captions": BOTH, "text": [], "contrast": [], "codes": []}
# {loss's file: what stays finished once it is edited, with all its rows}. All else trains with it, or begins with what did.
STAYS = {
    "mlm": {"BEiTv2†", "contrast", "codes"},  # all others begin with <text>
    "mim": {"RoBERTa†", "woMIM", "X2-VLM†", "text", "contrast"},  # <codes>: VQKDLoss imports it, as MIMCodes does
    "itc": {"RoBERTa†", "text"},  # BEiTv2† trains without, and begins with <codes>, which begin with <contrast>
    "itm": {"RoBERTa†", "BEiTv2†", *STARTS},
    "imlm": {"RoBERTa†", "BEiTv2†", "X2-VLM†", *STARTS},  # X2-VLM† masks words of pairs for MLM
    "bbp": {"RoBERTa†", "BEiTv2†", *STARTS},
}
# {file that pretraining does not reach: the rows that do}
OF_ROWS = {"answers": ["VQA"], "classification": [*LANGUAGE, "Image classes", "Entailment"]}
ENGINE = ["engine/trainer.py", "features.py", "model.py"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """(folder, jobs): the jobs of table5_tiny.yaml with one seed, finished, by the package as it is copied into the folder."""
    folder = tmp_path_factory.mktemp("copy")
    for source in (keys.PACKAGE, builtin_folder()):
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "pack"))
    given = dataclasses.replace(read(str(FOLDER / "table5_tiny.yaml"), str(ours.folder())), output=str(folder / "out"))
    jobs = Jobs(given, str(FOLDER), library=str(ours.folder())).all(seeds=[1])
    for job in jobs:
        job.recipe.checked  # imports the components, whose files are then looked for in the copy
    with pytest.MonkeyPatch.context() as patch:
        for registry in (DATASET_REGISTRY, ENCODER_REGISTRY, HOOK_REGISTRY, LOSS_REGISTRY, TASK_REGISTRY):
            for module in {registry.get(name).__module__ for name in registry.names()}:
                for source in (keys.PACKAGE, builtin_folder()):
                    if (file := str(getattr(sys.modules.get(module), "__file__", ""))).startswith(f"{source}/"):
                        patch.setattr(sys.modules[module], "__file__", file.replace(str(source), str(folder / source.name), 1))
        patch.setattr(keys, "builtin_folder", lambda: folder / "plugins")
        patch.setattr(keys, "PACKAGE", folder / "xtoolkit")
        keys.forget()
        for job in jobs:
            job.folder.mkdir(parents=True)
            write_done(job, 1.0)
        yield folder, jobs
    keys.forget()


def asked_anew(jobs):
    """The jobs, of whose code and keys nothing is known."""
    keys.forget()
    for one in {id(one): one for job in jobs for one in (job, job.recipe)}.values():
        for known in ("key", "folder"):
            vars(one).pop(known, None)
    return jobs


def states(table) -> dict[str, set[tuple[str, str]]]:
    """{state: the (column, row) of it}."""
    found: dict[str, set] = {}
    for job in asked_anew(table[1]):
        found.setdefault(job.state, set()).add((job.column, job.row))
    return found


def with_rows(columns) -> set[tuple[str, str]]:
    return {(column, row) for column in columns for row in ("", *ROWS[column])}


@contextmanager
def edited(folder, files, change):
    """Some of the copy's files, changed for a while."""
    texts = {path: path.read_text() for file in files for path in [folder / "xtoolkit" / file]}
    for path, text in texts.items():
        assert change(text) != text
        path.write_text(change(text))
    try:
        yield
    finally:
        for path, text in texts.items():
            path.write_text(text)


def code(text):
    return f"{text}\nEDITED = True\n"


def comment(text):
    """Comments, a docstring and empty lines."""
    return "# A comment.\n" + text.replace('"""', '"""Told otherwise. ', 1).replace("\nclass ", "\n\n# Another.\nclass ", 1) + "\n# The last.\n"


@pytest.mark.parametrize("loss", STAYS)
def test_an_edit_of_a_loss_makes_stale_what_trains_with_it_or_begins_with_that(loss, table):
    with edited(table[0], [f"losses/{loss}.py"], code):
        assert states(table) == {"stale": with_rows(ROWS.keys() - STAYS[loss]), FINISHED: with_rows(STAYS[loss])}


@pytest.mark.parametrize("loss", OF_ROWS)
def test_an_edit_of_what_rows_alone_train_with_leaves_pretraining(loss, table):
    stale = {(column, row) for column, rows in ROWS.items() for row in rows if row in OF_ROWS[loss]}
    with edited(table[0], [f"losses/{loss}.py"], code):
        assert states(table) == {"stale": stale, FINISHED: with_rows(ROWS) - stale}


@pytest.mark.parametrize("file", ENGINE)
def test_an_edit_of_the_engine_makes_jobs_older_and_no_key_another(file, table):
    folder, jobs = table
    before, of = [job.key for job in asked_anew(jobs)], keys.engine()
    with edited(folder, [file], code):
        assert states(table) == {OLDER: with_rows(ROWS)}
        assert [job.key for job in jobs] == before and keys.engine() != of


def test_comments_change_nothing(table):
    folder, jobs = table
    before, of = [job.key for job in asked_anew(jobs)], keys.engine()
    with edited(folder, [*ENGINE, *(f"losses/{loss}.py" for loss in STAYS)], comment):
        assert states(table) == {FINISHED: with_rows(ROWS)}
        assert [job.key for job in jobs] == before and keys.engine() == of


def test_an_edit_of_a_loss_leaves_the_engine(table):
    keys.forget()
    before = keys.engine()
    with edited(table[0], ["losses/bbp.py"], code):
        keys.forget()
        assert keys.engine() == before
