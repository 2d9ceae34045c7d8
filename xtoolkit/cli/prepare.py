"""Turns a dataset's own official release into the shards of docs/data.md."""

import argparse
import sys
from fnmatch import fnmatch
from pathlib import Path

from xtoolkit.cli import prepare_tasks
from xtoolkit.cli.command import command, parser as make_parser
from xtoolkit.cli.prepare_options import options as _options, source as _source
from xtoolkit.data import paths
from xtoolkit.data.scan import hidden
from xtoolkit.prepare import coco, images, img2dataset, instances, openimages, refcoco, sample, table, text, vg
from xtoolkit.prepare.official import BadFile, BadRecord, MissingFile
from xtoolkit.prepare.run import WorkerDied
from xtoolkit.report.prepared import write_summary


def parser() -> argparse.ArgumentParser:
    root = make_parser("prepare", __doc__)
    sources = root.add_subparsers(dest="source", required=True, metavar="SOURCE")

    p = _source(sources, "coco", run_coco, "COCO or Flickr30k captions, Karpathy's split or COCO's -> pairs: train, val, test",
                "Download caption_datasets.zip (dataset_coco.json) from Karpathy's page, train2014.zip and val2014.zip "
                "from cocodataset.org; unzip both picture archives into one folder. Or annotations_trainval2017.zip "
                "(captions_train2017.json, captions_val2017.json) with train2017.zip and val2017.zip, a file at a time.",
                named=False)
    p.add_argument("--annotations", type=Path, required=True,
                   help="dataset_coco.json, dataset_flickr30k.json, or captions_train2017.json and the like")
    p.add_argument("--images", type=Path, required=True, help="the folder with train2014 and val2014, or of the pictures")
    _exclusions(p)

    p = _source(sources, "coco-objects", run_instances,
                "detection boxes in COCO's format (COCO, Objects365) -> regions: train",
                "COCO: annotations_trainval2014.zip (instances_train2014.json) and train2014.zip from cocodataset.org. "
                "Objects365: zhiyuan_objv2_train.tar.gz (zhiyuan_objv2_train.json) and patch0.tar.gz to patch50.tar.gz "
                "of its training split; unpack the patches into one folder.")
    p.add_argument("--annotations", type=Path, required=True, help="instances_train2014.json, zhiyuan_objv2_train.json")
    p.add_argument("--images", type=Path, required=True, help="the folder of its pictures, or of its patches")
    _exclusions(p)

    p = _source(sources, "openimages", run_openimages, "Open Images' boxes -> regions: train",
                "Download oidv6-train-annotations-bbox.csv and class-descriptions-boxable.csv from the Open Images "
                "page, train_0.tar.gz to train_f.tar.gz from its bucket; unpack the pictures into one folder.")
    p.add_argument("--boxes", type=Path, required=True, help="oidv6-train-annotations-bbox.csv")
    p.add_argument("--classes", type=Path, required=True, help="class-descriptions-boxable.csv")
    p.add_argument("--images", type=Path, required=True, help="the folder of the pictures, or of train_0 to train_f")

    p = _source(sources, "vg", run_vg, "Visual Genome regions and objects -> regions: train",
                "Download image_data.json, region_descriptions.json, objects.json, attributes.json and images.zip, "
                "images2.zip from the Visual Genome page; unzip all into one folder.")
    p.add_argument("--image-data", type=Path, required=True, help="image_data.json")
    p.add_argument("--regions", type=Path, required=True, help="region_descriptions.json")
    p.add_argument("--objects", type=Path, help="objects.json; without it there are described regions only")
    p.add_argument("--attributes", type=Path, help="attributes.json: words for objects")
    p.add_argument("--images", type=Path, required=True, help="the folder with VG_100K and VG_100K_2")
    _exclusions(p)

    p = _source(sources, "refcoco", run_refcoco, "RefCOCO, RefCOCO+ or RefCOCOg (REFER) -> regions: a set a split",
                "Download refcoco.zip, refcoco+.zip or refcocog.zip of the REFER project, and COCO's train2014.zip.",
                named=False)
    p.add_argument("--refs", type=Path, required=True, help="refs(unc).p, refs(umd).p, refs(google).p, or as .json")
    p.add_argument("--instances", type=Path, required=True, help="instances.json beside it")
    p.add_argument("--images", type=Path, required=True, help="the folder of COCO's pictures")
    p.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these splits (default: all that the file has)")

    p = _source(sources, "img2dataset", run_img2dataset,
                "what img2dataset downloaded (CC3M, CC12M, SBU, LAION) -> pairs: train",
                "Download with `img2dataset --output_format webdataset`; `files` and `parquet` are read too. Without "
                "--out it is only checked.", out=False)
    p.add_argument("--shards", required=True, nargs="+",
                   help="the folder of the download, or tars or Parquet files: 'raw/{00000..00331}.tar'")

    p = _source(sources, "table", run_table, "a table of pictures and captions -> pairs: train",
                "CSV, TSV or JSON Lines with paths, a Hugging Face ImageFolder (metadata.csv, .jsonl), or Parquet with paths or "
                "the pictures themselves (which needs `pip install 'xtoolkit[parquet]'`).")
    p.add_argument("--input", required=True, nargs="+", help="files or patterns, or folders of metadata.* or Parquet files")
    p.add_argument("--images", type=Path, help="the folder of the pictures (default: that of each table)")
    p.add_argument("--image-column", metavar="NAME", help=f"default: the one of {', '.join(table.IMAGE)} that there is")
    p.add_argument("--text-column", metavar="NAME", help=f"default: the one of {', '.join(table.TEXT)} that there is")

    p = _source(sources, "images", run_images, "a folder of pictures (ImageNet-21k) -> image-only samples: train",
                "Tars (n01440764.tar, or a tar of such) are read where they lie; compressed ones must be unpacked.")
    p.add_argument("--images", type=Path, required=True, help="the folder or tar, searched to the bottom")

    p = _source(sources, "text", run_text,
                "text, paragraphs, JSON Lines, CSV or Parquet (C4, Wikipedia, CC-News, books) -> texts: train",
                "C4 comes as c4-train.?????-of-01024.json.gz; anything else as .jsonl, .csv, .txt, the same gzipped, or "
                ".parquet (which needs `pip install 'xtoolkit[parquet]'`).", shard_size=text.SHARD_SIZE, pictures=False)
    p.add_argument("--input", required=True, nargs="+", help="files, folders or patterns")
    p.add_argument("--field", default="text",
                   help="the key of the text in JSON Lines, its column in CSV or Parquet (default: text)")
    p.add_argument("--paragraphs", action="store_true", help="in plain text an empty line ends a text, not every line")

    prepare_tasks.add(sources)
    p = sources.add_parser("sample", help="unpack and prepare every part of the sample pack")
    p.set_defaults(run=run_sample)
    return root


