"""What a conversion did to every name, so that nothing is lost in silence; and the error of one that cannot be done."""

from dataclasses import dataclass, field

from xtoolkit.weights.files import WeightsError


class ConversionError(WeightsError):
    """Tensors that are not of the format that was named, or that the recipe has no use for."""


@dataclass
class Report:
    """Every name of a conversion.

    Attributes:
        renamed: {name in the source: name in the result}, also where both are the same.
        dropped: {name in the source: why it has no place in the result}.
        made: {name in the result: how it was made}, for what the source does not have in this form.
        changed: {name in the result: what was done to its values or its shape}.
        absent: {pattern of names that the format has: why the result lacks them}.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def as_text(self) -> str:
        """One line a name that did not simply move, then the counts."""
        lines = [f"dropped: {name}: {why}" for name, why in self.dropped.items()]
        lines += [f"made: {name}: {how}" for name, how in self.made.items()]
        lines += [f"changed: {name}: {how}" for name, how in self.changed.items()]
        lines += [f"not written: {names}: {why}" for names, why in self.absent.items()]
        moved = sum(a != b for a, b in self.renamed.items())
        lines.append(f"{len(self.renamed)} tensors taken over ({moved} under another name), {len(self.made)} made, "
                     f"{len(self.changed)} changed, {len(self.dropped)} dropped")
        return "\n".join(lines)
