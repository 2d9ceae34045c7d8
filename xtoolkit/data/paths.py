"""From a path in a YAML file to what it names: files, folders, globs, braces, ``sample://``, URLs, pipes. No torch."""

import fnmatch
import glob
import os
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

# What a folder holds that a stream can read, in the order in which they are looked for.
KINDS = (("*.tar",), ("metadata.jsonl",), ("metadata.csv",), ("*.jsonl", "*.jsonl.gz"), ("*.csv", "*.tsv"), ("*.txt", "*.txt.gz"))

TOOL = "xtoolkit prepare"


class Scheme(NamedTuple):
    """What answers for paths that begin with a scheme of their own."""

    resolve: Callable[[str], list[str]]  # raises FileNotFoundError with that line
    problem: Callable[[str], str | None]  # one line that says what is wrong with a path; reads names only


SCHEMES: dict[str, Scheme] = {}  # filled by who prepares such data: this room does not know how

PIPE = "pipe:"
REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
# The shards that there are, by the end of their name; in a pipe's command by the first word that ends so.
ENDINGS = (".tar", ".jsonl.gz", ".jsonl", ".txt.gz", ".txt")
TABLES = (".csv", ".tsv")  # on this machine's disks only
ENDING = re.compile(r"\.(?:tar|(?:jsonl|txt)(?:\.gz)?)(?![\w.])", re.IGNORECASE)
OURS = (".idx", ".unpacked")  # what the reader itself puts beside shards


# How a corpus is prepared: of the words that a word of the path begins with, the first that fit win. ``{out}`` is the folder of
# the path that is missing.
HINTS = (
    (("glue",), "glue --root glue_data --out data/glue"),
    (("vqa",), "vqa --questions QUESTIONS.json --annotations ANNOTATIONS.json --name SPLIT --out {out}"),
    (("nlvr",), "nlvr2 --input train.json dev.json test1.json --images DIR --out {out}"),
    (("snli",), "snli-ve --input snli_ve_train.jsonl snli_ve_dev.jsonl snli_ve_test.jsonl --images DIR --out {out}"),
    (("food101", "cifar", "cars", "aircraft", "dtd", "pets", "flowers", "mnist", "stl10", "svhn", "country211", "gtsrb", "pcam",
      "fer2013", "caltech101", "eurosat", "sun397"), "torchvision --set SET --root DIR --out {out}"),
    (("refcoco", "refclef"), "refcoco --refs 'refs(unc).p' --instances instances.json --images DIR --out {out}"),
    (("objects365",), "coco-objects --annotations zhiyuan_objv2_train.json --images DIR --out {out}"),
    (("objects",), "coco-objects --annotations INSTANCES.json --images DIR --exclude-coco-karpathy dataset_coco.json "
                   "--out {out}"),
    (("openimages", "oid"), "openimages --boxes oidv6-train-annotations-bbox.csv --classes class-descriptions-boxable.csv "
                            "--images DIR --out {out}"),
    (("coco", "mscoco", "karpathy"), "coco --annotations dataset_coco.json --images DIR --out {out}"),
    (("vg", "visual"), "vg --image-data image_data.json --regions region_descriptions.json --objects objects.json --images DIR "
                       "--exclude-coco-karpathy dataset_coco.json --out {out}"),
    (("cc3m", "cc12m", "conceptual", "sbu", "laion", "coyo", "web"), "img2dataset --shards DOWNLOADED --out {out}"),
    (("imagenet", "image"), "images --images DIR --out {out}"),
    (("c4",), "text --input 'c4-train.*.json.gz' --out {out}"),
    (("roberta", "wiki", "book", "openwebtext", "ccnews", "cc", "stories", "text"), "text --input FILES --out {out}"),
)


def resolve(path: str, reads: tuple[str, ...] | None = None, hints: bool = True) -> list[str]:
    """The files that a path names, sorted, each once.

    Args:
        path: a file; a folder, of which the first of KINDS is taken that it has; a pattern with ``*``, ``?``, ``[...]``,
            ``{00000..00042}`` or ``{a,b}``; ``sample://picturebook/NAME``, which is unpacked and prepared on first use (the
            tokenizer of a pack resolves to its folder); a URL or ``pipe:COMMAND``, of which only the braces are expanded.
        reads: the endings that are looked for in a folder; None: all.
        hints: say which command prepares what is missing.

    Raises:
        FileNotFoundError: one line that says what is missing, and what prepares it.
    """
    if scheme := _scheme(path):
        return scheme.resolve(path)
    if not path.strip():
        raise FileNotFoundError("empty path")
    try:
        names = expand_braces(path if is_remote(path) else os.path.expanduser(path))
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None
    if is_remote(path):
        if trouble := next(filter(None, map(_malformed, names)), None):
            raise FileNotFoundError(trouble)
        return sorted(set(names))
    mend = lambda name: f"; {_hint(name)}" if hints else ""
    found = {name: _on_disk(name, reads, mend) for name in names}
    missing = [name for name in names if not found[name]]
    if missing and len(names) > 1:
        raise FileNotFoundError(f"{path}: {len(missing)} of {len(names)} files are missing, the first is {missing[0]}"
                                f"{mend(missing[0])}")
    if missing:
        raise FileNotFoundError(f"{path}: no such file{mend(path)}")
    return sorted({file for files in found.values() for file in files})


def folder(path: str) -> str:
    """The folder, or single file, that a path names: a place on this machine's disks, or what ``sample://`` resolves to."""
    return resolve(path)[0] if _scheme(path) else os.path.expanduser(path)


