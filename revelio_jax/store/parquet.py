"""Read parquet tables from bytes, without references that Arrow's threads could hold at the end of the process."""

import typing

import pyarrow
import pyarrow.compute
import pyarrow.parquet

# Its functions are created when it is imported, so a type checker does not know them.
compute: typing.Any = pyarrow.compute


def read_table(data: bytes, **options: typing.Any) -> pyarrow.Table:
    """Return the table in the bytes of a parquet file, with the options and errors of pyarrow.parquet.read_table.

    The bytes are copied into memory of Arrow. Otherwise Arrow's threads may release a Python object after the read,
    which needs the interpreter. A process that is ending would then abort with status 134 ("terminate called without
    an active exception").
    """
    memory = pyarrow.allocate_buffer(len(data))
    memoryview(memory).cast("B")[:] = data
    return pyarrow.parquet.read_table(pyarrow.BufferReader(memory), **options)
