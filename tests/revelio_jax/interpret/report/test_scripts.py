"""Data written as JavaScript: any value survives the round trip."""

import json
import zlib
from base64 import b64decode

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revelio_jax.interpret.report import scripts

# Slow data generation is not a failure on a busy machine.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TEXTS = st.recursive(st.text() | st.none() | st.integers(), lambda inner: st.lists(inner, max_size=4))


@UNTIMED
@given(TEXTS)
def test_values_round_trip_and_cannot_end_a_script(value):
    written = scripts.dumps(value)
    assert json.loads(written) == value
    assert not set(written) & {"<", "\u2028", "\u2029", "\n"}


def test_nan_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        scripts.dumps(float("nan"))


@UNTIMED
@given(st.binary())
def test_packed_bytes_round_trip(data):
    assert zlib.decompress(b64decode(scripts.pack(data))) == data


def test_packed_numbers_are_little_endian():
    column = np.array([1.5, np.nan, -2], ">f4")
    read = np.frombuffer(zlib.decompress(b64decode(scripts.pack(column))), "<f4")
    np.testing.assert_array_equal(read, column)


@UNTIMED
@given(
    st.lists(st.floats(-(2**20), 2**20, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)),
    st.integers(2, 6),
)
def test_round_digits_equals_number(values, digits):
    rounded = scripts.round_digits(np.array(values, np.float32), digits)
    assert rounded.tolist() == [scripts.number(value, digits) for value in values]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0.123456, 0.1235),
        (1.0, 1),
        (-0.0, 0),
        (np.float32(0.1), 0.1),
        (None, None),
        (np.nan, None),
        (-np.inf, None),
    ],
)
def test_numbers_are_rounded_to_significant_digits(value, number):
    shortened = scripts.number(value)
    assert shortened == number
    assert type(shortened) is type(number)
