"""Runs a recipe's evaluations on the newest checkpoint of its folder: xtoolkit evaluate --config xfm/tiny.yaml [key=value ...]"""

from xtoolkit.cli.command import command, recipe_parser
from xtoolkit.cli.train import start


@command
def main(argv=None) -> int:
    args = recipe_parser("evaluate", __doc__).parse_intermixed_args(argv)
    return start(args.config, args.overrides, "evaluate")
