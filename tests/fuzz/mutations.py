"""Random changes of valid files: of bytes, and of the values in JSON."""

import copy
import json
import random
import struct
import typing

# Values that parsers and arithmetic often get wrong.
TEXTS = ("", "\0", "x" * 5000, "a/../../b", "\u202e", "nan", "None", "1e999", "[[", "http://[", "s3://", "é\n")
NUMBERS = (0, -1, 1, 2**31, 2**62, 10**15, 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320)
VALUES = (None, True, False, [], {}, [None], [[]], {"": 0}, *TEXTS, *NUMBERS)
RAW = (b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"[" * 100_000, b'{"a":' * 5000, b'{"a": 1, "a": 2}', b"9" * 5000)
MARK = "\ufdd0 a value that no file holds"


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Return data with one to four changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = _changed_json(data, draw) if draw.random() < 0.7 and data[:1] in (b"{", b"[") else _changed(data, draw)
    return data


def _changed_json(data: bytes, draw: random.Random) -> bytes:
    """Replace, remove or repeat a random value of the first JSON value in the data."""
    try:
        tree, end = json.JSONDecoder().raw_decode(data.decode())
    except (ValueError, RecursionError):
        return _changed(data, draw)
    rest = data.decode()[end:].encode()
    places = list(_places(tree))
    if not places:
        return _changed(data, draw)
    place, key = draw.choice(places)
    action = draw.random()
    if action < 0.15:
        del place[key]
    elif action < 0.3 and isinstance(place, dict):
        place[draw.choice(TEXTS)] = place.pop(key)
    elif action < 0.4:
        place[key] = copy.deepcopy(draw.choice(places)[0])
    elif action < 0.55:
        place[key] = MARK
        return json.dumps(tree).encode().replace(json.dumps(MARK).encode(), draw.choice(RAW)) + rest
    else:
        old = place[key]
        number = isinstance(old, int | float) and not isinstance(old, bool) and draw.random() < 0.5
        place[key] = (
            draw.choice((old + 1, old - 1, -old, old * 2, old / 2 if abs(old) < 1e300 else 0.5))
            if number
            else draw.choice(VALUES)
        )
    try:
        return json.dumps(tree).encode() + rest
    except ValueError:  # a whole number of too many digits
        return data


def _places(tree: typing.Any) -> typing.Iterator[tuple[typing.Any, typing.Any]]:
    """Yield every container in a JSON value with each of its keys."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _changed(data: bytes, draw: random.Random) -> bytes:
    """Change some bytes."""
    if not data:
        return draw.randbytes(draw.randrange(1, 9))
    at = draw.randrange(len(data))
    match draw.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        case 2:
            return data[:at] + draw.randbytes(draw.randrange(1, 9)) + data[at:]
        case 3:  # a size or an offset
            number = draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**60, 2**63, 2**64 - 1))
            return data[:at] + struct.pack(draw.choice("<>") + "Q", number)[: draw.choice((4, 8))] + data[at + 8 :]
        case 4:
            stop = min(len(data), at + draw.randrange(1, 64))
            return data[:at] + data[stop:]
        case 5:
            stop = min(len(data), at + draw.randrange(1, 64))
            return data[:stop] + data[at:stop] * draw.choice((1, 2, 100)) + data[stop:]
        case _:
            return data[:at] + draw.choice((*RAW[:4], *(text.encode() for text in TEXTS))) + data[at + 1 :]
