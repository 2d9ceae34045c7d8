"""Trains the same recipes with another commit and with this tree, and compares every number bit for bit.

    OMP_NUM_THREADS=1 python tests/compare_commits.py --before REF [--only WORD] [--allow PATTERN ...]

A change that should not move numerics must show identical losses. Both trees run in this environment, on the CPU, through
their own ``tools/train_net.py``; nothing else of their layout is assumed. Compared are the numbers of every logged step,
every gradient of every update, before clipping, and every parameter after the last step. The exit status is 1 where anything
differs that no ``--allow`` names.

The recipes: ``projects/xfm/tiny.yaml`` with every stream in every step, in fp32 and bf16; ``base.yaml`` at toy size with
dropout, in both; and the recipe of the conversions' tests with three updates a step.
"""

import argparse
import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10
COMMON = [f"train.steps={STEPS}", "train.log_every=1", "train.workers=0", "train.device=cpu", "evaluate=null"]
# Numbers of a log line that are measured, not computed.
MEASURED = ("*_s", "*seconds*", "data_share", "memory_gb")
TINY = ["projects/xfm/tiny.yaml", "schedule.every=null"]
# base.yaml at toy size, its dropout and drop path as they are.
BASE = ["projects/xfm/base.yaml", "tokenizer=sample://picturebook/tokenizer", "encoders.vision.patch_size=8",
        "encoders.vision.image_size=32", "encoders.text.vocab_size=4000", "encoders.text.max_positions=20",
        "encoders.vision_proj.dim=8", "encoders.text_proj.dim=8", "optim.warmup=2", "optim.lr=1e-2",
        *(f"encoders.{e}.{k}" for e in ("vision", "text") for k in ("width=24", "init=null")),
        *(f"encoders.{e}.{k}" for e in ("vision", "text", "fusion") for k in ("layers=2", "heads=3")),
        *(f"streams.{s}.batch_size={n}" for s, n in (("text", 8), ("image", 6), ("pairs", 12), ("region", 12))),
        "streams.text.data={type: SyntheticText, size: 50, tokens: 14, min_tokens: 4, mask: {prob: 0.3, max: 6}}",
        "streams.image.data={type: SyntheticImages, size: 50, image_mask: {patches: 6, min_block: 2}}",
        "streams.pairs.data={type: SyntheticPairs, size: 50, tokens: 12, min_tokens: 4, mask: {prob: 0.5, max: 6}, "
        "image_mask: {patches: 6, min_block: 2}}",
        "streams.region.data={type: SyntheticRegions, size: 50, tokens: 12, min_tokens: 4, max_per_image: 3, "
        "mask: {prob: 0.5, max: 6}}"]
CONVERSION = ["conversion.yaml", "tokenizer=sample://picturebook/tokenizer", "encoders.text.vocab_size=4000",
              "encoders.vision.drop_path=0.1", "encoders.text.dropout=0.1", "encoders.fusion.dropout=0.1",
              "schedule.every_step=[[text],[region],[pairs]]"]
RECIPES = {"tiny.yaml, fp32": [*TINY, "train.precision=fp32"], "tiny.yaml, bf16": [*TINY, "train.precision=bf16"],
           "base.yaml at toy size, fp32": [*BASE, "train.precision=fp32"],
           "base.yaml at toy size, bf16": [*BASE, "train.precision=bf16"],
           "three updates a step, fp32": CONVERSION}


