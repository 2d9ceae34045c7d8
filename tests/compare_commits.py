"""Trains the same recipes with another commit and with this tree, and compares every number bit for bit; or their batches.

    OMP_NUM_THREADS=1 python tests/compare_commits.py --before REF [--batches [--visits N]] [--only WORD] [--allow PATTERN ...]

A change that should not move numerics must show identical losses. Both trees run the recipes of the commit before in this
environment, on the CPU, each through its own ``tools/train_net.py``; nothing else of their layout is assumed. Compared are the numbers of every logged step,
every gradient of every update, before clipping, and every parameter after the last step. The exit status is 1 where anything
differs that no ``--allow`` names.

``--batches`` trains nothing: it reads 100 visits of every stream of ``projects/xfm/tiny.yaml``, on one rank and on two, with
none and with two workers, out of the ``loaders`` that each tree gives its own ``engine.trainer.Trainer``. Compared is all that a
batch holds: type, shape and bytes of every tensor, and lists that stay on the host.

The recipes: ``projects/xfm/tiny.yaml`` with every stream in every step, in fp32 and bf16; ``base.yaml`` at toy size with
dropout, in both; and the recipe of the conversions' tests with three updates a step.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10
COMMON = [f"train.steps={STEPS}", "train.log_every=1", "train.device=cpu", "evaluate=null"]
# Numbers of a log line that are measured, not computed.
MEASURED = ("*_s", "*seconds*", "data_share", "cpu_share", "memory_*")
TINY = ["tree/projects/xfm/tiny.yaml", "schedule.every=null"]
# base.yaml at toy size, its dropout and drop path as they are.
BASE = ["tree/projects/xfm/base.yaml", "tokenizer=sample://picturebook/tokenizer", "encoders.vision.patch_size=8",
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
# {name: (ranks, workers)}
BATCHES = {f"batches, {ranks} rank{'s' * (ranks > 1)}, {workers} workers": (ranks, workers)
           for ranks in (1, 2) for workers in (0, 2)}


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
    for name in names:
        place = folder / name
        place.mkdir()
        config, *overrides = RECIPES[name]
        train(folder.parent / config, [*overrides, "train.workers=0"], place)


def probe_batches(folder: Path, visits: int, name: str) -> None:
    """Reads batches with the tree in the current folder; leaves a line of JSON a batch in ``folder/NAME/RANK.jsonl``."""
    from xtoolkit.engine.trainer import Trainer

    place = folder / name
    place.mkdir(exist_ok=True)

    def read(trainer):
        with open(place / f"{os.environ['RANK']}.jsonl", "w") as out:
            for stream, loader in trainer.loaders.items():
                for visit in range(visits):
                    out.write(json.dumps([f"{stream}, visit {visit}", dict(_leaves(loader.at(visit)))]) + "\n")
        sys.exit()

    Trainer.fit = read
    train(folder.parent / TINY[0], [f"train.workers={BATCHES[name][1]}"], place)


def train(config, overrides: list[str], place: Path) -> None:
    import xtoolkit

    if Path(xtoolkit.__file__).resolve().parents[1] != Path.cwd().resolve():
        sys.exit(f"{xtoolkit.__file__} was imported, not the tree in {Path.cwd()}")
    sys.argv = ["train_net.py", "--config", str(config), *COMMON, *overrides, f"train.output={place / 'run'}"]
    try:
        runpy.run_path("tools/train_net.py", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def _leaves(value, name=""):
    """(dotted name, what it is) of everything in a batch: of a tensor its type, shape and a digest of its bytes."""
    import torch

    if isinstance(value, torch.Tensor):
        digest = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        yield name, f"{value.dtype} {list(value.shape)} {digest[:24]}"
    elif dataclasses.is_dataclass(value) or hasattr(value, "items"):
        named = value.items() if hasattr(value, "items") else vars(value).items()
        for inner, part in named:
            yield from _leaves(part, f"{name}.{inner}".lstrip("."))
    elif value is not None:
        yield name, repr(value)


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


def start(tree: Path, folder: Path, arguments: list[str], ranks: int = 1) -> list[subprocess.Popen]:
    """A probe of one tree: a process a rank."""
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "XTK_KERNELS": "torch",
                                "XTOOLKIT_HOME": str(folder.parent / "home"), "WORLD_SIZE": str(ranks),
                                "MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}
    return [subprocess.Popen([sys.executable, __file__, "--probe", str(folder), *arguments], cwd=tree,
                             env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                             stdout=open(folder / "log.txt", "a"), stderr=subprocess.STDOUT) for rank in range(ranks)]


def finish(sides: dict[Path, Path], arguments: list[str], ranks: int = 1) -> None:
    """The probes of both trees, one after the other. Exits with the log of the first that fails.

    Each has a home of its own, as an index that another tree wrote may be of another layout; and both have it under one
    path, as a picture's name is its path.
    """
    for side, tree in sides.items():
        home, own = side.parent / "home", side / "home"
        if own.exists():
            own.rename(home)
        processes = start(tree, side, arguments, ranks)
        while any(process.poll() is None for process in processes):
            time.sleep(0.1)
            if any(process.poll() for process in processes):
                for process in processes:
                    process.kill()
                print(f"{side.name}: failed\n" + (side / "log.txt").read_text()[-3000:], file=sys.stderr)
                sys.exit(2)
        home.rename(own)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Rows(dict):
    """{what is compared: Row}."""

    def __init__(self, allow: list[str]):
        super().__init__()
        self._allow = allow

    def hold(self, what: str, key: str, a, b, difference) -> None:
        """Notes whether a value of the commit before is this tree's; None: there is none.

        Args:
            difference: ``difference(a, b)`` words it; empty: there is none.
        """
        row = self.setdefault(what, Row(what))
        row.compared += 1
        if a is None or b is None:
            said = "only " + ("this tree has it" if a is None else "the commit before has it")
        elif not (said := difference(a, b)):
            return
        if any(fnmatchcase(f"{what} {key}", pattern) for pattern in self._allow):
            row.allowed += 1
            return
        row.differ += 1
        row.first = row.first or f"{key}: {said}"


def compare(name: str, before: Path, now: Path, rows: Rows) -> None:
    """What one recipe left: losses, gradients, parameters."""
    import torch

    logged = [[json.loads(line) for line in (side / name / "run/metrics.jsonl").read_text().splitlines()]
              for side in (before, now)]
    if min(map(len, logged)) != STEPS or max(map(len, logged)) != STEPS:
        sys.exit(f"{name}: {[len(lines) for lines in logged]} lines were logged, not {STEPS}")
    for a, b in zip(*logged):
        # What only this tree logs is no difference.
        for key in (k for k in a if not any(fnmatchcase(k, pattern) for pattern in MEASURED)):
            rows.hold(f"{name}: numbers logged", f"step {a['step']} {key}", a[key], b.get(key), _apart)
    updates = [sorted(path.name for path in (side / name).glob("gradients_*")) for side in (before, now)]
    if updates[0] != updates[1]:
        sys.exit(f"{name}: {len(updates[0])} updates before, {len(updates[1])} now")
    for kind, files in (("gradients", updates[0]), ("parameters", ["parameters.pt"])):
        for file in files:
            a, b = (torch.load(side / name / file, weights_only=True) for side in (before, now))
            for key in sorted(a.keys() | b.keys()):
                rows.hold(f"{name}: {kind}", f"{file.removesuffix('.pt')} {key}", a.get(key), b.get(key), _apart)


def compare_batches(name: str, before: Path, now: Path, rows: Rows) -> None:
    """What the ranks of one number of workers read, a row a stream."""
    for rank in range(BATCHES[name][0]):
        sides = [map(json.loads, open(side / name / f"{rank}.jsonl")) for side in (before, now)]
        for (where, a), (same, b) in zip(*sides, strict=True):
            assert where == same
            for key in sorted(a.keys() | b.keys()):
                rows.hold(f"{name}: {where.partition(',')[0]}", f"rank {rank}, {where}: {key}", a.get(key), b.get(key),
                          lambda a, b: a != b and f"{a[:80]} before, {b[:80]} now")


def _apart(a, b) -> str | None:
    import torch

    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} {a.dtype} before, {tuple(b.shape)} {b.dtype} now"
    if torch.equal(a, b):
        return None
    apart = (a.double() - b.double()).abs()
    return f"{(a != b).sum().item()} of {a.numel()} apart, by up to {apart.max().item():.3g} of {a.abs().max().item():.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REF", help="the commit to hold this tree against")
    parser.add_argument("--batches", action="store_true", help="compare batches, and train nothing")
    parser.add_argument("--visits", type=int, default=100, metavar="N", help="of every stream, with --batches; default 100")
    parser.add_argument("--only", default="", metavar="WORD", help="recipes whose name has this word")
    parser.add_argument("--allow", action="append", default=[], metavar="PATTERN",
                        help="what may differ, as `RECIPE: KIND NAME`: '*: numbers logged *bbp*'; may be repeated")
    parser.add_argument("--probe", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        sys.path.remove(str(Path(__file__).parent))
        folder, *names = args.probe
        if args.batches:
            probe_batches(Path(folder), args.visits, *names)
        else:
            probe(Path(folder), names)
        return 0
    known = BATCHES if args.batches else RECIPES
    names = [name for name in known if args.only in name]
    if not args.before or not names:
        parser.error("name the commit: --before REF" if names else f"no recipe has `{args.only}`: {', '.join(known)}")
    began = time.perf_counter()
    sys.path[:0] = [str(ROOT), str(next(ROOT.glob("tests/*/convert_recipes.py")).parent)]
    from convert_recipes import TINY as conversion

    with tempfile.TemporaryDirectory() as folder, worktree(args.before, Path(folder) / "tree") as tree:
        folder, rows = Path(folder), Rows(args.allow)
        (folder / "conversion.yaml").write_text(conversion)
        sides = {folder / "before": tree, folder / "now": ROOT}
        for side in sides:
            side.mkdir()
        if args.batches:
            for name in names:
                more = [name, "--batches", "--visits", str(args.visits)]
                finish(sides, more, BATCHES[name][0])
                compare_batches(name, *sides, rows)
        else:
            finish(sides, names)
            for name in names:
                compare(name, *sides, rows)
    width = max(map(len, rows))
    print(f"{'':{width}}  compared  differ  allowed  first difference")
    for row in rows.values():
        print(f"{row.what:{width}}  {row.compared:8}  {row.differ:6}  {row.allowed:7}  {row.first}")
    compared, differ = sum(row.compared for row in rows.values()), sum(row.differ for row in rows.values())
    ran = f"{args.visits} visits of every stream" if args.batches else f"{STEPS} steps a recipe"
    seconds = time.perf_counter() - began
    print(f"\n{args.before} against {ROOT}: {differ} of {compared} differ; {ran}, one thread, {seconds:.0f} s")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
