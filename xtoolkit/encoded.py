"""Encoded, what an encoder says of a batch: tokens that several rows may share, and which of them may be attended to.

Shape letters: B rows, S source rows, R regions, N patches, n tokens of a source, D width.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Source:
    """A tensor of tokens (S, n, D) that rows of one or more Encoded point into, with what layers have made of it.

    Cross-attention keeps its keys and values here, one entry a layer, so an image is projected once however many texts
    attend to it. The memo dies with the Source, that is, with the step.
    """

    def __init__(self, tokens: Tensor):
        self.tokens, self._memo = tokens, {}

    def memo(self, layer: nn.Module, make):
        """``make(tokens)``, computed once for this layer. A result without a graph never serves a pass with one."""
        key = (id(layer), torch.is_grad_enabled())
        if key not in self._memo:
            self._memo[key] = make(self.tokens)
        return self._memo[key]

    def detach(self) -> "Source":
        """This source behind a cut, always the same object, so that its keys and values are shared too."""
        return self.memo(_CUT, lambda tokens: Source(tokens.detach())) if self.tokens.requires_grad else self


_SPLIT, _CUT = nn.Identity(), nn.Identity()  # under which a source keeps its two halves, and itself behind a cut


@dataclass(frozen=True)
class Encoded:
    """Token features of B rows: the summary token first, then the others.

    ``parts`` are concatenated along the tokens. A part is (source, index): row b of the part is ``source.tokens[index[b]]``;
    index None is the identity. One part is the plain case; a region has two, its own summary and the patches of its picture.

    Attributes:
        parts: tuple of (Source, (B,) int64 or None).
        mask: (B, 1 + N) bool, True = attend.
        segments: {field: slice of the tokens} of an encoder that reads several, as ``{"text": slice(1, 1 + L), "image":
            slice(1 + L, None)}``: a token a text token, a token a patch, no summary. None: the encoder reads one field.
        attention: (B, 1 + N, 1 + N) bool, True where a token (row) was made from, and may go on to attend to, another
            (column): see ``TextField.attention``. None: every one.
    """

    parts: tuple
    mask: Tensor
    segments: dict | None = None
    attention: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None = None, segments: dict | None = None,
           attention: Tensor | None = None) -> "Encoded":
        """From plain tokens (B, 1 + N, D) and a mask (all ones if None)."""
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return cls(((Source(tokens), None),), mask, segments, attention)

    @property
    def tokens(self) -> Tensor:
        """(B, 1 + N, D)."""
        rows = [s.tokens if i is None else s.tokens[i] for s, i in self.parts]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    @property
    def pooled(self) -> Tensor:
        """(B, D), the summary: token 0."""
        source, index = self.parts[0]
        return source.tokens[:, 0] if index is None else source.tokens[:, 0][index]

    @property
    def unit(self) -> Tensor:
        """(B, D), the summary scaled to length one, in float32 or better."""
        return F.normalize(self.pooled.to(torch.promote_types(self.pooled.dtype, torch.float32)), dim=-1)

    def segment(self, field: str, alone: slice = slice(None)) -> Tensor:
        """(B, n, D), the tokens of one field: those of ``segments``; without them the slice ``alone``.

        Raises:
            ValueError: an encoder of several fields, none of them this one.
        """
        own = alone if self.segments is None else self.segments.get(field)
        if own is None:
            raise ValueError(f"this feature has no tokens of ${field}: it has those of ${', $'.join(self.segments)}")
        return self.tokens[:, own]

    @property
    def width(self) -> int:
        return self.parts[0][0].tokens.shape[-1]

    def __len__(self) -> int:
        return self.mask.shape[0]

    def select(self, rows: Tensor) -> "Encoded":
        """The rows (K,) int64, repeats allowed, as an index: no token is copied and keys and values stay shared."""
        parts = tuple((s, rows if i is None else i[rows]) for s, i in self.parts)
        return Encoded(parts, self.mask[rows], self.segments, None if self.attention is None else self.attention[rows])

    def to(self, device) -> "Encoded":
        """The same values on a device, without what layers have made of them."""
        attention = None if self.attention is None else self.attention.to(device)
        return Encoded.of(self.tokens.to(device), self.mask.to(device), self.segments, attention)

    def trim(self, length: int) -> "Encoded":
        """Without what stands behind the first ``length`` tokens. Sources are not shared on, nor are segments known."""
        attention = None if self.attention is None else self.attention[:, :length, :length].contiguous()
        return Encoded.of(self.tokens[:, :length].contiguous(), self.mask[:, :length].contiguous(), attention=attention)

    def detach(self) -> "Encoded":
        """The same values with no gradient to what made them."""
        return replace(self, parts=tuple((s.detach(), i) for s, i in self.parts))

    def split(self) -> tuple[Source, Source]:
        """Summary (S, 1, D) and the other tokens (S, N, D) as sources of their own, made once a pass. Of plain tokens only."""
        (source, _), = self.parts
        return source.memo(_SPLIT, lambda t: (Source(t[:, :1]), Source(t[:, 1:])))

    def repeat(self, rows: Tensor) -> "Encoded":
        """The rows (R,) int64 with their own summaries; their tokens are one source with those of ``subset``."""
        summary, others = self.split()
        return Encoded(((summary, rows), (others, rows)), self.mask[rows])

    def subset(self, rows: Tensor, chosen: Tensor) -> "Encoded":
        """Of each of the rows (R,) int64 the tokens that are ``chosen`` (R, N) bool, at least one; their mean as summary."""
        others = self.split()[1]
        weight = chosen.to(others.tokens.dtype)
        weight = weight / weight.sum(1, keepdim=True)
        mean = torch.einsum("rn,rnd->rd", weight, others.tokens[rows])
        mask = torch.cat([torch.ones_like(chosen[:, :1]), chosen], 1)
        return Encoded(((Source(mean[:, None]), None), (others, rows)), mask)

    @classmethod
    def cat(cls, several: "list[Encoded]") -> "Encoded":
        """Rows of several, one after the other, their tokens trimmed or padded to the longest. Sources are not shared on.

        Raises:
            ValueError: one has an attention of its own.
        """
        if any(e.attention is not None for e in several):
            raise ValueError("features with an attention of their own cannot be joined")
        longest = max(e.mask.shape[1] for e in several)
        pad = lambda t: nn.functional.pad(t, (0, 0) * (t.dim() - 2) + (0, longest - t.shape[1]))
        return cls.of(torch.cat([pad(e.tokens) for e in several]), torch.cat([pad(e.mask) for e in several]))


def attended(mask: Tensor, attention: Tensor | None) -> Tensor:
    """What each token of a row may attend to, (B, 1, 1 or n, n) bool: real ones, of these those that ``attention`` allows.

    Args:
        mask: (B, n) bool, True at real tokens.
        attention: (B, n, n) bool, of which each row allows a real token; None: all are allowed.
    """
    return mask[:, None, None] if attention is None else (attention & mask[:, None])[:, None]
