"""What the sources of `xtoolkit prepare` share: their options."""

import argparse
import os
import re
from pathlib import Path

from xtoolkit.cli.command import positive
from xtoolkit.prepare.writer import Options


def source(sources, name: str, run, help: str, download: str, out: bool = True, shard_size: int | None = 1000,
           pictures: bool = True, named: bool = True) -> argparse.ArgumentParser:
    """A source with the options that it takes.

    Args:
        shard_size: samples a shard by default; None: a file a split, of any size.
        pictures: it reads pictures, so that they can be verified.
        named: its shards have a name; else they have those of their splits.
    """
    p = sources.add_parser(name, help=help, description=f"{help}. {download} The schema: docs/data.md.")
    p.add_argument("--out", type=Path, required=out, help="the folder of the shards")
    if shard_size is not None:
        p.add_argument("--shard-size", type=positive, default=shard_size, help="samples a shard (default: %(default)s)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    p.add_argument("--workers", type=positive, default=min(16, cores),
                   help="processes; the shards do not depend on them (default: a core each, %(default)s here)")
    p.add_argument("--skip-bad", action="store_true", help="count wrong records and go on; else the first one stops")
    if pictures:
        p.add_argument("--verify", action="store_true", help="decode every picture, to find those that are cut off")
    if named:
        p.add_argument("--name", type=_prefix, default="train",
                       help="what is written is called NAME-00000, or NAME (default: %(default)s)")
    p.set_defaults(run=run)
    return p


def _prefix(word: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", word):
        raise argparse.ArgumentTypeError(f"{word!r} cannot begin the name of a file: use letters, digits and . _ + -")
    return word


def options(args) -> Options:
    """The options that were given."""
    return Options(args.out, getattr(args, "shard_size", 1), args.workers, args.skip_bad, getattr(args, "verify", False), True)
