"""Whether weights or a tokenizer can be had, asked before anything heavy is imported. No torch."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

# Weights that are on no hub in the form that a recipe wants, by file name: where their authors publish them.
PUBLISHED = {
    "beitv2_base_patch16_224_pt1k.pth": "the BEiT v2 page of github.com/microsoft/unilm (beit2, pre-trained models)",
}

RUNS = "outputs"  # where recipes put their runs


def is_path(name: str) -> bool:
    """Whether a name means a local file or folder: it exists, starts like a path, or ends like a weight file."""
    return os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1 \
        or name.endswith((".pt", ".pth", ".bin", ".safetensors", ".json")) \
        or name.split("/")[0] in ("weights", "checkpoints", RUNS)


def missing(name: str, key: str, owner: str = "") -> str | None:
    """What keeps ``name`` from being loaded, with the way to mend it; None if nothing does.

    Args:
        name: a local path or a hub name.
        key: the recipe's key, for the command that mends it: ``encoders.text.init``.
        owner: the organisation whose names need no prefix: ``timm``.
    """
    if is_path(name):
        if os.path.exists(os.path.expanduser(name)):
            return None
        source = PUBLISHED.get(os.path.basename(name))
        ways = [f"download it from {source} and put it there"] if source else []
        if name.split("/")[0] == RUNS:
            ways = ["a run's folder, by its name: train that recipe first"]
        ways += [f"or start without it: {key}=null"] if key != "tokenizer" else \
            ["name a folder with tokenizer.json, a hub's, or sample://picturebook/tokenizer"]
        return f"{name}: no such file; {', '.join(ways)}".replace("; or", ";")
    if cached(name) or _reachable():
        return None
    repository = name.removeprefix("hf-hub:")
    folder = f"weights/{repository.split('/')[-1]}"
    if owner and "/" not in repository:
        repository = f"{owner}/{repository}"
    return (f"`{name}` is not in the local hub cache and the hub cannot be reached; on a machine with network run "
            f"`hf download {repository} --local-dir {folder}`, copy the folder here, and set {key}={folder}")


def missing_model(path: str) -> str | None:
    """What keeps a top-level `init:` from being loaded, with the way to mend it; None if nothing does.

    Args:
        path: a file with a whole model's weights; or a run's folder, one of its checkpoints, or one that holds such a file.
    """
    place = Path(path).expanduser()
    weights = (".safetensors", ".bin", ".pt", ".pth", ".th")
    if not place.exists():
        first = ("convert or fetch it first" if place.suffix in weights else
                 "if that is a run's, train it first (`make demo` trains the small one, into outputs/)")
        return (f"{path}: no such file or folder; `init` names a file that `xtoolkit convert` wrote, or the output folder of a "
                f"run: {first}; a name on a hub belongs on an encoder (encoders.X.init); or start without it: init=null")
    if place.is_dir() and not ((place / ".metadata").is_file() or any(place.glob("checkpoints/step_*"))
                               or any(f.suffix in weights for f in place.iterdir())):
        return (f"{path}: holds neither a finished checkpoint nor weights; `init` names a run's output folder, a checkpoint "
                "below it, or a file of weights")
    return None


def no_model(path: str) -> str | None:
    """Why a file that is there cannot be a model's weights: by its first bytes it is neither safetensors nor torch's."""
    place = Path(path).expanduser()
    if not place.is_file():
        return None
    with open(place, "rb") as file:
        begins = file.read(9)
    if not begins or begins[:2] == b"PK" or begins[:1] == b"\x80" or begins[8:] == b"{":
        return None
    return (f"{path}: no file of weights: neither safetensors nor torch's; `init` names a run's output folder, a checkpoint "
            "below it, or a file that `xtoolkit convert` wrote")


def cached(name: str) -> bool:
    """Whether the hub's cache on this machine holds a snapshot of ``name``."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    name = name.removeprefix("hf-hub:")
    names = [name] if "/" in name else [name, f"*/{name}"]  # `roberta-base` may be stored under the organisation that owns it
    return any(any(hub.glob("models--" + n.replace("/", "--") + "/snapshots/*/*")) for n in names)


def cached_first(ask: Callable):
    """What ``ask(local_files_only)`` gives: from the cache on this machine, and from the network only what is not there."""
    try:
        return ask(True)
    except (OSError, ValueError):
        return ask(False)


def fetched(name: str) -> Path:
    """The folder in the hub's cache with the weights of ``name``, downloaded where they are not there.

    Raises:
        OSError: the hub does not answer for it, or it holds no weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def ask(local_files_only):
        for ending in (".safetensors", ".bin"):
            folder = Path(snapshot_download(name, allow_patterns=[f"*{ending}"], local_files_only=local_files_only))
            if any(folder.glob(f"*{ending}")):
                return folder
        raise OSError(f"{name} holds neither *.safetensors nor *.bin")

    try:
        return cached_first(ask)
    except HFValidationError as error:
        raise OSError(str(error)) from error


def _reachable() -> bool:
    """A connection to the hub within two seconds; behind a proxy the loader is left to try."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    if os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=2).close()
    except OSError:
        return False
    return True
