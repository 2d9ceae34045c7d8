"""Builds the PictureBook sample pack from pinned public packages; `python -m projects.picturebook.build` is its command line."""
