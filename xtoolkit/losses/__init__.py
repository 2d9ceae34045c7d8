"""The losses that ship with the toolkit; importing this package registers them."""

from xtoolkit.losses import bbp, captioning, imlm, itc, itm, mim, mlm

__all__ = ["bbp", "captioning", "imlm", "itc", "itm", "mim", "mlm"]
