"""Data as scripts: the only form in which a browser takes them from disk, where it refuses fetch.

``data/KEY.js`` calls one function, ``put(KEY, value)``. Strings that strangers wrote are values, never keys.
"""

import base64
import json
import math
import pathlib
import typing
import zlib

import numpy as np

# What would end a script or a line, if one were ever pasted into a page.
ESCAPED = str.maketrans({"<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def dumps(value: typing.Any) -> str:
    """JSON on one line that may stand in a script. Raises ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPED)


def write(report: pathlib.Path, key: str, value: typing.Any) -> None:
    """Write ``data/KEY.js`` into a report's folder, which is there."""
    path = report / "data" / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"put({dumps(key)},{dumps(value)});\n", encoding="utf-8")


def packed(data: np.ndarray | bytes) -> str:
    """Bytes, little-endian, as base64 of zlib; ``unpack`` in load.js reads them."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


def rounded(values: np.ndarray, digits: int = 4) -> np.ndarray:
    """Finite numbers as :func:`number` has them, all at once, float64."""
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
    places = np.where(np.isfinite(places), places, 0).astype(np.int64)
    up, down = 10.0 ** places.clip(0), 10.0 ** (-places).clip(0)
    return np.rint(values * up / down) / up * down  # only whole numbers and powers of ten: nothing is lost


def number(value: typing.Any, digits: int = 4) -> float | int | None:
    """A number as short as a reader needs it; None of what is missing or not finite."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    value = float(f"{value:.{digits}g}")
    return int(value) if value.is_integer() else value
