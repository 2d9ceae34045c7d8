"""What a run measured, as Markdown and as JSON; a page's part for this device is replaced, the rest of it stays."""

import dataclasses
import json
import platform
from pathlib import Path

from xtoolkit.cli.benchmarks.clocks import CudaClock, HostClock, Stats
from xtoolkit.cli.benchmarks.measure import GRADIENT_TOLERANCE, LOSS_TOLERANCE, Result
from xtoolkit.cli.benchmarks.operations import Case
from xtoolkit.cli.benchmarks.targets import MEGABYTE, SET_FOR, Answer, answers

UNMEASURED = "**Unmeasured.**"


def device_facts(device: str) -> dict[str, str]:
    """Device and versions, by name."""
    from importlib.metadata import version

    import torch
    facts = {"device": torch.cuda.get_device_name() if device == "cuda" else _processor()}
    if device == "cuda":
        facts["CUDA"] = torch.version.cuda
    else:
        facts["threads"] = str(torch.get_num_threads())
    facts |= {name: version(name) for name in ("torch", "triton", "torchvision")}
    return facts | {"fvcore": version("fvcore"), "Python": platform.python_version()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that reads well as plain text too; columns that are empty throughout are left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)] if rows else range(len(header))
    cells = [[line[i] for i in kept] for line in [header, *rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(kept))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def times_table(result: Result, base: str) -> str:
    """Every row; a time cell is the median, (p20 to p80), and the ratio to ``base``."""
    kinds = list(dict.fromkeys(k for row in result.rows for k in row.times))
    header = ["size", "dtype", "pass", "way", *(f"{kind} us, x {base}" for kind in kinds),
              "floor us", "share of floor", "peak MB", "error"]
    return table(header, [
        [r.size, r.dtype, r.pass_, r.way, *(_time(r.times.get(k), r.ratios.get(k)) for k in kinds),
         f"{r.floor_us:.3g}", f"{r.share:.1%}", "" if r.peak is None else f"{r.peak / MEGABYTE:,.2f}", f"{r.error:.1e}"]
        for r in result.rows])


def _time(stats: Stats | None, ratio: float | None) -> str:
    if stats is None:
        return ""
    return (f"{stats.median:,.1f} ({stats.p20:,.1f} to {stats.p80:,.1f})"
            + ("" if ratio is None else f", x {ratio:.2f}"))


def errors_table(result: Result) -> str:
    """Every error against float64, and whether it is within its tolerance."""
    header = ["size", "dtype", "way", "loss error", "gradient error", "tolerance", ""]
    return table(header, [
        [e.size, e.dtype, e.way, f"{e.loss:.1e}", f"{e.gradient:.1e}",
         f"{LOSS_TOLERANCE:.0e}, {GRADIENT_TOLERANCE[e.dtype]:.0e}" if e.held else "",
         ("ok" if e.ok else "TOO LARGE") if e.held else "not held to it"] for e in result.errors])


def targets_table(answers: list[Answer]) -> str:
    """Every target, its figure, and whether it is met."""
    words = {True: "met", False: "not met", None: "unmeasured"}
    return table(["size", "dtype", "forward and backward", "measured", ""], [
        [str(a.target.case), a.target.case.dtype, str(a.target), a.figure, words[a.met]]
        for a in answers])


def unmeasured(cases: list[tuple[Case, list[str]]], answers: list[Answer]) -> str:
    """What only a GPU can answer about an operation: its cases, each with its ways, and the targets."""
    return "\n\n".join([
        f"{UNMEASURED} These rows need a GPU. `python tools/benchmark.py kernels --markdown "
        "docs/benchmarks/kernels.md` on a machine with one measures them and writes them here: each way's forward "
        f"pass, backward pass and both, by {', '.join(CudaClock.kinds)}, with its share of the floor, its peak memory "
        "and its error.",
        table(["size", "dtype", "ways"], [[str(case), case.dtype, ", ".join(ways)] for case, ways in cases]),
        f"Targets, set for an {SET_FOR}:", targets_table(answers)])


def text(facts: dict[str, str], clock: HostClock | CudaClock, copy_rate: float, result: Result, base: str,
         answers: list[Answer]) -> str:
    """The part of a page that a run writes."""
    run_by = "; ".join(f"{k}: {v}" for k, v in facts.items())
    parts = [f"{run_by}; copy, read plus written: {copy_rate / 1e9:,.1f} GB/s",
             *(["The kernel runs through Triton's interpreter here: its errors count, its time is not measured."]
               if clock.device == "cpu" else []),
             "Kinds of time:\n\n" + "\n".join(f"- {kind}: {what}" for kind, what in clock.kinds.items()),
             times_table(result, base), "Errors against float64, ||result - exact|| / ||exact||:", errors_table(result)]
    if result.notes:
        parts.append("\n".join(f"- {note}" for note in result.notes))
    if answers:
        parts += [f"Targets, set for an {SET_FOR}; this is: {facts['device']}", targets_table(answers)]
    return "\n\n".join(parts)


class Page:
    """A Markdown file with a place for each section, between two marks; what stands around them stays."""

    def __init__(self, path: Path | None, names: list[str]):
        """
        Args:
            path: the file; if there is none it is made of the sections alone. None: nothing is written.
            names: sections that may be written.

        Raises:
            ValueError: the file has no place for a section.
        """
        self.path = path
        if path is None or not path.exists():
            self.text = "\n\n".join(f"{_mark(name)}\n{_mark(name, end=True)}" for name in names) + "\n"
            return
        self.text = path.read_text()
        for name in names:
            if _mark(name) not in self.text or _mark(name, end=True) not in self.text:
                raise ValueError(f"{path} has no lines `{_mark(name)}` and `{_mark(name, end=True)}`, between which "
                                 "the figures go: add them, or name a file that does not exist yet")

    def write(self, sections: dict[str, str]) -> None:
        """Replaces sections; one that only says what is unmeasured never replaces one that was measured."""
        if self.path is None:
            return
        for name, body in sections.items():
            before, rest = self.text.split(_mark(name), 1)
            old, after = rest.split(_mark(name, end=True), 1)
            if not body.startswith(UNMEASURED) or not old.strip() or UNMEASURED in old:
                self.text = f"{before}{_mark(name)}\n\n{body}\n\n{_mark(name, end=True)}{after}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.text)


def _mark(name: str, end: bool = False) -> str:
    return f"<!-- {'end' if end else 'begin'} {name} -->"


def write_json(path: Path, device: str, facts: dict[str, str], copy_rate: float, results: list[Result]) -> None:
    """Every figure, unrounded."""
    rows, errors, notes = ([item for result in results for item in getattr(result, part)]
                           for part in ("rows", "errors", "notes"))
    reached = answers(rows) if device == "cuda" else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "facts": facts, "copy_bytes_per_s": copy_rate, "notes": notes,
        "rows": [dataclasses.asdict(r) | {"share": r.share} for r in rows],
        "errors": [dataclasses.asdict(e) | {"ok": e.ok} for e in errors],
        "targets": [dataclasses.asdict(a) | {"met": a.met} for a in reached]}, indent=1) + "\n")
