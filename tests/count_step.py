"""Counts the lines that one training step on pairs reads through: whole functions, by file.

    OMP_NUM_THREADS=1 python tests/count_step.py [key=value ...]

Trains ``projects/xfm/tiny.yaml``'s ``pairs`` stream alone, with the paper's four losses on it, on the CPU and without workers,
and notes every function of the package that the second step enters; the first warms up, the last is logged. A function counts
whole, as ``inspect.getsourcelines`` gives it, and a line once. ``code`` leaves out docstrings, comments and blank lines. What only the
first step enters - it opens files, and draws what several steps then look into - is counted beside it. The exit status is 1
where a goal is missed.
"""

import argparse
import ast
import inspect
import io
import runpy
import sys
import tempfile
import threading
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Lines of code at most: of what stands between a batch and the optimizer, and of that with the reading and making of the batch.
GOALS = {"everything else": 350, "everything else and xtoolkit/data": 700}
ROOMS = {"xtoolkit/data": ("data",), "encoders and kernels, the model's arithmetic": ("encoders", "kernels"),
         "everything else": ()}
RECIPE = ["streams.text=null", "streams.image=null", "streams.match=null", "streams.region=null", "losses.mlm=null",
          "losses.bbp=null", "schedule={every_step: [[pairs]]}", "schedule.every=null",
          "streams.pairs.losses={itc: 1, itm: 1, imlm: 1, mim: 1}",
          "streams.pairs.data.image_mask={patches: 14, min_block: 2}", "streams.pairs.batch_size=8", "evaluate=null",
          "train.steps=3", "train.log_every=20", "train.workers=0", "train.device=cpu"]
PACKAGE = str(ROOT / "xtoolkit") + "/"
SKIP = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
        tokenize.ENDMARKER)


def entered(step, *arguments):
    """What ``step`` returns, and the code objects of the package's functions that it entered."""
    found = set()

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(PACKAGE):
            found.add(code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        return step(*arguments), found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def lines_of(codes) -> dict[Path, set[int]]:
    """{file: numbers of the lines of these functions}."""
    lines: dict[Path, set[int]] = {}
    for code in codes:
        source, first = inspect.getsourcelines(code)
        lines.setdefault(Path(code.co_filename), set()).update(range(first, first + len(source)))
    return lines


def code_lines(path: Path) -> set[int]:
    """Numbers of a file's lines that are neither blank nor comment nor docstring."""
    text = path.read_text(encoding="utf-8")
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIP:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, node.end_lineno + 1))
    return found


def room_of(path: Path) -> str:
    return next((room for room, folders in ROOMS.items() if path.parent.name in folders), "everything else")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", action="store_true", help="name every function, the longest first")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args()
    sys.path.insert(0, str(ROOT))
    from xtoolkit.engine.trainer import Trainer

    taken, step = [], Trainer.step

    def watched(trainer):
        values, codes = entered(step, trainer)
        taken.append(codes)
        return values

    Trainer.step = watched
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["train_net.py", "--config", str(ROOT / "projects/xfm/tiny.yaml"), *RECIPE, *args.overrides,
                    f"train.output={folder}"]
        try:
            runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    codes, rooms, once = taken[1], {room: [0, 0, 0] for room in ROOMS}, dict.fromkeys(ROOMS, 0)
    lines = lines_of(codes)
    if args.functions:
        for code in sorted(codes, key=lambda code: -len(inspect.getsourcelines(code)[0])):
            if not code.co_name.startswith("<"):
                file = Path(code.co_filename).relative_to(ROOT)
                print(f"{len(inspect.getsourcelines(code)[0]):4}  {file}: {code.co_qualname}")
    print(f"\n{'file':40} functions  lines   code")
    for path in sorted(lines, key=lambda path: (path.parent.name != "data", str(path))):
        functions = sum(Path(code.co_filename) == path for code in codes if not code.co_name.startswith("<"))
        counts = functions, len(lines[path]), len(lines[path] & code_lines(path))
        room = room_of(path)
        rooms[room] = [a + b for a, b in zip(rooms[room], counts)]
        print(f"{path.relative_to(ROOT)!s:40} {counts[0]:9} {counts[1]:6} {counts[2]:6}")
    for room, counts in rooms.items():
        print(f"{room[:40]:40} {counts[0]:9} {counts[1]:6} {counts[2]:6}")
    whole = sum(counts[1] for room, counts in rooms.items() if room != "xtoolkit/data")
    print(f"whole functions, everything outside xtoolkit/data: {whole} lines")
    first = lines_of(taken[0])
    for path in first:
        once[room_of(path)] += len((first[path] - lines.get(path, set())) & code_lines(path))
    print(f"the first step alone enters so many lines of code more: {', '.join(f'{room} {n}' for room, n in once.items())}")
    missed = False
    for what, most in GOALS.items():
        counted = sum(rooms[room][2] for room in what.split(" and "))
        missed |= counted > most
        print(f"goal of {what}: at most {most} lines of code; counted: {counted}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
