"""Runs a recipe's evaluations on its folder's best checkpoint, if `train.keep_best` kept one, else on the newest:
xtoolkit evaluate --config xfm/tiny.yaml [key=value ...]

A recipe without streams is evaluated with the weights that its `init` names: ... --config xfm/finetune/probe.yaml init=RUN
"""

from xtoolkit.cli.command import command, recipe_parser
from xtoolkit.cli.train import start


@command
def main(argv=None) -> int:
    parser = recipe_parser("evaluate", __doc__)
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="this evaluation alone; may be repeated")
    args = parser.parse_intermixed_args(argv)
    return start(args.config, args.overrides, "evaluate", args.only)
