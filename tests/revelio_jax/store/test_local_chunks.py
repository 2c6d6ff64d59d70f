"""Local chunks are read without TensorStore, with the same bits and the same errors."""

import pathlib

import numpy as np
import pytest
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import local_chunks, open_store


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def location(tmp_path, write_store, request):
    """A store of 490 rows [3] in chunks of 32 rows and shards of 96 rows; the last chunk of a shard may be partial."""
    rows = np.random.default_rng(0).standard_normal((496, 3), np.float32)
    rows[100:106] = np.nan
    return write_store(tmp_path / "store", rows, shard_samples=6, dtype=request.param)


def by_tensorstore(site, start, stop):
    return site.arrays["activations"][start:stop].read().result()


def test_chunks_have_the_bits_that_tensorstore_reads(location):
    site = open_store(location).site()
    assert site.local
    for start, stop in site.chunks:
        rows = np.empty((stop - start, site.d), ts.dtype(site.dtype).numpy_dtype)
        assert site.local.start(start, rows)()
        assert rows.tobytes() == by_tensorstore(site, start, stop).tobytes()


def test_other_rows_are_left_to_tensorstore(location):
    site = open_store(location).site()
    dtype = ts.dtype(site.dtype).numpy_dtype
    for start, count, of_dtype in ((1, 3, dtype), (0, 33, dtype), (0, 32, np.float64)):
        rows = np.empty((count, site.d), of_dtype)
        assert site.local.start(start, rows) is None
    rows = np.empty((33, site.d), dtype)
    site.read_into(31, rows)
    assert rows.tobytes() == by_tensorstore(site, 31, 64).tobytes()


def test_a_flipped_bit_is_found_anywhere_in_the_chunks_and_their_index(location):
    path = pathlib.Path(location, "clip.layer.1", "activations", "c", "1", "0")
    site = open_store(location).site()
    content = bytearray(path.read_bytes())
    chunks = [(start, stop) for start, stop in site.chunks if start // site.shard_rows == 1]
    for place in range(0, len(content) - local_chunks.CHECKSUM_BYTES, 7):  # the index's own checksum is not used
        content[place] ^= 1
        path.write_bytes(content)
        messages = []
        for start, stop in chunks:
            try:
                site.read_into(start, np.empty((stop - start, site.d), ts.dtype(site.dtype).numpy_dtype))
            except InputError as error:
                messages.append(str(error))
        assert len(messages) == 1, place
        assert "shard 1 of clip.layer.1 is broken" in messages[0]
        content[place] ^= 1


def test_without_google_crc32c_tensorstore_reads(location, monkeypatch):
    monkeypatch.setattr(local_chunks, "google_crc32c", None)
    assert open_store(location).site().local is None


def test_other_stores_are_left_to_tensorstore(location):
    site = open_store(location).site()
    spec = site.arrays["activations"].spec().to_json()
    spec["kvstore"]["path"] += "other/"
    spec["metadata"]["chunk_key_encoding"] = {"name": "v2"}
    other = ts.open({"driver": "zarr3", **{k: spec[k] for k in ("kvstore", "metadata")}}, create=True).result()
    assert local_chunks.open_chunks(site.kvstore, "clip.layer.1/activations", other) is None
    memory = ts.KvStore.open("memory://x/").result()
    assert local_chunks.open_chunks(memory, "clip.layer.1/activations", site.arrays["activations"]) is None
