"""X2-VLM: BERT's lower layers read texts, its upper layers fuse, one output layer serves both. README.md says where to begin."""

from . import bert, release, video  # noqa: F401  registers parts, and makes the released format known
