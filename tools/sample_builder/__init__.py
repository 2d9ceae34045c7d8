"""Builds the PictureBook sample pack from pinned public packages; `tools/build_sample_data.py` is its command line."""
