"""Measures parts of the toolkit: python tools/benchmark.py WHAT [options]; each WHAT is a file of xtoolkit/cli/benchmarks/."""

import argparse
import importlib

KINDS = ("kernels", "train", "products", "data", "attention", "linear_cross_entropy")


def main(argv=None) -> int:
    """Hands over to the benchmark named; its exit code is the answer.

    A benchmark is a module with ``HELP`` (one line), ``add_arguments(parser)`` and ``main(args) -> int``. It imports
    nothing heavy at its top, so that ``--help`` answers at once.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="kind", required=True, metavar="WHAT")
    modules = {kind: importlib.import_module(f"xtoolkit.cli.benchmarks.{kind}") for kind in KINDS}
    for kind, module in modules.items():
        module.add_arguments(subparsers.add_parser(kind, help=module.HELP, description=module.__doc__))
    args = parser.parse_args(argv)
    return modules[args.kind].main(args)
