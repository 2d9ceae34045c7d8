"""The losses that ship with the toolkit; importing this package registers them."""

from xtoolkit.losses import (
    answer_classes, answers, bbp, captioning, classification, imlm, itc, itm, mim, mim_codes, mlm, regression,
)

__all__ = ["answer_classes", "answers", "bbp", "captioning", "classification", "imlm", "itc", "itm", "mim", "mim_codes", "mlm",
           "regression"]
