"""The tools of the checkout, for tests that call them."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {path.stem: path for path in sorted((ROOT / "tools").glob("*.py"))}


def tool(name: str):
    """What a tool imports, ``main``, is the command."""
    spec = importlib.util.spec_from_file_location(name, TOOLS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
