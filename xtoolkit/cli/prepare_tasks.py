"""The sources of `xtoolkit prepare` that are tasks: sentences, questions, pairs and pictures with labels."""

from pathlib import Path

from xtoolkit.cli.command import positive
from xtoolkit.cli.prepare_options import options, source
from xtoolkit.prepare import classification, glue, nlvr2, snli_ve, vqa


def add(sources):
    """Adds them."""
    p = source(sources, "glue", run_glue, "GLUE's tasks -> texts with labels: TASK/SPLIT.jsonl",
               "Download the eight zips of gluebenchmark.com/tasks (MRPC by GLUE's own download script) and unzip them into "
               "one folder.", shard_size=None, pictures=False, named=False)
    p.add_argument("--root", type=Path, required=True, help="the folder of CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI, RTE")
    p.add_argument("--tasks", nargs="+", choices=list(glue.TASKS), metavar="TASK",
                   help=f"only these of {', '.join(glue.TASKS)} (default: those whose folder is there)")

    p = source(sources, "vqa", run_vqa, "VQA v2 -> questions with answers: NAME.jsonl",
               "Download the questions and annotations of train, val and test from visualqa.org. One command a split.",
               shard_size=None, pictures=False)
    p.add_argument("--questions", type=Path, required=True, help="v2_OpenEnded_mscoco_train2014_questions.json and the like")
    p.add_argument("--annotations", type=Path, help="v2_mscoco_train2014_annotations.json; test has none")

    p = source(sources, "vqa-answers", run_answers, "VQA v2 -> the answers to choose from: answers.txt",
               "Download the annotations of train and val from visualqa.org.", shard_size=None, pictures=False, named=False)
    p.add_argument("--annotations", type=Path, nargs="+", required=True, help="those of train and val")
    p.add_argument("--least", type=positive, default=vqa.LEAST,
                   help="questions that it must be the answer of (default: %(default)s)")

    p = source(sources, "nlvr2", run_nlvr2, "NLVR2 -> two pictures with a sentence and a label: SPLIT.jsonl",
               "Get train.json, dev.json and test1.json from the project's repository, and the pictures by its form.",
               shard_size=None, pictures=False, named=False)
    p.add_argument("--input", type=Path, nargs="+", required=True, help="train.json dev.json test1.json")
    p.add_argument("--images", type=Path, required=True,
                   help="the folder of images/train, dev and test1; recipes name it as `images`")

    p = source(sources, "snli-ve", run_snli_ve, "SNLI-VE -> a picture with a hypothesis and a label: SPLIT.jsonl",
               "Get snli_ve_train.jsonl, snli_ve_dev.jsonl and snli_ve_test.jsonl of the project, and Flickr30k's pictures.",
               shard_size=None, pictures=False, named=False)
    p.add_argument("--input", type=Path, nargs="+", required=True, help="the three files")
    p.add_argument("--images", type=Path, required=True, help="flickr30k-images; recipes name it as `images`")

    p = source(sources, "torchvision", run_torchvision, "a classification set that torchvision reads -> pictures with a label",
               "Nothing is downloaded: the files lie below --root as torchvision has them.", named=False)
    p.add_argument("--set", required=True, metavar="SET", help=", ".join(classification.SETS))
    p.add_argument("--root", type=Path, required=True, help="the `root` of torchvision's dataset")
    p.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits (default: all that the set has)")


def run_glue(args):
    return glue.convert(args.root, options(args), args.tasks)


def run_vqa(args):
    return vqa.convert(args.questions, args.annotations, options(args), args.name)


def run_answers(args):
    return vqa.convert_answers(args.annotations, options(args), least=args.least)


def run_nlvr2(args):
    return nlvr2.convert(args.input, args.images, options(args))


def run_snli_ve(args):
    return snli_ve.convert(args.input, args.images, options(args))


def run_torchvision(args):
    return classification.convert(args.set, args.root, options(args), args.splits)
