"""float32 to the type of an output, rounded to nearest."""

from __future__ import annotations  # `tl.constexpr` below is then a word, also where there is no Triton

from xtoolkit.kernels.choice import jit, tl


@jit
def rounded(x, DTYPE: tl.constexpr):
    """``x``, float32, as ``DTYPE``: to nearest, ties to even; NaN and inf stay.

    By hand for bfloat16, since Triton's interpreter cuts the bits off: a gradient up to 2^-7 too small, one way. The compiled
    cast then finds nothing left to round.
    """
    if DTYPE == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)
