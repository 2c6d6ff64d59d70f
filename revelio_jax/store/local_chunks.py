"""Read chunks of local shards with less CPU time than TensorStore.

TensorStore reads a chunk, computes its checksum in software on processors that it does not know, and copies the rows,
each step in another thread. Here one thread reads the chunk and google_crc32c computes its checksum. Whatever is not an
intact chunk of the layout of :mod:`layout` is left to TensorStore, which reads it or reports what is broken.
"""

import io
import os
import struct
import sys
import typing
from collections.abc import Callable

import numpy as np
import tensorstore as ts

try:
    import google_crc32c
except ImportError:  # TensorStore reads everything
    google_crc32c = None

CHECKSUM_BYTES = 4
ENTRY = struct.Struct("<QQ")  # offset and size of a chunk, in the index at the end of a shard
INTACT = 0x48674BC7  # CRC-32C of bytes that end with their own CRC-32C


class LocalChunks(typing.NamedTuple):
    """The chunks of one array [rows, d] in a local folder."""

    folder: str
    shard_rows: int
    chunk_rows: int
    d: int
    dtype: np.dtype

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_rows * self.d * self.dtype.itemsize

    def start(self, start: int, rows: np.ndarray) -> Callable[[], bool] | None:
        """Start to fill ``rows`` [N, d] from array row ``start`` on, if they begin a chunk and do not exceed it.

        Return None if TensorStore must read the rows, otherwise a function that waits for the rows and returns whether
        their checksum is right.
        """
        shard, row = divmod(start, self.shard_rows)
        if row % self.chunk_rows or len(rows) > self.chunk_rows or rows.dtype != self.dtype:
            return None
        try:
            file = io.FileIO(f"{self.folder}/c/{shard}/0")
            # The index has an entry per chunk and its own checksum. The checksum of the chunk also covers its entry:
            # a changed bit does not lead to another intact chunk, unless the size of a stored chunk is a power of two.
            end = os.fstat(file.fileno()).st_size
            place = end - CHECKSUM_BYTES - ENTRY.size * (self.shard_rows // self.chunk_rows - row // self.chunk_rows)
            offset, stored = ENTRY.unpack(os.pread(file.fileno(), ENTRY.size, place))
        except (OSError, struct.error):
            return None
        size = self.chunk_bytes + CHECKSUM_BYTES
        if stored != size or offset + size > end:  # also chunks without data
            return None
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

        def wait() -> bool:
            try:
                with file:
                    content = os.pread(file.fileno(), size, offset)
            except OSError:
                return False
            if len(content) != size or not _is_intact(content):
                return False
            rows[:] = np.frombuffer(content, self.dtype, rows.size).reshape(rows.shape)
            return True

        return wait


def open_chunks(kvstore: ts.KvStore, key: str, array: ts.TensorStore) -> LocalChunks | None:
    """Return the chunks of ``array``, or None if it is not local or if its files have other names.

    :func:`layout.check_array` must have accepted the array.
    """
    place = kvstore.spec().to_json()
    if google_crc32c is None or place["driver"] != "file" or sys.byteorder != "little":
        return None
    metadata = array.spec().to_json()["metadata"]
    if metadata["chunk_key_encoding"] != {"name": "default"}:
        return None
    shard_rows, d = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    chunk_rows = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    return LocalChunks(f"{place['path']}{key}", shard_rows, chunk_rows, d, array.dtype.numpy_dtype)


def _is_intact(content: bytes) -> bool:
    """Return whether the last 4 bytes are the CRC-32C of the bytes before."""
    # Without a copy of the bytes before: the checksum of all bytes, complemented, is a constant.
    return google_crc32c is not None and google_crc32c.value(content) == INTACT
