"""Runs the jobs of a table as jobs of Slurm, through submitit: the same folders, keys and locks, on other machines."""

import json
import time
from dataclasses import replace
from pathlib import Path

from xtoolkit.ablation import keys
from xtoolkit.ablation.jobs import Job
from xtoolkit.ablation.runner import CHANGED, HELD, WAIT, Process, Runner, lock
from xtoolkit.engine.environment import versions
from xtoolkit.engine.records import write_json
from xtoolkit.recipe import config
from xtoolkit.registry import ConfigError

FOLDER = "slurm"  # in a table's: what submitit keeps of each submission, and which machine its nodes are
INSTALL = "--slurm: submitit is not installed: pip install 'xtoolkit[slurm]'"


class Cluster:
    """Where jobs are submitted to.

    Args:
        named: a partition, or a YAML file of submitit's parameters (``slurm_partition``, ``timeout_min``, ``cpus_per_task``,
            ``gpus_per_node``, ``mem_gb``, ``slurm_constraint``, ...), and ``cluster``: ``slurm``, or ``local`` processes.
        output: the table's folder, which all nodes must see.

    Attributes:
        threads: of a job: ``cpus_per_task``.

    Raises:
        ConfigError: submitit or Slurm is not there, or it knows no such parameter.
    """

    def __init__(self, named: str, output: str):
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(INSTALL) from error
        given = dict(config.load(named).data) if named.endswith((".yaml", ".yml")) else {"slurm_partition": named}
        self._folder, self.threads = Path(output) / FOLDER, given.setdefault("cpus_per_task", 1)
        self._told = json.dumps(given, sort_keys=True, default=str)
        kind = given.pop("cluster", "slurm")
        try:
            self._executor = submitit.AutoExecutor(folder=self._folder / "%j", cluster=kind)
            self._executor.update_parameters(**({"timeout_min": 24 * 60} | given))
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"--slurm {named}: {' '.join(str(error).split())}") from error
        self._named = named

    def submit(self, call, *arguments):
        """submitit's job of a call. Raises ConfigError where Slurm refuses it."""
        try:
            return self._executor.submit(call, *arguments)
        except RuntimeError as error:  # submitit's own
            raise self._refused(error) from error

    def _refused(self, error):
        return ConfigError(f"--slurm {self._named}: {(str(error).strip() or type(error).__name__).splitlines()[-1]}")

    def machine(self, say) -> list:
        """What ``keys.machine`` is on a node: a short job asks it once, and it is kept."""
        asked = json.dumps([self._told, versions()])  # with other packages it is another one
        file = self._folder / f"machine-{keys.digest(asked)[:16]}.json"
        if not file.is_file():
            say("slurm: a short job asks which machine the nodes are, which is part of the jobs' keys")
            task = self.submit(keys.machine, self.threads)
            try:
                write_json(file, task.result())
            except RuntimeError as error:  # submitit's own
                raise self._refused(error) from error
        return json.loads(file.read_text(encoding="utf-8"))


class Slurm(Runner):
    """A ``Runner`` whose jobs run on nodes.

    A node claims a job by its lock, so the files' system must have locks over all nodes, and writes ``done.json`` itself: a job
    goes on where this process is killed, and the next call waits for it or finds it finished. One that Slurm ends before its time
    goes on from its last checkpoint when the same command is called again.
    """

    def __init__(self, cluster: Cluster, jobs: list[Job], side_by_side: int, weights: bool, say, after):
        super().__init__(jobs, side_by_side, weights, say, after)
        self._cluster = cluster

    def begin(self, job: Job) -> "Submitted | None":
        return None if job.state == "running" else Submitted(self._cluster, job)

    def stop(self, running: list) -> None:
        """Leaves what was submitted to its nodes: the next call waits for it, or finds it finished."""


class Submitted:
    """A job that was submitted; see ``Process``."""

    def __init__(self, cluster: Cluster, job: Job):
        self.seconds, self._task = None, cluster.submit(work, bare(job), job.key)

    def ended(self) -> str | None:
        if not self._task.done():
            return None
        try:
            wrong, self.seconds = self._task.result()
        except Exception as error:  # submitit's own: Slurm ended it, or the node could not import what it needs
            return (f"{type(error).__name__} of {self._task.job_id}, see {self._task.paths.stderr}: {str(error).strip()[-500:]}\n"
                    "    the same command goes on from its last checkpoint")
        return wrong


def bare(job: Job) -> Job:
    """A job as it is told to a node: nothing that was found out here is taken along, as it must still be true there and then."""
    after = [bare(one) if isinstance(one, Job) else replace(one) for one in job.after]
    return replace(job, recipe=replace(job.recipe), after=after)


def work(job: Job, key: str) -> tuple[str, float | None]:
    """Runs a job on a node.

    Args:
        key: that the job had when it was submitted.

    Returns:
        What went wrong, empty if nothing did; and seconds, see ``Process``.
    """
    if (here := keys.machine(job.recipe.threads)) != job.recipe.machine:
        return (f"this node is {here}, and the keys of this table are of {job.recipe.machine}: name nodes of one kind, as by "
                "slurm_constraint"), None
    if job.key != key:
        return CHANGED, None
    if (held := lock(job)) is None:
        return HELD, None
    process = Process(job, held)
    while (wrong := process.ended()) is None:
        time.sleep(WAIT)
    return wrong, process.seconds
