"""What a trained model says of a picture and texts: xtoolkit predict RUN IMAGE TEXT ...

Of each text: its similarity to the picture, the probability that it belongs to it, and the box that it describes, each where
the model can tell; boxes are drawn into a PNG. IMAGE may be `-` where the model reads texts alone.

  xtoolkit predict outputs/xfm_tiny dog.jpg "a dog on the beach" "the ball" --attend
  xtoolkit predict outputs/vqa dog.jpg "what colour is the ball?" --answer --candidates red green blue
  xtoolkit predict outputs/caption dog.jpg --caption
  xtoolkit predict outputs/classes dog.jpg --classify
  xtoolkit predict outputs/entailment - "a dog runs" "an animal moves" --classify

The same from Python: xtoolkit.load(RUN), docs/inference.md.
"""

import sys
from pathlib import Path

from xtoolkit.cli import recipes
from xtoolkit.cli.command import command, parser as make_parser
from xtoolkit.recipe.folder import CONFIG
from xtoolkit.registry import ConfigError

OF_TEXTS = ("similarity", "match", "ground")  # what is told of each text without being asked for, where the model can
SIDE, SMALL = 480, 200  # pixels of the picture on the sheet, and of each heat map
CLASSES = 5  # the likeliest that are told


@command
def main(argv=None) -> int:
    parser = make_parser("predict", __doc__)
    parser.add_argument("run", metavar="RUN", help="a run's output folder, a checkpoint in it, or a file of a model's weights")
    parser.add_argument("image", metavar="IMAGE", help="a picture, or - for none")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="captions, expressions; questions with --answer")
    parser.add_argument("--attend", action="store_true", help="also draw which part of the picture each word looks at")
    parser.add_argument("--layer", type=int, metavar="N",
                        help="for --attend, of the fusion encoder, from 0 on (default: what the run's PointingGame chose)")
    parser.add_argument("--answer", action="store_true", help="each TEXT is a question")
    parser.add_argument("--candidates", nargs="+", metavar="A", help="the answers to choose from, for --answer")
    parser.add_argument("--caption", action="store_true", help="describe the picture")
    parser.add_argument("--classify", action="store_true", help="the class of what is given: IMAGE, IMAGE with TEXT, or -"
                        " with one TEXT or two")
    parser.add_argument("--output", type=Path, metavar="FILE.png",
                        help="what is drawn (default: beside IMAGE, dog.predicted.png of dog.jpg)")
    parser.add_argument("--config", metavar="F", help="the recipe, for weights without one")
    parser.add_argument("--tokenizer", metavar="T", help="of the texts, for a model without one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: what the recipe trains in")
    parser.add_argument("--trust-plugins", action="store_true", help="run the code of the plugins that the model's recipe names")
    args = parser.parse_intermixed_args(argv)
    check(parser, args)
    from xtoolkit.inference import loading
    try:
        model = loading.load(args.run, args.config, args.tokenizer, args.device, args.precision, args.trust_plugins,
                             recipes.giving)
        said, rows = predict(model, args)
        if rows:
            from xtoolkit.inference.drawing import save, sheet
            output = args.output or Path(args.image).with_suffix(".predicted.png")
            save(sheet(rows), output)
            said += f"\ndrawn: {output}"
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as e:  # of what was given: no run, no picture, a text of nothing
        where = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.filename else e
        print(f"xtoolkit predict: {where}", file=sys.stderr)
        return 2
    print(said)
    return 0


def check(parser, args) -> None:
    """Refuses what says nothing, or contradicts itself, before anything is loaded."""
    no_picture = args.image == "-"
    if not args.texts and not (args.caption or args.classify):
        parser.error("give a TEXT, or --caption or --classify")
    if args.answer and not args.texts:
        parser.error("--answer: give a question as TEXT")
    for option in ("candidates", "layer"):
        if getattr(args, option) is not None and not (args.answer if option == "candidates" else args.attend):
            parser.error(f"--{option} goes with --{'answer' if option == 'candidates' else 'attend'}")
    if no_picture and not (args.classify and args.texts):
        parser.error("IMAGE: `-` is no picture; only --classify of a TEXT does without one")
    if not no_picture and not (image := Path(args.image)).is_file():
        said = "a run's folder: RUN comes first, then IMAGE" if (image / CONFIG).is_file() else "a folder; name a picture in it"
        raise ConfigError(f"IMAGE: {image}: {said if image.is_dir() else 'no such file'}")
    if args.output is not None and args.output.suffix.lower() != ".png":
        raise ConfigError(f"--output: {args.output} must end in .png")
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise ConfigError(f"--output: {args.output.parent}: no such folder")


