"""The losses that ship with the toolkit; importing this package registers them."""

from xtoolkit.losses import bbp, imlm, itc, itm, mim, mlm

__all__ = ["bbp", "imlm", "itc", "itm", "mim", "mlm"]
