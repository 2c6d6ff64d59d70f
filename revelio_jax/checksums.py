"""Checksums of bytes, of JSON objects, in their own field ``checksum``, and of the tensors of a safetensors file.

Files without a checksum, for example of earlier versions, are not checked.
"""

import hashlib
import json
import typing
from collections.abc import Mapping

import numpy as np

FIELD = "checksum"
# In the metadata of a safetensors file.
TENSORS, CFG = "tensors_sha256", "cfg_sha256"


def sealed(content: Mapping[str, typing.Any]) -> dict[str, typing.Any]:
    """Return a JSON object with its checksum."""
    return {**content, FIELD: of_json(content)}


def unsealed(content: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Return a JSON object without its checksum. Raise ValueError if it does not match."""
    rest = {name: value for name, value in content.items() if name != FIELD}
    if FIELD in content and content[FIELD] != of_json(rest):
        raise ValueError(f"it does not match its {FIELD}, so it was damaged or edited")
    return rest


def of_bytes(data: bytes) -> str:
    """Return the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def of_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of arrays: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def sort_metadata(data: bytes) -> bytes:
    """Return a safetensors file, or its beginning with the header, with metadata in the order of their names.

    safetensors writes several entries in a random order, so the same tensors would not give the same bytes.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def of_json(content: Mapping[str, typing.Any]) -> str:
    """Return the sha256 of a JSON object, whatever the order of its names. Raise ValueError if it is nested deeply."""
    try:
        return of_bytes(json.dumps(content, sort_keys=True).encode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def line(data: bytes) -> dict[str, typing.Any]:
    """Return the sealed JSON object in a line of a file, or {} if it is incomplete, damaged or has no checksum."""
    try:
        content = json.loads(data)
        return unsealed(content) if FIELD in content else {}
    except (ValueError, TypeError, AttributeError):
        return {}
