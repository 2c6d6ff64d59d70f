"""What is typed and painted: read as it is meant, or refused in one line."""

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
from revelio_jax.explore.requests import mask_of, painted, positions


def address(layer: np.ndarray) -> str:
    written = io.BytesIO()
    PIL.Image.fromarray(layer).save(written, "png")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


@settings(deadline=None)
@given(st.sets(st.integers(0, 90), min_size=1))
def test_positions_as_numbers_and_ranges(numbers):
    parts, numbers = [], sorted(numbers)
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            first = numbers[start]
            parts.append(f"{first}" if first == number else f" {first}-{number}")
            start = i + 1
    assert positions(",".join(parts)) == tuple(numbers)


@pytest.mark.parametrize("typed", ["some", "1,,2", "3-1", "-1", "1-", "9999", "1" * 30, "²"])
def test_positions_that_are_none(typed):
    with pytest.raises(InputError, match="positions"):
        positions(typed)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_for_positions_is_read_or_refused(typed):
    with contextlib.suppress(InputError):
        positions(typed)


def test_a_mask_is_the_share_that_is_painted():
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:4, :4, 3] = 255  # a quarter, whole
    layer[4:, 4:6, 3] = 255  # half of a quarter
    mask = mask_of(painted(address(layer), 2, 2))
    np.testing.assert_allclose(mask, [[1, 0], [0, 0.5]], atol=1 / 255)


@pytest.mark.parametrize("nothing", [None, "", address(np.zeros((4, 4, 4), np.uint8))])
def test_nothing_painted_is_no_mask(nothing):
    assert painted(nothing, 8, 8) is None


@pytest.mark.parametrize(
    "sent",
    [
        "http://127.0.0.1/mask.png",
        "/etc/passwd",
        "data:image/png;base64,????",
        "data:image/png;base64," + base64.b64encode(b"no picture").decode(),
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
        "data:image/png;base64," + "A" * 9_000_000,
        address(np.zeros((1, 5000, 4), np.uint8)),
    ],
)
def test_what_is_no_painting_is_refused(sent):
    with pytest.raises(InputError, match="the mask cannot be read"):
        painted(sent, 8, 8)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": None}, "prompt is empty"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is empty"),
        ({"steps": float("nan")}, "steps is nan"),
        ({"guidance": float("inf")}, "guidance is inf"),
    ],
)
def test_fields_that_are_wrong(fields, said):
    right = {"prompt": "a cat", "seed": 0, "steps": 2, "guidance": 2.5, "size": (32, 32)}
    assert requests.sampling(**right).prompt == "a cat"
    with pytest.raises(InputError, match=said):
        requests.sampling(**right | fields)


def test_timesteps_fall():
    assert requests.timesteps(1000, 0) is None
    assert requests.timesteps(900, 200) == (900, 200)
    with pytest.raises(InputError, match="they fall"):
        requests.timesteps(200, 900)


def test_a_file_is_no_concept():
    with pytest.raises(InputError, match="no file"):
        requests.concept("/somewhere/glossy.safetensors")
