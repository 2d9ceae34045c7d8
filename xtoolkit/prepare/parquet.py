"""Rows of Parquet files, a batch in memory at a time; pyarrow is asked for only here."""

from contextlib import contextmanager
from pathlib import Path

from xtoolkit.prepare.official import BadFile
from xtoolkit.prepare.spans import Span

ROWS = 256  # a batch


@contextmanager
def _opened(path: Path):
    """The file, its columns and how far it was read: a list with the number of rows."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadFile(f"{path}: reading Parquet needs pyarrow, which is not installed: "
                      "pip install 'xtoolkit[parquet]'") from None
    read = [0]
    try:
        with parquet.ParquetFile(path) as file:
            yield file, file.schema_arrow.names, read
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        before = f"broken after row {read[0] - 1}" if read[0] else "not a whole Parquet file"
        raise BadFile(f"{path.name}: {before}: {reason[:200]}") from None


def names(path: Path) -> list[str]:
    """The columns of a Parquet file."""
    with _opened(path) as (_, found, _):
        return found


def rows(span: Span, wanted: tuple, optional: tuple = ()):
    """(row from 0, its values by column) of the row groups that begin in a span; ``optional`` columns may be missing.

    Raises:
        BadFile: pyarrow is not installed; not a Parquet file, or one that is cut off; a column is missing.
    """
    path = Path(span.path)
    with _opened(path) as (file, found, read):
        if missing := [name for name in wanted if name not in found]:
            raise BadFile(f"{path.name}: no column {', '.join(missing)}; it has {', '.join(found)[:300]}")
        columns = [*wanted, *(name for name in optional if name in found)]
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            first = about.column(0)
            begin = first.dictionary_page_offset or first.data_page_offset
            if begin < span.start or span.end is not None and begin >= span.end:
                read[0] += about.num_rows
                continue
            for batch in file.iter_batches(ROWS, [group], columns):
                for values in zip(*(batch.column(name).to_pylist() for name in columns)):
                    yield read[0], dict(zip(columns, values))
                    read[0] += 1
