"""The layout of a store, and the TensorStore specs that writer and reader share."""

import json
import pathlib
import re
import typing
import urllib.parse

import tensorstore as ts

from revelio_jax import checksums, json_text
from revelio_jax.errors import InputError, read_failure
from revelio_jax.store import conformity, object_storage
from revelio_jax.store.json_files import Header, Manifest, Marker, Plan

FORMAT_VERSION = 1
DTYPES = ("bfloat16", "float16", "float32")
INDEX_ARRAYS = ("sample", "position", "timestep")
SCHEMES = ("file", "gs", "s3", "memory", "http", "https")

SAMPLES_SHA256 = "samples_sha256"  # in the notes of a plan and a manifest; earlier versions did not write it

# TensorStore's generation of a missing key.
MISSING = b"\x02"

# One context for the process, so that a store in memory:// can be opened again.
CONTEXT = ts.Context(object_storage.resources())


def checked_location(location: str | None) -> str:
    """Return ``location``. Raise InputError if it is empty or None."""
    if not location:
        raise InputError(
            "config.extract.store is not set; it must be a folder or a URL, for example gs://bucket/store/"
        )
    return location


def kvstore_url(location: str | None) -> str:
    """Return the TensorStore URL of a folder or URL. Raise InputError for an empty location or unknown scheme."""
    location = checked_location(location)
    scheme, colon, _ = location.partition("://")
    if colon and scheme not in SCHEMES:
        raise InputError(f"store {location!r}: unknown scheme {scheme}; allowed: {', '.join(SCHEMES)}")
    if colon:
        return location.rstrip("/") + "/"
    return "file://" + urllib.parse.quote(str(pathlib.Path(location).absolute())) + "/"


def local_folder(location: str | None) -> pathlib.Path | None:
    """Return the folder of a store on a local file system, otherwise None."""
    scheme, _, path = kvstore_url(location).partition("://")
    return pathlib.Path(urllib.parse.unquote(path)) if scheme == "file" else None


def open_kvstore(location: str | None) -> ts.KvStore:
    """Open a location for reading and writing. Raise InputError if it cannot be opened."""
    url = kvstore_url(location)
    try:
        return ts.KvStore.open(object_storage.spec(url), context=CONTEXT).result()
    except (ValueError, OSError) as error:
        raise InputError(f"store {location}: {error}") from error


def read_json(kvstore: ts.KvStore, key: str) -> dict[str, typing.Any] | None:
    """Return the JSON object under ``key``, or None if it is missing.

    Raise InputError if it cannot be read or does not match its checksum.
    """
    try:
        result = kvstore.read(key).result()
        content = json_text.parse(result.value) if result.state == "value" else None
        # A later version, which check_version reports, may have another rule.
        if isinstance(content, dict) and content.get("format_version", FORMAT_VERSION) == FORMAT_VERSION:
            content = checksums.unsealed(content)
    except (ValueError, OSError) as error:  # malformed JSON, or a file instead of a folder
        raise read_failure(f"{object_storage.url_of(kvstore)}{key}", error) from error
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{object_storage.url_of(kvstore)}{key} is not a JSON object")
    return content


def read_plan(kvstore: ts.KvStore) -> Plan | None:
    """Return plan.json, or None if it is missing. Raise InputError if it cannot be read."""
    plan = read_json(kvstore, "plan.json")
    if plan is not None and plan.get("format_version") == FORMAT_VERSION:
        conformity.check_plan(plan, f"{object_storage.url_of(kvstore)}plan.json")
    return typing.cast(Plan | None, plan)


def read_manifest(kvstore: ts.KvStore) -> Manifest | None:
    """Return manifest.json, or None if it is missing. Raise InputError if it cannot be read."""
    manifest = read_json(kvstore, "manifest.json")
    if manifest is not None and manifest.get("format_version") == FORMAT_VERSION:
        conformity.check_type(manifest, Manifest, f"{object_storage.url_of(kvstore)}manifest.json")
    return typing.cast(Manifest | None, manifest)


