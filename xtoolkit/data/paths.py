"""From a path in a YAML file to what it names: files, folders, globs, braces, ``sample://``, URLs, pipes. No torch."""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

# What a folder holds that a stream can read, in the order in which they are looked for.
KINDS = (("*.tar",), ("*.jsonl", "*.jsonl.gz"), ("*.txt",))

TOOL = "xtoolkit prepare"

@dataclass(frozen=True)
class Scheme:
    """What answers for paths that begin with a scheme of their own.

    Attributes:
        resolve: path -> files.
        problem: path -> a line that says what is wrong with it, or None; reads names only.
    """

    resolve: Callable[[str], list[str]]
    problem: Callable[[str], str | None]


SCHEMES: dict[str, Scheme] = {}  # filled by who prepares such data: this room does not know how

FOLDER = "/."  # a path that a dataset reads as a folder, whatever is in it, ends so for ``problem``
PIPE = "pipe:"
REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
# The shards that there are, by the end of their name; in a pipe's command by the first word that ends so.
ENDINGS = (".tar", ".jsonl.gz", ".jsonl", ".txt")
ENDING = re.compile(r"\.(?:tar|jsonl\.gz|jsonl|txt)(?![\w.])")


@dataclass(frozen=True)
class Hint:
    """How a corpus is prepared; a path is of it where a word of the path begins with one of ``words``."""

    words: tuple
    command: str


# The first that fits wins. ``{out}`` is the folder of the path that is missing.
HINTS = (
    Hint(("refcoco", "refclef"),
         TOOL + " refcoco --refs 'refs(unc).p' --instances instances.json --images DIR --out {out}"),
    Hint(("objects365",), TOOL + " coco-objects --annotations zhiyuan_objv2_train.json --images DIR --out {out}"),
    Hint(("objects",), TOOL + " coco-objects --annotations INSTANCES.json --images DIR"
                              " --exclude-coco-karpathy dataset_coco.json --out {out}"),
    Hint(("openimages", "oid"), TOOL + " openimages --boxes oidv6-train-annotations-bbox.csv"
                                       " --classes class-descriptions-boxable.csv --images DIR --out {out}"),
    Hint(("coco", "mscoco", "karpathy"), TOOL + " coco --annotations dataset_coco.json --images DIR --out {out}"),
    Hint(("vg", "visual"),
         TOOL + " vg --image-data image_data.json --regions region_descriptions.json --objects objects.json"
                " --images DIR --exclude-coco-karpathy dataset_coco.json --out {out}"),
    Hint(("cc3m", "cc12m", "conceptual", "sbu", "laion", "coyo", "web"),
         TOOL + " img2dataset --shards DOWNLOADED --out {out}"),
    Hint(("imagenet", "image"), TOOL + " images --images DIR --out {out}"),
    Hint(("c4",), TOOL + " text --input 'c4-train.*.json.gz' --out {out}"),
    Hint(("roberta", "wiki", "book", "openwebtext", "ccnews", "cc", "stories", "text"),
         TOOL + " text --input FILES --out {out}"),
)


def resolve(path: str) -> list[str]:
    """The files that a path names, sorted, each once.

    Args:
        path: a file; a folder (its ``*.tar``, else ``*.jsonl[.gz]``, else ``*.txt``); a pattern with ``*``, ``?``,
            ``[...]``, ``{00000..00042}`` or ``{a,b}``; ``sample://picturebook/NAME``, which is unpacked and prepared
            on first use (the tokenizer of a pack resolves to its folder); a URL or ``pipe:COMMAND``, of which only
            the braces are expanded.

    Raises:
        FileNotFoundError: with the line of ``problem``.
    """
    if scheme := _scheme(path):
        return scheme.resolve(path)
    files, trouble = _remote(path) if is_remote(path) else _find(path)
    if trouble:
        raise FileNotFoundError(trouble)
    return files


def problem(path: str) -> str | None:
    """One line that says what of a path is missing and what command prepares it; None where it is all there.

    Reads folders only: a ``sample://`` path is held against the list of names, and nothing is unpacked. URLs and pipes
    are held against their syntax alone: a recipe is often checked where the network of the training machines is not.
    """
    if scheme := _scheme(path):
        return scheme.problem(path)
    if path.endswith(FOLDER):
        folder = os.path.expanduser(path.removesuffix(FOLDER))
        return None if os.path.isdir(folder) else f"{folder}: no such folder; {hint(folder)}"
    return (_remote(path) if is_remote(path) else _find(path))[1]


def is_remote(path: str) -> bool:
    """Whether a path is a URL or a pipe: not on a disk of this machine, so that it is read through a cache."""
    return REMOTE.match(path) is not None and _scheme(path) is None


def ending(path: str) -> str:
    """Which of ``ENDINGS`` a shard is. A pipe whose command names none gives a tar; another path without one is ''."""
    if path.startswith(PIPE):
        found = ENDING.search(path)
        return found.group() if found else ".tar"
    name = urlsplit(path).path if is_remote(path) else path
    return next((e for e in ENDINGS if name.endswith(e)), "")


