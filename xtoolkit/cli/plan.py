"""Prints what a recipe will do: passes per stream with the losses that read each, cut edges, parameters, GFLOPs.

Nothing is loaded: neither weights, nor data, nor the tokenizer.
"""

import dataclasses
import json

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, recipe_parser


@command
def main(argv=None) -> int:
    parser = recipe_parser("plan", __doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--length", type=int, metavar="L",
                        help="tokens a text, specials included (default: each stream's max_tokens)")
    args = parser.parse_intermixed_args(argv)
    recipe = recipes.read(args.config, args.overrides, missing_files=False)
    from xtoolkit.plan import make_plan

    plan = make_plan(recipe, args.length)
    print(json.dumps(dataclasses.asdict(plan), indent=2) if args.json else plan)
    return 0