def no_folder(path: str, files: bool = False) -> str | None:
    """A line where ``folder`` can give no folder, or no file either (``files``); of ``sample://`` the name alone is looked at."""
    if scheme := _scheme(path):
        return scheme.problem(path)
    there = os.path.exists if files else os.path.isdir
    return None if there(os.path.expanduser(path)) else f"{path}: no such {'file or ' * files}folder"


def problem(path: str) -> str | None:
    """The line of ``resolve``; None where all is there.

    Reads folders only: a ``sample://`` path is held against the list of names, and nothing is unpacked. URLs and pipes
    are held against their syntax alone: a recipe is often checked where the network of the training machines is not.
    """
    if scheme := _scheme(path):
        return scheme.problem(path)
    try:
        resolve(path)
    except FileNotFoundError as error:
        return str(error)
    return None


def is_remote(path: str) -> bool:
    """Whether a path is a URL or a pipe: not on a disk of this machine, so that it is read through a cache."""
    return REMOTE.match(path) is not None and _scheme(path) is None


def ending(path: str) -> str:
    """Which of ``ENDINGS`` and ``TABLES`` a shard is. A pipe whose command names none gives a tar; another path ''."""
    if path.startswith(PIPE):
        found = ENDING.search(path)
        return found.group().lower() if found else ".tar"
    name = (urlsplit(path).path if is_remote(path) else path).lower()
    return next((e for e in ENDINGS + TABLES if name.endswith(e)), "")


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` -> three names, ``{train,val}.tar`` -> two; several braces multiply, none is nested.

    Raises:
        ValueError: an open brace, or a range that is none or runs backwards.
    """
    before, brace, rest = pattern.partition("{")
    inner, closed, after = rest.partition("}")
    if not brace:
        if "}" in pattern:
            raise ValueError(f"{pattern}: `}}` without `{{`")
        return [pattern]
    if not closed or "{" in inner:
        raise ValueError(f"{pattern}: `{{` is not closed; write {{00000..00042}} or {{a,b}}")
    return [before + choice + tail for choice in _choices(inner, pattern) for tail in expand_braces(after)]


def _choices(inner: str, pattern: str) -> list[str]:
    first, dots, last = inner.partition("..")
    if not dots and "," in inner:
        return inner.split(",")
    if not dots:
        raise ValueError(f"{pattern}: {{{inner}}} is neither a range, {{00000..00042}}, nor a list, {{a,b}}")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"{pattern}: {{{inner}}} is not a range of numbers such as {{00000..00042}}")
    if int(first) > int(last):
        raise ValueError(f"{pattern}: {{{inner}}} runs backwards")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [str(number).zfill(width) for number in range(int(first), int(last) + 1)]


def _on_disk(name: str, reads: tuple[str, ...] | None, mend) -> list[str]:
    """The files of a name without braces; of a folder those of the first of KINDS that it has, in any case and not hidden."""
    if not os.path.isdir(name):
        return [name] if os.path.exists(name) else \
            _there([f for f in glob.glob(name, recursive=True) if not f.endswith(OURS)])
    names = [n for n in os.listdir(name) if not n.startswith(".") and (reads is None or ending(n) in reads)]
    for patterns in KINDS:
        files = [os.path.join(name, n) for n in names if any(fnmatch.fnmatchcase(n.lower(), p) for p in patterns)]
        if found := _there(files):
            return found
    raise FileNotFoundError(f"{name}: the folder has no *{', *'.join(reads or ENDINGS + TABLES)} in it{mend(name)}")


def _there(names: list[str]) -> list[str]:
    """Those of some names that are files. Raises FileNotFoundError where a link leads nowhere, as git-annex leaves them."""
    if lost := [name for name in sorted(names) if os.path.islink(name) and not os.path.exists(name)]:
        raise FileNotFoundError(f"{lost[0]}: a link to {os.readlink(lost[0])}, which is not there ({len(lost)} such of "
                                f"{len(names)}): fetch it, for example by `git annex get`, or remove the link")
    return [name for name in names if os.path.isfile(name)]


def _hint(path: str) -> str:
    """The command that prepares what a path names, guessed from the words in it."""
    base = os.path.basename(path)
    out = (os.path.dirname(path) or ".") if "." in base or "{" in base or glob.has_magic(base) else path
    words = re.split(r"[^a-z0-9]+", path.lower())
    command = next((command for known, command in HINTS if any(word.startswith(known) for word in words)), None)
    return f"prepare it with: {TOOL} {command.format(out=out)}" if command else f"`{TOOL} --help` lists what can be prepared"


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
    if ending(name) in TABLES:
        return f"{name}: a table is read from a disk: download it, or write shards of it with `{TOOL} table`"
    if not ending(name):
        return (f"{name}: ends in none of {', '.join(ENDINGS)}; what is packed otherwise can be read through a "
                "pipe: `pipe:curl -sf URL | gunzip`")
    return None if parts.scheme in ("http", "https") else _no_backend(name, parts.scheme)


def _no_backend(name: str, scheme: str) -> str | None:
    from fsspec.registry import get_filesystem_class, known_implementations, registry  # only here: this takes a second

    from xtoolkit.registry import nearest

    if scheme not in registry and scheme not in known_implementations:
        return f"{name}: unknown scheme `{scheme}`{nearest(scheme, ('http', 'https', *known_implementations))}"
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        return f"{name}: {error}"
    return None


def _scheme(path: str) -> Scheme | None:
    return next((scheme for name, scheme in SCHEMES.items() if path.startswith(name)), None)
