"""The tools of the checkout, for tests that call them."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "projects/xfm/tiny.yaml")
# tiny.yaml in a second: overrides.
SMALL = ["encoders.vision.width=32", "encoders.vision.layers=1", "encoders.vision.heads=2", "encoders.text.width=32",
         "encoders.text.layers=1", "encoders.text.heads=2", "encoders.fusion.layers=1", "encoders.fusion.heads=2",
         "encoders.vision_proj.dim=32", "encoders.text_proj.dim=32", "streams.*.batch_size=8", "evaluate.retrieval.k=2",
         "schedule.every.*=1", "train.workers=0", "train.log_every=1", "train.checkpoint_every=2"]
TOOLS = {path.stem: path for path in sorted((ROOT / "tools").glob("*.py"))}


def tool(name: str):
    """What a tool imports, ``main``, is the command."""
    spec = importlib.util.spec_from_file_location(name, TOOLS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def children() -> set[str]:
    """Processes that this one has started and that live, or have ended and were not waited for: other tests' too."""
    return {child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()}
