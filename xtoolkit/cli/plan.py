"""Prints what a recipe will do: passes per stream with the losses that read each, cut edges, parameters, GFLOPs.

Nothing is loaded: neither weights, nor data, nor the tokenizer.
"""

import argparse
import dataclasses
import json
import sys

from xtoolkit.registry import ConfigError


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="F", help="the recipe (YAML)")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--length", type=int, metavar="L",
                        help="tokens a text, specials included (default: each stream's max_tokens)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args(argv)
    try:
        from xtoolkit.recipe import load
        recipe = load(args.config, args.overrides, missing_files=False)
        from xtoolkit.plan import as_text, make_plan
        plan = make_plan(recipe, args.length)
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    print(json.dumps(dataclasses.asdict(plan), indent=2) if args.json else as_text(plan))
    return 0
