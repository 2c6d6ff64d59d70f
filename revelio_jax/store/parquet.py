"""Read parquet tables from bytes, with bounded memory and without references that Arrow's threads hold at the end."""

import typing

import pyarrow
import pyarrow.compute
import pyarrow.parquet

# Its functions are created when it is imported, so a type checker does not know them.
compute: typing.Any = pyarrow.compute
LARGEST_TABLE = 2 << 30  # bytes of a table's values
MOST_VALUES = 1 << 27
BATCH_ROWS = 1 << 12
LARGEST_FIXED = 1 << 10  # bytes of a value of fixed size


def read_table(
    data: bytes, columns: typing.Sequence[str] | None = None, page_checksum_verification: bool = False
) -> pyarrow.Table:
    """Return the table in the bytes of a parquet file; ``columns`` selects some columns.

    A small file can hold a huge table, because pages are compressed and repeated values are stored once. Rows are
    therefore decoded in batches with texts as dictionaries. Raise ValueError if the selected columns have more than
    MOST_VALUES values or LARGEST_TABLE bytes, or if a row group has more than LARGEST_TABLE bytes. Raise KeyError for a
    missing column, and OSError or ArrowException for a malformed file.
    """
    memory = _copy(data)
    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(memory))
    schema, rows = file.schema_arrow, file.metadata.num_rows
    if missing := [name for name in columns or () if name not in schema.names]:
        raise KeyError(missing[0])
    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    if wide := [leaf.path for leaf in leaves if max(leaf.length or 0, 0) > LARGEST_FIXED]:
        raise ValueError(f"the values of {wide[0]!r} have a fixed size of more than {LARGEST_FIXED} bytes")
    selected = [leaf for leaf in leaves if columns is None or _is_in(leaf.path, columns)]
    if max(rows, 0) * len(selected) > MOST_VALUES:
        raise ValueError(f"it has {rows:,} rows of {len(selected)} values; it must have at most {MOST_VALUES:,} values")
    too_large = ValueError(f"its values need more than {LARGEST_TABLE >> 20:,} MiB")
    # Column chunks also have sizes, but reading the metadata of a malformed one ends the process.
    groups = range(file.metadata.num_row_groups)
    sizes = [max(file.metadata.row_group(group).total_byte_size, 0) for group in groups]
    if (sum(sizes) if columns is None else max(sizes, default=0)) > LARGEST_TABLE:
        raise too_large
    texts = pyarrow.parquet.ParquetFile(
        pyarrow.BufferReader(memory),
        read_dictionary=[leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"],
        page_checksum_verification=page_checksum_verification,
    )
    batches: list[pyarrow.RecordBatch] = []
    size = 0
    for group in groups:  # one at a time: a batch of several groups could be larger than each of them
        for batch in texts.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            size += sum(map(_size, batch.columns))
            if size > LARGEST_TABLE:
                raise too_large
            batches.append(batch)
    if columns is not None:
        schema = pyarrow.schema([schema.field(name) for name in columns])
    if not batches:
        return schema.empty_table()
    table = pyarrow.Table.from_batches(batches)
    table.validate(full=True)  # for example that texts are UTF-8
    return table.select(schema.names).cast(schema) if len(set(schema.names)) == len(schema.names) else table


def read_schema(data: bytes) -> pyarrow.Schema:
    """Return the names and types of the columns in the bytes of a parquet file. Raise the errors of read_table."""
    return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_copy(data))).schema_arrow


def _is_in(path: str, columns: typing.Sequence[str]) -> bool:
    """Return whether a leaf is part of one of the columns, whose names may have dots."""
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _copy(data: bytes) -> pyarrow.Buffer:
    """Return the bytes in memory of Arrow.

    Otherwise Arrow's threads may release a Python object after the read, which needs the interpreter. A process that is
    ending would then abort with status 134 ("terminate called without an active exception").
    """
    memory = pyarrow.allocate_buffer(len(data))
    memoryview(memory).cast("B")[:] = data
    return memory


def _size(array: pyarrow.Array) -> int:
    """Return the bytes of an array's values, with each text counted as often as it occurs."""
    kind: typing.Any = array.type
    parts: typing.Any = array
    if pyarrow.types.is_dictionary(kind) and _is_text(kind.value_type):
        return 8 * len(array) + (compute.sum(compute.binary_length(parts.dictionary).take(parts.indices)).as_py() or 0)
    if pyarrow.types.is_map(kind):
        return _size(parts.keys) + _size(parts.items)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        return 8 * len(array) + _size(parts.flatten())
    if pyarrow.types.is_struct(kind):
        return sum(_size(parts.field(number)) for number in range(kind.num_fields))
    return array.nbytes


def _is_text(kind: typing.Any) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_binary,
            pyarrow.types.is_large_binary,
        )
    )
