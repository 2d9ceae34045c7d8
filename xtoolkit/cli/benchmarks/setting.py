"""The recipe that a benchmark measures: as it is, or over made-up data, so that nothing need be there."""

import json

from xtoolkit.cli.command import Once

# Captions of the made-up pairs and regions: cleaned captions of COCO and Visual Genome have about as many tokens.
SHORTEST, LONGEST = 8, 16
SAMPLES = 4096
TOKENIZER = "sample://picturebook/tokenizer"
MADE_UP = {frozenset({"text"}): "SyntheticText", frozenset({"image"}): "SyntheticImages",
           frozenset({"image", "text"}): "SyntheticPairs", frozenset({"image", "text", "region"}): "SyntheticRegions"}


def add_arguments(parser) -> None:
    """Options that say what is measured."""
    parser.add_argument("--config", required=True, metavar="F", action=Once, help="the recipe (YAML)")
    parser.add_argument("--stream", action="append", metavar="NAME",
                        help="only this stream; may be repeated (default: all)")
    parser.add_argument("--synthetic", action="store_true",
                        help="made-up data in the place of each stream's own (captions of "
                             f"{SHORTEST} to {LONGEST} tokens, texts as long as the recipe allows) and the sample "
                             "pack's tokenizer: nothing is downloaded")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="torch threads (default: the recipe's, or torch's choice)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")


def read_recipe(args):
    """The recipe that the options name, without evaluations; weights stay random, so that no file of them is asked for.

    Raises:
        ConfigError: every mistake of the recipe or the options.
    """
    from xtoolkit.cli import recipes
    from xtoolkit.registry import ConfigError, nearest

    changes = [*args.overrides, "evaluate=null"]
    if args.threads is not None:
        changes.append(f"train.threads={args.threads}")
    recipe = recipes.read(args.config, changes, missing_files=False)
    if args.synthetic:
        recipe = recipes.read(args.config, changes + made_up(recipe), missing_files=False)
    for name in args.stream or ():
        if name not in recipe.streams:
            raise ConfigError(f"--stream: no stream `{name}` with an active loss{nearest(name, recipe.streams)}")
    return recipe


def made_up(recipe) -> list[str]:
    """Overrides that put made-up data of the same fields, masks and lengths in the place of each stream's own."""
    from xtoolkit.weights.hub import is_path
    from xtoolkit.registry import DATASET_REGISTRY, ConfigError, schema

    changes = []
    if "://" not in recipe.tokenizer and not is_path(recipe.tokenizer):
        changes.append(f"tokenizer={TOKENIZER}")
    for name, stream in recipe.streams.items():
        cls = DATASET_REGISTRY.get(stream.data["type"])
        if stream.data["type"] in MADE_UP.values():
            continue
        if stream.fields not in MADE_UP:
            raise ConfigError(f"--synthetic: stream `{name}` has batches of $" + ", $".join(sorted(stream.fields))
                              + ", for which there is no made-up dataset")
        made = DATASET_REGISTRY.get(MADE_UP[stream.fields])
        known = {k.name: k.default for k in schema(cls).values()} | stream.data
        block = {"type": made.__name__, "size": SAMPLES}
        block |= {key: known[key] for key in ("mask", "image_mask", "max_per_image")
                  if key in schema(made) and key in known and known[key] is not None}
        if "text" in stream.fields:
            most = known["max_tokens"] if "max_tokens" in known else LONGEST
            block["tokens"] = min(most, LONGEST) if "image" in stream.fields else most
            if "image" in stream.fields:
                block["min_tokens"] = min(SHORTEST, block["tokens"])
        changes.append(f"streams.{name}.data={json.dumps(block)}")
    return changes