def read_marker(kvstore: ts.KvStore, shard: int) -> Marker | None:
    """Return the marker of a shard, or None if it is missing. Raise InputError if it cannot be read."""
    marker = read_json(kvstore, shard_key(shard))
    if marker is not None:
        conformity.check_type(marker, Marker, f"{object_storage.url_of(kvstore)}{shard_key(shard)}")
    return marker


def check_samples(header: Plan | Manifest, data: bytes) -> None:
    """Raise ValueError if the bytes of samples.parquet do not match their checksum."""
    sha256 = checksums.of_bytes(data)
    if header.get("notes", {}).get(SAMPLES_SHA256, sha256) != sha256:
        raise ValueError("it does not match its checksum")


def check_version(location: str, header: Header) -> None:
    """Raise InputError if a plan or manifest has another format version."""
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(f"store {location} has format version {version}; this version reads {FORMAT_VERSION}")


def json_bytes(value: typing.Mapping[str, typing.Any]) -> bytes:
    """Return a JSON object with its checksum as the bytes of a file."""
    return (json.dumps(checksums.sealed(value), indent=1, sort_keys=True) + "\n").encode()


def write_json(kvstore: ts.KvStore, key: str, value: typing.Mapping[str, typing.Any]) -> None:
    kvstore.write(key, json_bytes(value)).result()


def write_new(kvstore: ts.KvStore, key: str, data: bytes) -> None:
    """Write a key if it is missing; of several simultaneous writers, the first one wins."""
    kvstore.write(key, data, if_equal=MISSING).result()


def shard_key(index: int) -> str:
    return f"shards/{index:05d}.json"


def image_key(sample: int) -> str:
    """Return the key of a sample's saved image."""
    return f"images/{sample:08d}.png"


def latents_key(sample: int) -> str:
    """Return the key of a sample's saved final latents."""
    return f"latents/{sample:08d}.npy"


def done_shards(kvstore: ts.KvStore) -> set[int]:
    """Return the numbers of the shards that have a marker."""
    keys = kvstore.list(ts.KvStore.KeyRange("shards/", "shards0")).result()
    return {int(match[1]) for key in keys if (match := re.fullmatch(rb"shards/(\d+)\.json", key))}


def open_array(kvstore: ts.KvStore, key: str, fill: bool = True) -> ts.TensorStore:
    """Open an array for reading. TensorStore raises ValueError if it is missing or broken.

    A chunk without data reads as the fill value; with ``fill=False`` it raises ValueError.
    """
    spec = {"driver": "zarr3", "kvstore": (kvstore / f"{key}/").spec().to_json(), "fill_missing_data_reads": fill}
    return ts.open(spec, read=True, context=CONTEXT).result()


def check_array(array: ts.TensorStore, spec: dict[str, typing.Any]) -> None:
    """Raise ValueError if an array has another dtype, chunks or codecs than ``spec``, or fewer rows.

    Otherwise its metadata could make a reader decode chunks of any size.
    """
    stored, expected = array.spec().to_json()["metadata"], spec["metadata"]
    for name in ("data_type", "chunk_grid", "codecs"):
        if stored[name] != expected[name]:
            raise ValueError(f"{name} is {json.dumps(stored[name])[:200]}; it must be {json.dumps(expected[name])}")
    if array.shape[0] < expected["shape"][0]:
        raise ValueError(f"it has {array.shape[0]} rows; it must have {expected['shape'][0]}")


def array_spec(
    kvstore: ts.KvStore, key: str, dtype: str, shape: list[int], shard_rows: int, chunk_rows: int
) -> dict[str, typing.Any]:
    """Return the spec of a zarr3 array: the outer chunk is the shard, the inner chunk the unit of reading."""
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
                        "index_location": "end",
                    },
                }
            ],
        },
    }
