"""The losses that ship with the toolkit; importing this package registers them."""

from xtoolkit.losses import answers, bbp, captioning, classification, imlm, itc, itm, mim, mlm, regression

__all__ = ["answers", "bbp", "captioning", "classification", "imlm", "itc", "itm", "mim", "mlm", "regression"]
