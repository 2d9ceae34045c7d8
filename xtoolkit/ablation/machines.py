"""On which machine each seed of a table was run: a seed that is whole stays what it is, wherever the table goes on."""

import json
from collections import Counter
from pathlib import Path

DONE = "done.json"  # in a job's folder, when all of it is there


def _done(output, seed="*") -> list[Path]:
    """The files that say so of a seed's jobs, of whatever key: of what is pretrained, and of rows."""
    return [path for place in ("*/*", "*/*/*") for path in Path(output).glob(f"{place}/seed_{seed}/*/{DONE}")]


def seeds(output: str) -> list[int]:
    """The seeds of which anything is finished in a table's folder."""
    found = {path.parent.parent.name.partition("_")[2] for path in _done(output)}
    return sorted(int(seed) for seed in found if seed.isdecimal())


def machines(output: str, seed: int) -> list[list]:
    """Those that a seed's jobs have run on, as ``keys.machine`` says; the one with most jobs first."""
    told = [json.loads(path.read_text(encoding="utf-8")).get("machine") for path in _done(output, seed)]
    counted = Counter(json.dumps(machine) for machine in told if machine is not None)
    return [json.loads(machine) for machine, _ in counted.most_common()]


def lines(of: dict[str, list]) -> str:
    """A line for each machine, with its seeds.

    Args:
        of: {seed: its machine, as ``keys.machine`` says}.
    """
    shared: dict[str, list[str]] = {}
    for seed, (processor, threads, gpu, *others) in of.items():
        told = f"{gpu or processor}, {threads} thread{'s' * (threads > 1)}, {', '.join(others)}"
        shared.setdefault(told, []).append(seed)
    found = [f"\nSeed{'s' * (len(own) > 1)} {', '.join(own)}: {told}." for told, own in shared.items()]
    return "".join(found) + "\n" * bool(found)
