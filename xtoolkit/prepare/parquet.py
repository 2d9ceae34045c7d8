"""Rows of Parquet files, a batch in memory at a time; pyarrow is asked for only here."""

from pathlib import Path

from xtoolkit.prepare.official import BadFile
from xtoolkit.prepare.spans import Span

ROWS = 256  # a batch


def rows(span: Span, wanted: tuple = (), optional: tuple = ()):
    """The rows of the row groups that begin in a span of a Parquet file.

    Args:
        wanted: columns that it must have; all are read where neither this nor ``optional`` names any.
        optional: columns that are read where it has them.

    Yields:
        (int, dict): row from 0, and its values under the names of the columns.

    Raises:
        BadFile: pyarrow is not installed; not a Parquet file, or one that is cut off; a column is missing.
    """
    path = Path(span.path)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadFile(f"{path}: reading Parquet needs pyarrow, which is not installed: "
                      "pip install 'xtoolkit[parquet]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in wanted if name not in names]:
                raise BadFile(f"{path.name}: no column {', '.join(missing)}; it has {', '.join(names)[:300]}")
            columns = [*wanted, *(name for name in optional if name in names)] or names
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                first = about.column(0)
                begin = first.dictionary_page_offset or first.data_page_offset
                if begin < span.start or span.end is not None and begin >= span.end:
                    number += about.num_rows
                    continue
                for batch in file.iter_batches(ROWS, [group], columns):
                    for values in zip(*(batch.column(name).to_pylist() for name in columns)):
                        yield number, dict(zip(columns, values))
                        number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        before = f"broken after row {number - 1}" if number else "not a whole Parquet file"
        raise BadFile(f"{path.name}: {before}: {reason[:200]}") from None
