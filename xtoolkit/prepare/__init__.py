"""Converters: from each dataset's own official release to the sample schema of docs/data.md, one file a source."""
