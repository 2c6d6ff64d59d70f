"""Where things lie in a store, and the TensorStore specs that writer and reader share."""

import json
import pathlib
import re
import typing
import urllib.parse

import tensorstore as ts

from revelio_jax.errors import InputError

FORMAT_VERSION = 1
DTYPES = ("bfloat16", "float16", "float32")
INDEX_ARRAYS = ("sample", "position", "timestep")
SCHEMES = ("file", "gs", "s3", "memory", "http", "https")

# What TensorStore calls the generation of a key that is not there.
MISSING = b"\x02"

# One context for the process: what is written to memory:// is there for the next that opens it.
CONTEXT = ts.Context()


def kvstore_url(location: str) -> str:
    """A TensorStore URL for a folder or a URL. Raises InputError where it is neither."""
    if not location:
        raise InputError("config.extract.store is empty; it names a folder or a URL such as gs://bucket/store/")
    scheme, colon, _ = location.partition("://")
    if colon and scheme not in SCHEMES:
        raise InputError(f"store {location!r}: unknown scheme {scheme}; known: {', '.join(SCHEMES)}")
    if colon:
        return location.rstrip("/") + "/"
    return "file://" + urllib.parse.quote(str(pathlib.Path(location).absolute())) + "/"


def local_folder(location: str) -> pathlib.Path | None:
    """The folder of a store on this machine's file systems, None for any other."""
    scheme, _, path = kvstore_url(location).partition("://")
    return pathlib.Path(urllib.parse.unquote(path)) if scheme == "file" else None


def open_kvstore(location: str) -> ts.KvStore:
    """Open a location for reading and writing. Raises InputError where it cannot be."""
    url = kvstore_url(location)
    try:
        return ts.KvStore.open(url, context=CONTEXT).result()
    except (ValueError, OSError) as error:
        raise InputError(f"store {location}: {error}") from error


def read_json(kvstore: ts.KvStore, key: str) -> dict[str, typing.Any] | None:
    """The JSON object under ``key``, or None where there is none. Raises InputError."""
    try:
        got = kvstore.read(key).result()
        return json.loads(got.value) if got.state == "value" else None
    except (ValueError, OSError) as error:  # no JSON; or a file where a folder should be
        raise InputError(f"{kvstore.url}{key} cannot be read: {error}") from error


def json_bytes(value: typing.Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_json(kvstore: ts.KvStore, key: str, value: typing.Any) -> None:
    kvstore.write(key, json_bytes(value)).result()


def write_new(kvstore: ts.KvStore, key: str, data: bytes) -> None:
    """Write a key that nobody has written: of several that do so at once the first one wins."""
    kvstore.write(key, data, if_equal=MISSING).result()


def shard_key(index: int) -> str:
    return f"shards/{index:05d}.json"


def done_shards(kvstore: ts.KvStore) -> set[int]:
    """Numbers of the shards that have a marker."""
    keys = kvstore.list(ts.KvStore.KeyRange("shards/", "shards0")).result()
    return {int(found[1]) for key in keys if (found := re.fullmatch(rb"shards/(\d+)\.json", key))}


def open_array(kvstore: ts.KvStore, key: str) -> ts.TensorStore:
    """Open an array for reading. TensorStore raises ValueError for a missing and for a broken one."""
    spec = {"driver": "zarr3", "kvstore": (kvstore / f"{key}/").spec().to_json()}
    return ts.open(spec, read=True, context=CONTEXT).result()


def array_spec(
    kvstore: ts.KvStore, key: str, dtype: str, shape: list[int], shard_rows: int, chunk_rows: int
) -> dict[str, typing.Any]:
    """A zarr3 array whose outer chunk is the shard and whose inner chunk is the unit of reading."""
    tail = shape[1:]
    return {
        "driver": "zarr3",
        "kvstore": (kvstore / f"{key}/").spec().to_json(),
        "metadata": {
            "shape": shape,
            "data_type": dtype,
            "fill_value": -1 if dtype == "int32" else 0.0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *tail]}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [chunk_rows, *tail],
                        "codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {"name": "crc32c"},
                        ],
                        "index_codecs": [
                            {"name": "bytes", "configuration": {"endian": "little"}},
                            {"name": "crc32c"},
                        ],
                    },
                }
            ],
        },
    }
