"""The losses that ship with the toolkit; importing this package registers them."""

from xtoolkit.losses import bbp, captioning, classification, imlm, itc, itm, mim, mlm, regression

__all__ = ["bbp", "captioning", "classification", "imlm", "itc", "itm", "mim", "mlm", "regression"]
