"""Write data as scripts, because browsers refuse ``fetch`` on pages opened from disk but load scripts.

``data/KEY.js`` has one call, ``put(KEY, value)``. Untrusted strings are values, never keys.
"""

import base64
import json
import math
import pathlib
import typing
import zlib

import numpy as np

# Characters that can end a script element or a line of JavaScript.
ESCAPED = str.maketrans({"<": "\\u003c", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def dumps(value: typing.Any) -> str:
    """Return JSON on one line that is safe inside a script element. Raise ValueError for NaN."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(ESCAPED)


def write(report: pathlib.Path, key: str, value: typing.Any) -> None:
    """Write ``data/KEY.js`` in the folder of a report."""
    path = report / "data" / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"put({dumps(key)},{dumps(value)});\n", encoding="utf-8")


def pack(data: np.ndarray | bytes) -> str:
    """Return an array (little-endian) or bytes as base64 of zlib, which ``unpack`` in load.js reads."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data, data.dtype.newbyteorder("<")).tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


def round_digits(values: np.ndarray, digits: int = 4) -> np.ndarray:
    """Return finite numbers rounded to ``digits`` significant digits, float64, as in :func:`number`."""
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        places = digits - 1 - np.floor(np.log10(np.abs(values)))
    places = np.where(np.isfinite(places), places, 0).astype(np.int64)
    up, down = 10.0 ** places.clip(0), 10.0 ** (-places).clip(0)
    return np.rint(values * up / down) / up * down  # whole numbers and powers of ten are exact


def number(value: typing.Any, digits: int = 4) -> float | int | None:
    """Return a number rounded to ``digits`` significant digits; None if it is missing or not finite."""
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    value = float(f"{value:.{digits}g}")
    return int(value) if value.is_integer() else value
