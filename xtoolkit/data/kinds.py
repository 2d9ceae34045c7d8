"""What kind of file lies at a path, by its name and its first bytes, and whether a stream reads that kind."""

import gzip
import os
import re
import shlex
import stat
import zlib

from xtoolkit.data import limits, paths, tables

PICTURES = (".tar", ".jsonl", ".jsonl.gz", ".csv", ".tsv")  # what streams with pictures read
TEXTS = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz", ".csv", ".tsv")
LOOKED_AT = 1000  # files of a path whose first bytes are read before anything loads; the others are when they are indexed

HELD = {".tar": "a tar", ".jsonl": "JSON Lines", ".txt": "text", ".csv": "a CSV", ".tsv": "a TSV"}
# By the name, where the first bytes say no more.
NAMED = {
    ".tar": ("a tar", "`type: Pairs`, `Images` and `Regions` read it"),
    ".txt": ("plain text", "`type: Text` reads it; captions of pictures are in tars or tables, see docs/data.md"),
    ".json": ("one JSON text, not JSON Lines", "`" + paths.TOOL + " --help` lists what is prepared; a plain list of rows: "
              "`python -c 'import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]' < {file} > {out}.jsonl`"),
}


def problem(path: str, reads: tuple[str, ...], needs: tuple, name: str, images: str | None = None) -> str | None:
    """One line that says what is wrong with a path or with a file that it names, and what mends it; None: nothing.

    Args:
        path: as ``paths.resolve`` takes it. Of a URL or a pipe the name alone is looked at; ``sample://`` is not unpacked.
        reads: the endings that are read.
        needs: groups of names; a table has one of each, see ``tables``.
        name: of what reads it.
        images: the folder of the pictures that a table names; None: its own.
    """
    if path.startswith(tuple(paths.SCHEMES)):
        return paths.problem(path)
    try:
        files = paths.resolve(path, reads)
    except FileNotFoundError as error:
        return str(error)
    wrong = [line for file in files[:LOOKED_AT] if (line := _wrong(file, reads, needs, name, images))]
    more = f" (and so {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return wrong[0] + more if wrong else None


def _wrong(file: str, reads: tuple[str, ...], needs: tuple, name: str, images: str | None) -> str | None:
    ending, pictures = paths.ending(file), ".tar" in reads
    table = ending in paths.TABLES or pictures and ending != ".tar"
    if paths.is_remote(file):
        what, mend = NAMED[".tar" if ending == ".tar" else ".txt"]
        if ending not in reads:
            return f"{file}: it is {what}, and {name} reads {', '.join(reads)}: {mend}"
        return f"{file}: a table is read from a disk: download it" if table else None
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opened, a pipe would never answer
            return f"{file}: no regular file, but a pipe, a socket or a device: write what it gives to a file, or give its " \
                   "command as `pipe:COMMAND`"
        with open(file, "rb") as f:
            start = f.read(512)
    except OSError as e:
        return f"{file}: cannot be read: {e.strerror}"
    what, mend = limits.seen(start)
    fits = what == ("a tar" if ending == ".tar" else "compressed by gzip" if ending.endswith(".gz") else None)
    fits = fits or ending == ".tar" and what in (None, "UTF-16")  # a damaged or old one: indexing it tells
    if fits and ending in reads:
        if ending.endswith(".gz") and (inner := _inside(file)):
            held = HELD[ending.removesuffix(".gz")]
            return f"{file}: what it packs is {inner}, not {held}: `gunzip {shlex.quote(file)}` and look at it"
        return _table(file, needs, name, images) if table else None
    out, last = os.path.splitext(file)
    if fits or what is None:
        known = ("not compressed", "`mv {file} {out}`") if ending.endswith(".gz") and not fits else None
        by_name = ending.removesuffix(".gz") or last.lower()
        what, mend = known or NAMED.get(by_name) or (f"a `{last}` file" if last else "of no known kind", "")
    elif what.startswith("compressed"):
        suffix = mend[mend.rindex("."):-1]
        what = f"a tar {what}" if re.search(r"\.(tar\.|tgz)", os.path.basename(file).lower()) else what
        if file.lower().endswith((suffix, ".tgz")):
            mend = mend.replace(suffix, "")
        else:
            mend = f"`mv {{file}} {{file}}{suffix}`" + ("" if ending + suffix in reads else f" and {mend}")
    quoted = {"file": shlex.quote(file), "out": shlex.quote(out), "last": last, "table": "table" if pictures else "text"}
    held = HELD.get(ending.removesuffix(".gz")) if not fits and ending in reads else None
    other = f"not {held}" if held else f"and {name} reads {', '.join(reads)}"
    return f"{file}: it is {what}, {other}" + (f": {mend.format(**quoted)}" if mend else "")


def _inside(file: str) -> str | None:
    """What a .gz packs, where that is of a known kind; None also where it is damaged, which indexing it tells."""
    try:
        with gzip.open(file, "rb") as f:
            start = f.read(512)
    except (OSError, EOFError, zlib.error):
        return None
    return limits.seen(start)[0] if start else None


def _table(file: str, needs: tuple, name: str, images: str | None) -> str | None:
    """What a table's header row, or the first row of JSON Lines, lacks; or that none of the first pictures is there."""
    ending = paths.ending(file)
    try:
        with (gzip.open if ending.endswith(".gz") else open)(file, "rb") as f:
            head, found = tables.first_rows(f, ending)
    except ValueError as e:
        return f"{file}: the header row: {e}"
    if isinstance(head, list | dict) and (why := tables.lacking(head, needs)):
        examples = {tables.PICTURE: '"image": "a/b.jpg"', tables.CAPTIONS: '"caption": "a dog"'}
        example = ", ".join(shown for names, shown in examples.items() if names in needs)
        where = "header row" if ending in paths.TABLES else "first row"
        other = next((d for d in ";\t,|" if d in head[0]), None) if ending in paths.TABLES and len(head) == 1 else None
        if other:
            tool = f"{paths.TOOL} {'table' if tables.PICTURE in needs else 'text'}"
            right = tables.DELIMITERS[ending[1:]]
            why += f": its cells are apart by {other!r}, and those of a {ending} by {right!r}; `{tool}` reads both"
        return f"{file}: the {where}: {why}. {name} reads rows such as {{{example}}}"
    root = os.path.expanduser(images) if images else os.path.dirname(file) or "."
    there = [name for name in found if "\0" not in name and os.path.exists(os.path.join(root, name))]
    refused = [why for name in there if (why := tables.outside(root, name))]
    if refused and len(refused) == len(there):
        return f"{file}: its pictures are refused: {refused[0]}"
    if there or not found or not os.path.isdir(root):  # a folder that is not there is said for itself
        return None
    if all(name.startswith(("http://", "https://")) for name in found):
        return f"{file}: its pictures are URLs, such as {tables.shown(found[0])}: download them, for example by img2dataset"
    first = tables.shown(os.path.join(root, found[0]))
    return f"{file}: none of its first pictures is there, such as {first}: `images` names the folder that they lie in"
