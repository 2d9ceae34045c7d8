"""Measures parts of the toolkit: xtoolkit benchmark WHAT [options]; each WHAT is a file of xtoolkit/cli/benchmarks/."""

import importlib
import re
import sys

from xtoolkit.cli.command import command, parser as make_parser

KINDS = ("kernels", "train", "products", "data", "attention", "linear_cross_entropy")


@command
def main(argv=None) -> int:
    """Hands over to the benchmark named; its exit code is the answer.

    A benchmark is a module with ``HELP`` (one line), ``add_arguments(parser)`` and ``main(args) -> int``. It imports
    nothing heavy at its top, so that ``--help`` answers at once.
    """
    parser = make_parser("benchmark", __doc__)
    subparsers = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    modules = {kind: importlib.import_module(f"xtoolkit.cli.benchmarks.{kind}") for kind in KINDS}
    for kind, module in modules.items():
        module.add_arguments(subparsers.add_parser(kind, help=module.HELP, description=module.__doc__))
    args = parser.parse_args(in_front(sys.argv[1:] if argv is None else argv))
    return modules[args.kind].main(args)


def in_front(argv: list[str]) -> list[str]:
    """Arguments with each ``key=value`` straight after WHAT: an option that takes several words would take it too."""
    changes = [word for word in argv[1:] if re.match(r"[A-Za-z_*][\w.*]*=", word)]
    return [*argv[:1], *changes, *(word for word in argv[1:] if word not in changes)]
