"""Every value of the page's fields is read or refused with one line."""

import base64
import contextlib
import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.errors import InputError
from revelio_jax.explore import requests
from revelio_jax.explore.requests import mask_of, painted_mask, positions


def data_url(layer: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(layer).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@settings(deadline=None)
@given(st.sets(st.integers(0, 90), min_size=1))
def test_positions_reads_numbers_and_ranges(numbers):
    parts, numbers = [], sorted(numbers)
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            first = numbers[start]
            parts.append(f"{first}" if first == number else f" {first}-{number}")
            start = i + 1
    assert positions(",".join(parts)) == tuple(numbers)


@pytest.mark.parametrize("text", ["some", "1,,2", "3-1", "-1", "1-", "9999", "1" * 30, "²"])
def test_malformed_positions_are_refused(text):
    with pytest.raises(InputError, match="tokens"):
        positions(text)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_for_positions_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        kept = positions(text)
        assert isinstance(kept, str) or (kept == tuple(sorted(set(kept))) and min(kept) >= 0)


def test_the_mask_is_the_painted_share_of_each_pixel():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:4, :4, 3] = 255  # one quarter, completely
    layer[4:, 4:6, 3] = 255  # half of another quarter
    mask = mask_of(painted_mask(data_url(layer), 2, 2))
    np.testing.assert_allclose(mask, [[1, 0], [0, 0.5]], atol=1 / 255)


@pytest.mark.parametrize("nothing", [None, "", data_url(np.zeros((4, 4, 4), np.uint8))])
def test_an_empty_painting_is_no_mask(nothing):
    assert painted_mask(nothing, 8, 8) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/mask.png",
        "/etc/passwd",
        "data:image/png;base64,????",
        "data:image/png;base64," + base64.b64encode(b"not an image").decode(),
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
        "data:image/png;base64," + "A" * 9_000_000,
        data_url(np.zeros((1, 5000, 4), np.uint8)),
    ],
)
def test_a_malformed_painting_is_refused(url):
    with pytest.raises(InputError, match="the mask cannot be read"):
        painted_mask(url, 8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is empty"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is empty"),
        ({"steps": float("nan")}, "steps is nan"),
        ({"guidance": float("inf")}, "guidance is inf"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    valid = {"prompt": "a cat", "seed": 0, "steps": 2, "guidance": 2.5, "size": (32, 32)}
    assert requests.sampling(**valid).prompt == "a cat"
    with pytest.raises(InputError, match=message):
        requests.sampling(**valid | fields)


def test_rising_timesteps_are_refused():
    assert requests.timesteps(1000, 0) is None
    assert requests.timesteps(900, 200) == (900, 200)
    with pytest.raises(InputError, match="they must decrease"):
        requests.timesteps(200, 900)


def test_a_file_is_refused_as_a_concept():
    with pytest.raises(InputError, match="not a file"):
        requests.concept("/somewhere/glossy.safetensors")
