"""Measures parts of the toolkit: xtoolkit benchmark WHAT [options]; each WHAT is a file of xtoolkit/cli/benchmarks/."""

import importlib

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
    args = parser.parse_args(argv)
    return modules[args.kind].main(args)
