"""What a run ran on: versions, commit, machine. Read without importing the packages it names."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch", "torchvision", "xtoolkit", "timm", "transformers", "tokenizers", "triton", "numpy", "pillow")


# Turns that a thread of OpenMP spins at the end of a parallel region before it sleeps.
SPIN = "1000"
# Shapes whose matrix products torch (ideep) and oneDNN keep ready.
SHAPES = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}


def share_processors() -> None:
    """Keeps OpenMP's threads from spinning for long where they wait; call it before torch is imported, later it does nothing.

    By default GNU's OpenMP, which torch's wheels bring, spins 300,000 turns, about a millisecond: where another process
    holds one of the cores, the others burn their time waiting for the thread that does not run. 1000 is what it takes by
    itself once it has more threads than cores; it cannot see other processes. What the user has set stays.

    tiny.yaml on two cores, samples/s at 1000, 20000 and the default of 300000: 363 to 387, 376 to 430 and 346 to 428 with
    nothing else running, 240, 89 and 130 beside one busy process. On a machine of one's own GOMP_SPINCOUNT=300000 may give
    a tenth more.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN


def keep_few_shapes() -> None:
    """Bounds what oneDNN remembers of shapes that it has met; call it before torch is imported, later it does nothing.

    On a CPU torch keeps, for each shape of a matrix product, the code made for it and workspaces: 1024 of each by default.
    Texts are padded to the longest of their batch, so a run meets new shapes for hours and its memory grows with them: the
    peak of tiny.yaml from 1.96 to 2.35 GB between steps 40 and 240; with these bounds by 1 to 3 % in 350 steps, at the same
    speed. What the user has set stays.
    """
    for name, shapes in SHAPES.items():
        os.environ.setdefault(name, shapes)


def versions() -> dict[str, str | None]:
    """Version of Python and of each package; None for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_hash() -> str | None:
    """Commit of the checkout that xtoolkit is imported from, ``+changes`` if files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device) -> dict:
    """The host as far as it bears on speed and numbers. ``device`` is the torch device of the run."""
    import torch

    found = {"system": platform.platform(), "cpu": processor(), "cores": os.cpu_count(),
             "threads": torch.get_num_threads(), "device": str(device)}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "gpus": torch.cuda.device_count(),
                  "cuda": torch.version.cuda}
    return found


def command() -> str:
    """The command line as typed, as far as Python knows it."""
    return " ".join([Path(sys.executable).name, *sys.argv])


def _git(root, *words):
    asked = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def processor() -> str | None:
    """The name of this machine's processor; None where nothing tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None
