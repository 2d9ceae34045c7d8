"""What is counted of a recipe, kept in a file so that nothing is counted twice: parameters, and GFLOPs a row and a step."""

import hashlib
import json
from pathlib import Path

from xtoolkit.recipe.config import Config
from xtoolkit.registry import ConfigError


def key(source: Config) -> str:
    """A recipe's fingerprint: of the configuration as it is resolved, so that comments and layout change nothing."""
    return hashlib.sha256(json.dumps(source.data, sort_keys=True).encode()).hexdigest()[:16]


def kept(path: Path) -> dict[str, dict]:
    """{recipe: what was counted of it, and the ``key`` that it had}.

    Raises:
        ConfigError: the file is broken.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(found[name]) for name in found if found[name]["key"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path}: not what `xtoolkit zoo` writes ({e}); delete it: all is counted anew") from e


def count(recipe, fingerprint: str) -> dict:
    """What ``xtoolkit plan`` counts of a recipe, and the share of the steps in which each stream takes part.

    Args:
        recipe: checked.
    """
    from xtoolkit.engine.schedule import Schedule  # these bring torch
    from xtoolkit.plan import make_plan

    plan, steps = make_plan(recipe), recipe.train.steps
    schedule = Schedule(recipe.schedule, recipe.train.seed, recipe.streams, steps)
    streams = [{"name": s.name, "losses": s.losses, "batch_size": s.batch_size, "gflops": s.gflops, "unknown": s.unknown,
                "share": schedule.visit(s.name, steps) / steps} for s in plan.streams]
    return {"key": fingerprint, "parameters": plan.parameters, "streams": streams, "steps": steps, "weights": plan.weights}


def a_step(counted: dict) -> float | None:
    """GFLOPs of a mean step: rows of each stream by what a row costs; None: something could not be counted."""
    if any(s["gflops"] is None for s in counted["streams"]):
        return None
    return sum(s["batch_size"] * s["gflops"] * s["share"] for s in counted["streams"])