def predict(model, args) -> tuple[str, list]:
    """What is said, and the rows of the sheet that is drawn: none where nothing is to be seen."""
    asked = [name for name in ("attend", "answer", "caption", "classify") if getattr(args, name)]
    able = {name: ability(model, name) for name in asked}
    told = [name for name in OF_TEXTS if name in model.abilities]
    if args.texts and not told and not asked:
        options = [f"--{name}" for name in ("answer", "caption", "classify") if name in model.abilities]
        raise ConfigError(f"this model tells none of {', '.join(OF_TEXTS)}; it has: {', '.join(model.abilities) or 'nothing'}"
                          + (f"; ask for it with {' or '.join(options)}" if options else ""))
    lines, rows = [], []
    if args.texts and not (args.answer or args.classify):
        lines, boxes = of_texts(model, args, told)
        attended = able["attend"](args.image, args.texts, layer=args.layer) if args.attend else []
        lines += [f"attend: layer {attended[0].layer} of the fusion encoder"] if attended else []
        rows = drawn(model, args, boxes, attended)
    if args.caption:
        lines.append(f"caption: {plain(able['caption'](args.image))}")
    if args.answer:
        answers = [able["answer"](args.image, text, candidates=args.candidates) for text in args.texts]
        lines += [f"{text} {plain(answer)}" for text, answer in zip(args.texts, answers)]
    if args.classify:
        picture = [] if args.image == "-" else [Path(args.image)]  # as a string it would be a text to a head that reads texts
        found = able["classify"](*picture, *args.texts)
        lines += [f"{name}  {plain(share)}" for name, share in list(found.items())[:CLASSES]]
    return "\n".join(lines), rows


def ability(model, name: str):
    """One of the model's abilities. Raises ConfigError with what it lacks."""
    try:
        return getattr(model, name)
    except AttributeError as e:
        raise ConfigError(f"--{name}: {e}") from e


def of_texts(model, args, told) -> tuple[list[str], object]:
    """A table of what is told of each text, and the boxes (K, 4) of all, centre x, centre y, w, h in shares; None without."""
    columns, boxes = {"text": args.texts}, None
    if "similarity" in told:
        columns["similarity"] = [f"{value:.3f}" for value in model.similarity(args.image, args.texts).tolist()]
    if "match" in told:
        columns["match"] = [f"{100 * value:.1f} %" for value in model.match(args.image, args.texts).tolist()]
    if "ground" in told:
        boxes = model.ground(args.image, args.texts, normalized=True).cpu()
        picture = model.transform.open(args.image)
        corner = [[(cx - w / 2) * picture.width, (cy - h / 2) * picture.height, w * picture.width, h * picture.height]
                  for cx, cy, w, h in boxes.tolist()]
        columns["box x, y, w, h"] = [", ".join(f"{value:.0f}" for value in one) for one in corner]
    if len(columns) == 1:
        return [], None
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    table = [list(columns), *zip(*columns.values())]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
            for row in table], boxes


def drawn(model, args, boxes, attended) -> list:
    """The rows of a sheet: the picture with the boxes of all texts, then a row of heat maps a text, a map a word."""
    from xtoolkit.inference.drawing import COLOURS, boxed, fitted, heated

    rows = []
    if boxes is not None:
        whole = fitted(model.transform.open(args.image), SIDE)
        rows.append([(boxed(whole, boxes), [(text, COLOURS[n % len(COLOURS)]) for n, text in enumerate(args.texts)])])
    if attended:
        small = fitted(model.transform.open(args.image), SMALL)
        rows += [[(heated(small, values), [(word, "black")]) for word, values in zip(one.words, one.maps)] for one in attended]
    return [row for row in rows if row]


def plain(found) -> str:
    """What an ability returned, as a person reads it."""
    if hasattr(found, "tolist"):
        return plain(found.tolist())
    if isinstance(found, (list, tuple)):
        return ", ".join(map(plain, found))
    return f"{found:.3f}" if isinstance(found, float) else str(found)
