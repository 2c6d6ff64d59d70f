"""Read parquet tables from bytes, without threads that would delay the end of the process."""

import typing

import pyarrow
import pyarrow.parquet


def read_table(data: bytes, **options: typing.Any) -> pyarrow.Table:
    """The table in a parquet file's bytes; ``options`` are pyarrow.parquet.read_table's, as are its errors.

    Arrow's threads may let go of a file after it was read. Where that is an object of Python's they need the
    interpreter for it, and a process that just ends then aborts ("terminate called without an active
    exception", status 134 in place of its own). So they are given memory of Arrow's own, a copy.
    """
    memory = pyarrow.allocate_buffer(len(data))
    memoryview(memory).cast("B")[:] = data
    return pyarrow.parquet.read_table(pyarrow.BufferReader(memory), **options)
