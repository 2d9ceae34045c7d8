"""On which machine each seed of a table was run: a seed that is whole stays what it is, wherever the table goes on."""

import json
from pathlib import Path


def seeds(output: str, done: str) -> list[int]:
    """The seeds of which anything is finished in a table's folder.

    Args:
        done: the name of the file that says so.
    """
    found = {path.parent.parent.name.partition("_")[2] for depth in ("*/*", "*/*/*")
             for path in Path(output).glob(f"{depth}/seed_*/*/{done}")}
    return sorted(int(seed) for seed in found if seed.isdecimal())


def machines(output: str, seed: int, done: str) -> list[list]:
    """Those that a seed's jobs have run on, which may be there with several keys; the one with most jobs first."""
    counted: dict[str, int] = {}
    for depth in ("*/*", "*/*/*"):
        for path in Path(output).glob(f"{depth}/seed_{seed}/*/{done}"):
            if (machine := json.loads(path.read_text(encoding="utf-8")).get("machine")) is not None:
                counted[json.dumps(machine)] = counted.get(json.dumps(machine), 0) + 1
    return [json.loads(one) for one in sorted(counted, key=counted.get, reverse=True)]


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
