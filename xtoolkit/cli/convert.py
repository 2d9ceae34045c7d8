"""Converts weights: xtoolkit convert --config F --from PROJECT|beitv2|roberta FILE OUT.safetensors

Into the toolkit:
  --from PROJECT  the checkpoint that the project's authors released -> a whole model, for a recipe's top-level `init:`
  --from beitv2   unilm's, timm's or transformers' BEiTv2            -> the image encoder alone, for `encoders.X.init:`
  --from roberta  Hugging Face's RoBERTa                             -> the text encoder alone, for `encoders.X.init:`
Out of it (FILE: a whole model's file, a run's output folder or one of its checkpoints):
  --to PROJECT    the released names; OUT.safetensors, or OUT.th for the released code
  --to hf         OUT/text for transformers and OUT/vision for timm
PROJECT: one of the toolkit's projects or plugins that has a release.py.

Every name is placed, or listed with the reason why it is dropped; whatever does not fit is listed, and nothing is written.
"""

import sys
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import Once, command, parser as make_parser
from xtoolkit.cli.releases import release_files, releases
from xtoolkit.registry import ConfigError


@command
def main(argv=None) -> int:
    projects, parser = release_files(), make_parser("convert", __doc__)
    parser.add_argument("--config", required=True, metavar="F", action=Once, help="the recipe whose model is meant (YAML)")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=(*projects, "beitv2", "roberta"), help="what FILE is")
    way.add_argument("--to", dest="target", choices=(*projects, "hf"), help="what OUT shall be")
    parser.add_argument("--allow-missing", action="append", default=[], metavar="PATTERN",
                        help="names of the model that the source may lack, e.g. 'losses.bbp.*'; may be repeated")
    parser.add_argument("--allow-unexpected", action="append", default=[], metavar="PATTERN",
                        help="names of the source that may be left out; may be repeated")
    parser.add_argument("file", metavar="FILE", help="a file (safetensors or torch) or a folder")
    parser.add_argument("out", metavar="OUT", help="what is written; must not exist")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args(argv)
    recipe = recipes.read(args.config, args.overrides, missing_files=False)
    from xtoolkit.weights.writing import refuse_existing
    from xtoolkit.weights.files import WeightsError
    from xtoolkit.engine.checkpoint import CheckpointError
    try:
        refuse_existing(args.out)
        print((bring_in if args.source else take_out)(recipe, args))
    except (ConfigError, WeightsError, CheckpointError, OSError) as e:
        print(f"xtoolkit convert: {e}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


def bring_in(recipe, args) -> str:
    """--from: reads, converts, verifies against the model of the recipe, writes; returns the report."""
    from xtoolkit.weights import beitv2, roberta
    from xtoolkit.weights.files import read_weights, unwrap
    from xtoolkit.weights.formats import recognise
    from xtoolkit.weights.parts import only
    from xtoolkit.weights.report import ConversionError
    from xtoolkit.weights.writing import verify, write_tensors

    ways = {name: (release.from_release, None) for name, release in releases().items()} | {
        "roberta": (roberta.from_roberta, "RoBERTa"),
        "beitv2": (lambda state, recipe, allow: beitv2.from_beitv2(state, recipe), "BEiTv2")}
    convert, kind = ways[args.source]
    state = unwrap(read_weights(args.file), args.file)
    known = recognise(state)
    if known is not None and known.source != args.source:
        raise ConversionError(f"{args.file}: holds {known.what}, not what --from {args.source} reads; "
                              f"{known.advice(args.file)}")
    state, report = convert(state, recipe, args.allow_unexpected)
    prefix = f"encoders.{only(recipe, kind)}." if kind else ""
    own = {name.removeprefix(prefix): tensor for name, tensor in shapes(recipe).items() if name.startswith(prefix)}
    may_miss = [*args.allow_missing, *(["mask_token"] if args.source == "beitv2" else copies(recipe))]
    state = verify(own, state, args.file, may_miss, args.allow_unexpected, report)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(state, args.out)
    report.absent |= {name: f"{args.file} has none; it is drawn when training starts" for name in own if name not in state}
    where = f"`{prefix.rstrip('.')}.init: {args.out}`" if kind else f"`init: {args.out}`"
    return f"{report.as_text()}\na recipe reads it as {where}"


def take_out(recipe, args) -> str:
    """--to: reads a whole model, verifies it, converts, writes; returns the report."""
    from xtoolkit.engine.initial import read_model_weights
    from xtoolkit.weights import beitv2, roberta
    from xtoolkit.weights.formats import OURS, recognise
    from xtoolkit.weights.parts import built, only
    from xtoolkit.weights.report import ConversionError, Report
    from xtoolkit.weights.writing import verify, write_folder, write_tensors

    known_releases = releases()
    state, origin = read_model_weights(args.file)
    known = recognise(state)
    if known not in (None, OURS):
        raise ConversionError(f"{args.file}: holds {known.what}, not a model of this toolkit; {known.advice(args.file)}")
    left_out = Report()
    state = verify(shapes(recipe), state, origin, [*args.allow_missing, *copies(recipe)], args.allow_unexpected, left_out)
    if args.target in known_releases:
        state, report = known_releases[args.target].to_release(state, recipe, args.allow_unexpected)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(state, args.out)
        report.dropped.update(left_out.dropped)
        return report.as_text()
    ways = {"RoBERTa": ("text", roberta.to_roberta, "transformers: RobertaForMaskedLM.from_pretrained"),
            "BEiTv2": ("vision", beitv2.to_timm, "timm: create_model('local-dir:...', pretrained=True)")}
    results, said = {}, []
    for kind in [k for k in ways if built(recipe, k)]:
        prefix = f"encoders.{only(recipe, kind)}."
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        results[kind] = ways[kind][1](own, recipe)
    if not results:
        raise ConversionError(f"{args.config}: this recipe builds neither a RoBERTa nor a BEiTv2 encoder: nothing to write")
    for kind, (tensors, config, report) in results.items():
        folder, _, reader = ways[kind]
        write_folder(Path(args.out) / folder, tensors, config)
        said.append(f"{folder} ({reader})\n{report.as_text()}")
    return "\n".join(said)


def copies(recipe) -> list[str]:
    """Patterns of the names of encoders that copy another: a whole model may lack them, and they copy anew."""
    from xtoolkit.registry import ENCODER_REGISTRY
    from xtoolkit.weights.parts import types

    return [f"encoders.{name}.*" for name, kind in types(recipe).items() if ENCODER_REGISTRY.get(kind).REFERS]


def shapes(recipe) -> dict:
    """{name: tensor on the meta device} of the model that a recipe builds."""
    import torch

    from xtoolkit.model import Model

    with torch.device("meta"):
        return Model(recipe).state_dict()
