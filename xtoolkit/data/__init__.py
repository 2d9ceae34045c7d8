"""Data: shards, order, masking, images, regions; importing this package registers the datasets."""
