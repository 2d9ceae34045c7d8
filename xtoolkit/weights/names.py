"""The names of a published checkpoint beside ours: one table, read in both directions.

A system's ``release.py`` states the table and adds what it alone needs; where its parts are in a recipe, ``parts`` finds.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from xtoolkit.weights.files import matches
from xtoolkit.weights.report import ConversionError, Report

APART = re.compile(r"\{(.*)\}")


class Row(NamedTuple):
    """One line of the table: a name, or, where theirs ends in a dot, the beginning of names.

    ``#`` stands for a number. ``{query,key,value}`` stands for tensors that are apart there and joined along their rows here.

    Attributes:
        theirs: in the published file.
        part: of the model; what parts there are is the system's affair.
        ours: inside that part.
        first: the number there that is 0 here, for every ``#``.
    """

    theirs: str
    part: str
    ours: str
    first: int = 0

    def inward(self, name: str) -> str | None:
        """Our name, inside the part, of one of theirs; None: this row has none for it."""
        return _moved(name, self.theirs, self.ours, -self.first, self.theirs.endswith("."))

    def outward(self, name: str) -> str | None:
        """Their name of one of ours, inside the part; with its braces where there are several."""
        return _moved(name, self.ours, self.theirs, self.first, self.theirs.endswith("."))

    @property
    def apart(self) -> list[str]:
        """The words in braces; of a single tensor [""]."""
        found = APART.search(self.theirs)
        return found[1].split(",") if found else [""]


class Change(NamedTuple):
    """What is done to a tensor on the way in and on the way out, and how a report says it."""

    inward: Callable[[Tensor], Tensor]
    outward: Callable[[Tensor], Tensor]
    said_inward: str
    said_outward: str


SCALAR = Change(lambda t: t.reshape(1), lambda t: t.reshape(()), "() reshaped to (1,)", "(1,) reshaped to ()")


@dataclass(frozen=True)
class Names:
    """A published format, as far as a table can say it.

    Attributes:
        file: what a file is: "a released NAME checkpoint".
        owner: whose names these are: "the NAME release".
        rows: the first that fits a name counts, in either direction.
        without: {part: why its names have no place where a recipe does not build it}.
        dropped: {pattern of their names: why they have no place here}.
        unwritten: {pattern of names that ours would get there, and that the format lacks: why}. Without a reason they are
            refused, else dropped.
        tied: {a tensor that the format stores twice: the name under which it is taken over}.
        changes: {their name: what is done to the tensor}.
        short: the owner, where a line names it again.
    """

    file: str
    owner: str
    rows: tuple[Row, ...]
    without: Mapping[str, str]
    dropped: Mapping[str, str] = field(default_factory=dict)
    unwritten: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    short: str = "the release"

    def inward(self, state: Mapping[str, Tensor], parts: Mapping[str, str], allow=(),
               problems: Iterable[str] = ()) -> tuple[dict[str, Tensor], Report]:
        """Their tensors under our names, bit for bit; without a copy but for joined and changed ones.

        Whether a model has further names is not asked here: ``writing.verify`` does.

        Args:
            state: {their name: tensor}.
            parts: {part that the recipe builds: prefix of its names}.
            allow: patterns of their names that are dropped where they would be an error: unknown ones, and second copies of a
                tied tensor that differ from the first.
            problems: further lines of the error.

        Raises:
            ConversionError: unknown names, tied tensors that differ, joined ones that are incomplete, all of them, one a line.
        """
        report, result, found = Report(), {}, []
        for name, tensor in state.items():
            first = self.tied.get(name)
            if first in state:
                if torch.equal(tensor, state[first]):
                    report.dropped[name] = f"the same tensor as {first}, to which {self.short} ties it"
                elif matches(name, allow):
                    report.dropped[name] = f"differs from {first}, to which {self.short} ties it; allowed"
                else:
                    found.append(f"not tied: {name} differs from {first}; {self.short} stores one tensor under both names")
                continue
            why, (row, inner) = _reason(self.dropped, name), _fitting(self.rows, lambda row: row.inward(first or name))
            if why is None and row is None and not matches(name, allow):
                found.append(f"unexpected: {name} {tuple(tensor.shape)}")
            elif why is not None or row is None or row.part not in parts:
                unknown = f"unknown to {self.short}; allowed"
                report.dropped[name] = why if why is not None else unknown if row is None else self.without[row.part]
            elif len(row.apart) > 1:
                names, target = [APART.sub(one, row.outward(inner)) for one in row.apart], parts[row.part] + inner
                if names[0] not in state:
                    found.append(f"unexpected without its {row.apart[0]}: {name}")
                elif name == names[0] and (missing := [n for n in names if n not in state]):
                    found.append(f"missing: {', '.join(missing)}, beside {name}")
                elif name == names[0]:
                    result[target], report.changed[target] = torch.cat([state[n] for n in names]), ", ".join(row.apart)
                    report.renamed |= {n: target for n in names}
            else:
                target = report.renamed[name] = parts[row.part] + inner
                result[target] = self.changes[name].inward(tensor) if name in self.changes else tensor
                if result[target].shape != tensor.shape or result[target].dtype != tensor.dtype:
                    report.changed[target] = self.changes[name].said_inward
        if lines := [*found, *problems]:
            raise ConversionError("\n".join([f"not {self.file}:", *(f"  {line}" for line in lines)]))
        return result, report

    def outward(self, state: Mapping[str, Tensor], parts: Mapping[str, str], allow=()) -> tuple[dict[str, Tensor], Report]:
        """The inverse: our tensors under their names, and their tied copies.

        Args:
            state: {our name: tensor}.
            parts: as ``inward``.
            allow: patterns of our names that the format has no place for, and that are dropped where they would be an error.

        Raises:
            ConversionError: names that the format has no place for, one a line.
        """
        report, result, found = Report(), {}, []
        for name, tensor in state.items():
            row, target = _fitting(self.rows, lambda row: row.outward(name.removeprefix(parts[row.part]))
                                   if row.part in parts and name.startswith(parts[row.part]) else None)
            why = "" if row is None else _reason(self.unwritten, target)
            if why == "" and not matches(name, allow):
                found.append(f"unexpected: {name} {tuple(tensor.shape)}")
            elif why is not None:
                report.dropped[name] = why or f"{self.short} has no place for it; allowed"
            elif len(row.apart) > 1:
                report.renamed[name] = APART.sub("*", target)
                pieces = zip(row.apart, tensor.chunk(len(row.apart)))
                result |= {APART.sub(one, target): piece.clone() for one, piece in pieces}
            elif target in self.changes:
                report.renamed[name], report.changed[target] = target, self.changes[target].said_outward
                result[target] = self.changes[target].outward(tensor)
            else:
                report.renamed[name], result[target] = target, tensor
        if found:
            raise ConversionError("\n".join([f"{self.owner} has no place for:", *(f"  {line}" for line in found)]))
        for copy, first in self.tied.items():
            if first in result:
                result[copy], report.made[copy] = result[first], f"the same tensor as {first}"
        return result, report

    def absent(self, parts: Mapping[str, str]) -> dict[str, str]:
        """{pattern of their names: why}, of the parts that a recipe does not build."""
        numbers = lambda row: row.theirs.replace("#", f"{row.first} and above" if row.first else "*")
        return {f"{numbers(row)}*": self.without[row.part] for row in self.rows if row.part not in parts}


def _fitting(rows, moved):
    """The first row that has a name, and that name; (None, None)."""
    return next(((row, name) for row in rows if (name := moved(row)) is not None), (None, None))


def _reason(patterns, name):
    return next((why for pattern, why in patterns.items() if fnmatchcase(name, pattern)), None)


def _moved(name, source, target, by, begins):
    """``name`` of the template ``source`` under the template ``target``, its numbers raised ``by`` so much; None: it is none."""
    found = _pattern(source, begins).fullmatch(name)
    if found is None:
        return None
    *numbers, rest = found.groups()
    numbers = [int(number) + by for number in numbers]
    return None if any(n < 0 for n in numbers) else "".join(f"{a}{b}" for a, b in zip(target.split("#"), [*numbers, rest]))


@functools.cache
def _pattern(template, begins):
    pieces = re.split(r"(#|\{.*\})", template)
    kinds = {"#": lambda piece: r"(\d+)", "{": lambda piece: f"(?:{piece[1:-1].replace(',', '|')})"}
    return re.compile("".join(kinds.get(piece[:1], re.escape)(piece) for piece in pieces) + ("(.*)" if begins else "()"))
