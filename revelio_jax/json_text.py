"""Parse JSON from files that anyone may have written: configs, manifests, SAE folders, prompts, results."""

import json
import math
import typing


def parse(text: bytes | str) -> typing.Any:
    """Return the value of a JSON text.

    Python's parser accepts more than JSON and raises several kinds of errors. This function raises only ValueError: if
    the text is malformed or nested too deeply, if an object repeats a name, if a number is NaN or does not fit a float,
    or if a string has half of a surrogate pair, which cannot be written or printed.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant, parse_float=_finite_float
        )
        escaped = "\\ud" in text.lower() if isinstance(text, str) else b"\\ud" in text.lower()
        if escaped:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a string has half of a surrogate pair") from None
    return value


def parse_object(text: bytes | str) -> dict[str, typing.Any]:
    """Return the object of a JSON text, as :func:`parse`. Raise ValueError if the value is not an object."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _unique_names(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object repeats a name")
    return content


def _refuse_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