def _exclusions(p):
    p.add_argument("--exclude-coco-karpathy", type=Path, metavar="FILE",
                   help="leave out the val and test pictures of this dataset_coco.json: they are evaluated on")
    p.add_argument("--exclude-refs", type=Path, nargs="+", default=[], metavar="REFS",
                   help="leave out the val and test pictures of these refs")


def _excluded(args) -> frozenset:
    found = frozenset().union(*map(refcoco.held_out, args.exclude_refs))
    karpathy = getattr(args, "exclude_coco_karpathy", None)
    return found | coco.held_out(karpathy) if karpathy else found


def run_coco(args):
    return coco.convert(args.annotations, args.images, _options(args), exclude=_excluded(args))


def run_instances(args):
    return instances.convert(args.annotations, args.images, _options(args), _excluded(args), args.name)


def run_openimages(args):
    return openimages.convert(args.boxes, args.classes, args.images, _options(args), args.name)


def run_vg(args):
    return vg.convert(args.image_data, args.regions, args.images, _options(args), args.objects, args.attributes,
                      _excluded(args), args.name)


def run_refcoco(args):
    names = None if args.splits is None else {split: split for split in args.splits}
    return refcoco.convert(args.refs, args.instances, args.images, _options(args), names)


def run_img2dataset(args):
    shards = [file for pattern in args.shards
              for file in ([pattern] if Path(pattern).is_dir() else paths.resolve(pattern, hints=False))]
    return img2dataset.convert(shards, _options(args), args.name)


def run_images(args):
    return images.convert(args.images, _options(args), args.name)


def run_table(args):
    files = _files(args.input, *table.METADATA, "*.parquet", "*.csv", "*.tsv", "*.jsonl")
    return table.convert(files, _options(args), args.name, table.Table(args.image_column, args.text_column, args.images))


def run_text(args):
    return text.convert(_files(args.input, "*.parquet"), _options(args), args.name, args.field, args.paragraphs)


def _files(inputs: list, *wanted: str) -> list[str]:
    """The files of paths and patterns; of a folder those that fit the first of ``wanted`` that any fits."""
    files = []
    for place in inputs:
        inside = [p for p in sorted(Path(place).iterdir()) if not hidden(p.name)] if Path(place).is_dir() else []
        fitting = ([str(p) for p in inside if fnmatch(p.name.lower(), pattern)] for pattern in wanted)
        files += next(filter(None, fitting), None) or paths.resolve(place, hints=False)
    return files


def _given(args) -> str:
    """The files that samples were looked for in, as they were named."""
    found = next(value for name in ("input", "shards", "questions", "annotations", "boxes", "regions", "refs", "root", "images")
                 if (value := getattr(args, name, None)))
    return ", ".join(map(str, found if isinstance(found, list) else [found]))


def run_sample(args):
    lines = []
    for name in sample.names():
        found = [Path(file) for file in paths.resolve(name)]
        count = sum(sum(inner.is_file() for inner in path.rglob("*")) if path.is_dir() else 1 for path in found)
        places = dict.fromkeys(str(path if path.is_dir() else path.parent) for path in found)
        lines.append(f"{name}: {count:,} file{'s' * (count > 1)}, {', '.join(places)}")
    return "\n".join(lines)


@command
def main(argv=None) -> int:
    args = parser().parse_args(argv)
    try:
        print(report := args.run(args))
        if args.source == "sample":
            return 0
        if args.out:
            here = "prepared-*.json"  # GLUE's tasks have a folder each
            for folder in sorted({path.parent for path in [*args.out.glob(here)] or args.out.glob(f"*/{here}")}):
                print(f"see {write_summary(folder)}")
        if not report.written:
            why = "all was left out, as counted above" if report.left_out else f"there is no sample in {_given(args)}"
            print(f"xtoolkit prepare: nothing was written: {why}", file=sys.stderr)
        return 0 if report.written else 1
    except BadRecord as error:
        can_skip = args.source != "sample" and not isinstance(error, BadFile)
        again = " (`--skip-bad` counts wrong records and goes on)" if can_skip else ""
        print(f"xtoolkit prepare: {error}{again}", file=sys.stderr)
        return 2 if isinstance(error, MissingFile) else 1
    except (OSError, WorkerDied) as error:
        print(f"xtoolkit prepare: {error}", file=sys.stderr)
        return 2 if isinstance(error, FileNotFoundError) else 1
    except KeyboardInterrupt:
        print("xtoolkit prepare: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