def hint(path: str) -> str:
    """The command that prepares what a path names, guessed from the words in it."""
    names_file = "." in os.path.basename(path) or _has_magic(os.path.basename(path))
    out = (os.path.dirname(path) or ".") if names_file else path
    words = re.split(r"[^a-z0-9]+", path.lower())
    for known in HINTS:
        if any(word.startswith(known.words) for word in words):
            return "prepare it with: " + known.command.format(out=out)
    return f"`{TOOL} --help` lists what can be prepared"


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` -> three names, ``{train,val}.tar`` -> two; several braces multiply, none is nested.

    Raises:
        ValueError: an open brace, or a range that is none or runs backwards.
    """
    start = pattern.find("{")
    if start < 0:
        if "}" in pattern:
            raise ValueError(f"{pattern}: `}}` without `{{`")
        return [pattern]
    end = pattern.find("}", start)
    inner = pattern[start + 1:end]
    if end < 0 or "{" in inner:
        raise ValueError(f"{pattern}: `{{` is not closed; write {{00000..00042}} or {{a,b}}")
    rest = expand_braces(pattern[end + 1:])
    return [pattern[:start] + choice + tail for choice in _choices(inner, pattern) for tail in rest]


def _choices(inner: str, pattern: str) -> list[str]:
    first, dots, last = inner.partition("..")
    if not dots:
        if "," not in inner:
            raise ValueError(f"{pattern}: {{{inner}}} is neither a range, {{00000..00042}}, nor a list, {{a,b}}")
        return inner.split(",")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"{pattern}: {{{inner}}} is not a range of numbers such as {{00000..00042}}")
    if int(first) > int(last):
        raise ValueError(f"{pattern}: {{{inner}}} runs backwards")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _find(path: str) -> tuple[list[str], str | None]:
    """The files of a path on disk, and what is wrong where there is something wrong."""
    if not path.strip():
        return [], "empty path"
    try:
        names = expand_braces(os.path.expanduser(path))
    except ValueError as error:
        return [], str(error)
    files, missing = [], []
    for name in names:
        if os.path.isdir(name):
            found = _in_folder(name)
            if not found:
                return [], f"{name}: the folder has no *.tar, *.jsonl, *.jsonl.gz or *.txt in it; {hint(name)}"
        else:
            found = [name] if os.path.exists(name) else _glob(name)
        files += found
        if not found:
            missing.append(name)
    if missing and len(names) > 1:
        return [], (f"{path}: {len(missing)} of {len(names)} files are missing, the first is {missing[0]}; "
                    f"{hint(missing[0])}")
    if missing:
        return [], f"{path}: no such file; {hint(path)}"
    return sorted(set(files)), None


def _remote(path: str) -> tuple[list[str], str | None]:
    """The shards that a URL or a pipe with braces names, and what is wrong with how it is written."""
    try:
        names = expand_braces(path)
    except ValueError as error:
        return [], str(error)
    for name in names:
        if trouble := _malformed(name):
            return [], trouble
    return sorted(set(names)), None


def _malformed(name: str) -> str | None:
    if name.startswith(PIPE):
        return None if name.removeprefix(PIPE).strip() else f"{name} has no command; write `pipe:cat data/00000.tar`"
    try:
        parts = urlsplit(name)
        parts.port
    except ValueError as error:
        return f"{name}: no URL: {error}"
    if not parts.netloc:
        return f"{name}: no host; write `https://HOST/PATH.tar`"
    if "*" in name:
        return f"{name}: a URL cannot be listed; name its shards: {{00000..00331}} instead of `*`"
    if "@" in parts.netloc and parts.scheme in ("http", "https"):
        return f"{name}: a password would stand in every log; use `pipe:curl -sfn URL`, which reads ~/.netrc"
    if not ending(name):
        return (f"{name}: ends in none of {', '.join(ENDINGS)}; what is packed otherwise can be read through a "
                "pipe: `pipe:curl -sf URL | gunzip`")
    return None if parts.scheme in ("http", "https") else _no_backend(name, parts.scheme)


def _no_backend(name: str, scheme: str) -> str | None:
    """What is missing to read a scheme other than http(s). Looks for the package of its file system, imports none."""
    import importlib.util
    from fsspec.registry import known_implementations, registry  # only here: this takes a second

    from xtoolkit.registry import nearest

    if scheme in registry:
        return None
    if scheme not in known_implementations:
        return f"{name}: unknown scheme `{scheme}`{nearest(scheme, ('http', 'https', *known_implementations))}"
    known = known_implementations[scheme]
    if importlib.util.find_spec(known["class"].split(".")[0]) is None:
        return f"{name}: {known.get('err') or 'install ' + known['class'].split('.')[0]}"
    return None


def _in_folder(folder: str) -> list[str]:
    for patterns in KINDS:
        found = [f for pattern in patterns for f in _glob(os.path.join(glob.escape(folder), pattern))]
        if found:
            return found
    return []


def _glob(pattern: str) -> list[str]:
    return [f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f)]


def _has_magic(path: str) -> bool:
    return glob.has_magic(path) or "{" in path


def _scheme(path: str) -> Scheme | None:
    return next((scheme for name, scheme in SCHEMES.items() if path.startswith(name)), None)
