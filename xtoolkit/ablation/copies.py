"""A table to keep or to hand on: all that its pages are made of, without weights."""

import gzip
import shutil
from pathlib import Path

from xtoolkit.ablation.contrasts import ASKED
from xtoolkit.ablation.jobs import DONE, Jobs
from xtoolkit.engine.records import write_json
from xtoolkit.recipe.folder import CONFIG, EVALUATIONS, METRICS, evaluated
from xtoolkit.registry import ConfigError

SAMPLES = "samples.jsonl"


def copy(jobs: Jobs, into: str) -> Jobs:
    """Copies what is finished into a folder, and returns the jobs there: figures, settings, each sample behind a
    metric (gzipped, the same bytes each time), and the curves of what was pretrained. The table goes on there with other seeds.

    Raises:
        ConfigError: the table's own folder; nothing is finished.
    """
    table, output = jobs.table, Path(jobs.table.output)
    if Path(into).resolve() == output.resolve():
        raise ConfigError(f"--copy {into}: the table's own folder: name another one")
    if not (finished := [job for job in jobs.all() if job.complete]):
        raise ConfigError(f"--copy {into}: nothing is finished in {output}")
    for job in finished:
        to = Path(into) / job.folder.relative_to(output)
        for path in [job.folder / DONE, *([] if job.row else [job.folder / METRICS])]:
            _copied(path, to / path.name)
        for name, record in evaluated(job.folder).items():  # without drawings, which are large
            write_json(to / EVALUATIONS / f"{name}.json", record | {"figures": []})
        config = (job.folder / CONFIG).read_text(encoding="utf-8")
        (to / CONFIG).write_text(config.replace(f"{output}/", f"{into}/"), encoding="utf-8")  # what it starts from lies there
        for name in {metric.partition(".")[0] for metric in table.rows[job.row].metrics.values()} if job.row else ():
            _packed(job.folder / EVALUATIONS / name, to / EVALUATIONS / name)
    if not (Path(into) / ASKED).exists():  # else what was asked there first counts
        _copied(output / ASKED, Path(into) / ASKED)
    return jobs.elsewhere(into)


def _packed(folder, to):
    """The samples of an evaluation, where it keeps any."""
    for path in folder.glob(f"{SAMPLES}*"):
        data = path.read_bytes()
        to.mkdir(parents=True, exist_ok=True)
        (to / f"{SAMPLES}.gz").write_bytes(data if path.suffix == ".gz" else gzip.compress(data, mtime=0))


def _copied(path, to):
    if path.is_file():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
