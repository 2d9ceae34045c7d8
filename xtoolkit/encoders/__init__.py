"""The encoders that ship with the toolkit; importing this package registers them."""

from xtoolkit.encoders import beit, cross_attention, projection, roberta, similarity, teacher  # noqa: F401
