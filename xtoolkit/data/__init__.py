"""Data: shards, order, masking, images, regions; importing this package registers the datasets."""

from xtoolkit.data import datasets, labelled, synthetic  # noqa: F401  registers them
