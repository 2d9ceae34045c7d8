"""X2-VLM: BERT's lower layers read texts, its upper layers fuse, one output layer serves both. README.md says where to begin."""

from . import bert, release  # noqa: F401  registers BERT, and makes the released format known