# ---- one tree, in a process of its own ------------------------------------------------------------------------------------
def probe(folder: Path, names: list[str]) -> None:
    """Runs recipes with the tree in the current folder; leaves gradients, parameters and ``metrics.jsonl`` under ``folder``."""
    import torch

    torch.set_num_threads(1)
    unclipped, clip, step = {}, torch.nn.utils.clip_grads_with_norm_, torch.optim.AdamW.step

    def watched_clip(parameters, *arguments, **options):
        parameters = list(parameters)
        unclipped.update({id(p): p.grad.detach().clone() for p in parameters if p.grad is not None})
        return clip(parameters, *arguments, **options)

    def watched_step(optimizer, *arguments, **options):
        named = {name: p for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)}
        gradients = {name: unclipped.get(id(p), p.grad) for name, p in named.items() if p.grad is not None}
        torch.save(gradients, place / f"gradients_{len(list(place.glob('gradients_*'))):03}.pt")
        unclipped.clear()
        result = step(optimizer, *arguments, **options)
        torch.save({name: p.detach() for name, p in named.items()}, place / "parameters.pt")
        return result

    torch.nn.utils.clip_grads_with_norm_, torch.optim.AdamW.step = watched_clip, watched_step
    import xtoolkit

    if Path(xtoolkit.__file__).resolve().parents[1] != Path.cwd().resolve():
        sys.exit(f"{xtoolkit.__file__} was imported, not the tree in {Path.cwd()}")
    for name in names:
        place = folder / name
        place.mkdir(parents=True)
        config, *overrides = RECIPES[name]
        config = config if Path(config).parent != Path() else folder.parent / config
        sys.argv = ["train_net.py", "--config", str(config), *COMMON, *overrides, f"train.output={place / 'run'}"]
        try:
            runpy.run_path("tools/train_net.py", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


# ---- both trees -----------------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """How one kind of number of one recipe compares."""

    what: str
    compared: int = 0
    differ: int = 0
    allowed: int = 0
    first: str = ""


@contextlib.contextmanager
def worktree(ref: str, place: Path):
    """A checkout of ``ref`` at ``place``, removed again."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), ref], check=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def start(tree: Path, folder: Path, names: list[str]) -> subprocess.Popen:
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "XTK_KERNELS": "torch"}
    return subprocess.Popen([sys.executable, __file__, "--probe", str(folder), *names], cwd=tree, env=environment,
                            stdout=open(folder / "log.txt", "w"), stderr=subprocess.STDOUT)


def compare(name: str, before: Path, now: Path, allow: list[str]) -> list[Row]:
    """The rows of one recipe: losses, gradients, parameters."""
    import torch

    rows = [Row(f"{name}: {kind}") for kind in ("numbers logged", "gradients", "parameters")]

    def hold(row, key, a, b):
        row.compared += 1
        if a is not None and b is not None:
            a, b = torch.as_tensor(a), torch.as_tensor(b)
            if a.dtype == b.dtype and torch.equal(a, b):
                return
        if any(fnmatchcase(f"{row.what} {key}", pattern) for pattern in allow):
            row.allowed += 1
            return
        row.differ += 1
        row.first = row.first or f"{key}: {_difference(a, b)}"

    logged = [[json.loads(line) for line in (side / name / "run/metrics.jsonl").read_text().splitlines()]
              for side in (before, now)]
    if min(map(len, logged)) != STEPS or max(map(len, logged)) != STEPS:
        sys.exit(f"{name}: {[len(lines) for lines in logged]} lines were logged, not {STEPS}")
    for a, b in zip(*logged):
        # What only this tree logs is no difference.
        for key in (k for k in a if not any(fnmatchcase(k, pattern) for pattern in MEASURED)):
            hold(rows[0], f"step {a['step']} {key}", a[key], b.get(key))
    updates = [sorted(path.name for path in (side / name).glob("gradients_*")) for side in (before, now)]
    if updates[0] != updates[1]:
        sys.exit(f"{name}: {len(updates[0])} updates before, {len(updates[1])} now")
    for row, files in ((rows[1], updates[0]), (rows[2], ["parameters.pt"])):
        for file in files:
            a, b = (torch.load(side / name / file, weights_only=True) for side in (before, now))
            for key in sorted(a.keys() | b.keys()):
                hold(row, f"{file.removesuffix('.pt')} {key}", a.get(key), b.get(key))
    return rows


def _difference(a, b) -> str:
    if a is None or b is None:
        return "only " + ("this tree has it" if a is None else "the commit before has it")
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} {a.dtype} before, {tuple(b.shape)} {b.dtype} now"
    apart = (a.double() - b.double()).abs()
    return f"{(a != b).sum().item()} of {a.numel()} apart, by up to {apart.max().item():.3g} of {a.abs().max().item():.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REF", help="the commit to hold this tree against")
    parser.add_argument("--only", default="", metavar="WORD", help="recipes whose name has this word")
    parser.add_argument("--allow", action="append", default=[], metavar="PATTERN",
                        help="what may differ, as `RECIPE: KIND NAME`: '*: numbers logged *bbp*'; may be repeated")
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        sys.path.remove(str(Path(__file__).parent))
        probe(Path(args.probe[0]), args.probe[1:])
        return 0
    names = [name for name in RECIPES if args.only in name]
    if not args.before or not names:
        parser.error("name the commit: --before REF" if names else f"no recipe has `{args.only}`: {', '.join(RECIPES)}")
    began = time.perf_counter()
    sys.path[:0] = [str(ROOT), str(next(ROOT.glob("tests/*/convert_recipes.py")).parent)]
    from convert_recipes import TINY as conversion

    with tempfile.TemporaryDirectory() as folder, worktree(args.before, Path(folder) / "tree") as tree:
        folder = Path(folder)
        (folder / "conversion.yaml").write_text(conversion)
        sides = {folder / "before": tree, folder / "now": ROOT}
        running = [start(tree, side, names) for side, tree in sides.items()]
        for side, process in zip(sides, running):
            if process.wait():
                for other in running:
                    other.kill()
                print(f"{side.name}: failed\n" + "".join((side / "log.txt").read_text()[-3000:]), file=sys.stderr)
                return 2
        rows = [row for name in names for row in compare(name, *sides, args.allow)]
    width = max(len(row.what) for row in rows)
    print(f"{'':{width}}  compared  differ  allowed  first difference")
    for row in rows:
        print(f"{row.what:{width}}  {row.compared:8}  {row.differ:6}  {row.allowed:7}  {row.first}")
    print(f"\n{args.before} against {ROOT}: {sum(row.differ for row in rows)} of {sum(row.compared for row in rows)} differ; "
          f"{STEPS} steps a recipe, one thread, {time.perf_counter() - began:.0f} s")
    return int(any(row.differ for row in rows))


if __name__ == "__main__":
    sys.exit(main())
