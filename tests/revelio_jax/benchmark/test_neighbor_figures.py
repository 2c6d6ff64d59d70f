"""Retention of neighbors, against counts by hand."""

import numpy as np
import pytest

from revelio_jax.benchmark import neighbors
from revelio_jax.errors import InputError

PLAIN = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
METHOD = np.array([[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1]], bool)


def test_pinpointness_is_the_share_of_images_that_show_their_neighbor():
    found = neighbors.pinpointness(METHOD)
    assert found["mean"] == pytest.approx(7 / 12)
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1


def test_survival_counts_only_images_in_which_the_plain_pipeline_shows_the_neighbor():
    assert neighbors.survival(METHOD, PLAIN)["mean"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert neighbors.survival(PLAIN, PLAIN) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    with pytest.raises(InputError, match="the plain pipeline shows no neighbor in any image"):
        neighbors.survival(METHOD[2:], PLAIN[2:])


def test_harm_of_each_neighbor():
    """A method may also show a neighbor that the plain pipeline does not show: its harm is negative."""
    found = neighbors.harms(["apple", "pear", "fig"], METHOD, PLAIN)
    assert [(harm["neighbor"], harm["plain"], harm["method"], harm["harm"]) for harm in found] == [
        ("apple", 1.0, 0.75, 0.25),
        ("pear", 0.5, 0.75, -0.25),
        ("fig", 0.0, 0.25, -0.25),
    ]
    assert all(harm["low"] <= harm["harm"] <= harm["high"] for harm in found)
    assert found[0]["low"] == 0.0  # one image of four can be absent from a draw
    with pytest.raises(InputError, match="there are 2 names for 3 neighbors"):
        neighbors.harms(["apple", "pear"], METHOD, PLAIN)


def test_the_interval_of_a_harm_pairs_images_of_one_seed():
    """Both see half of the images, always the same ones: the difference is exactly 0."""
    half = np.array([[1, 0] * 20], bool)
    assert neighbors.harms(["apple"], half, half)[0]["high"] == 0.0
    assert neighbors.harms(["apple"], ~half, half)[0]["high"] > 0.0


def test_selective_alignment_weights_nouns():
    found = neighbors.selective_alignment([[True, True, True, False], [False]])
    assert found["mean"] == pytest.approx(3 / 5)
    # Two prompts, drawn twice: 3/4 of the nouns, 3/5 or none.
    assert (found["low"], found["high"]) == (0.0, 0.75)
    with pytest.raises(InputError, match="at least one noun for every prompt"):
        neighbors.selective_alignment([[True], []])


def test_wrong_arrays_are_refused():
    with pytest.raises(InputError, match=r"float64 \(3, 4\); it must be bool \[neighbors, images\]"):
        neighbors.pinpointness(METHOD.astype(float))
    with pytest.raises(InputError, match=r"shapes \(3, 4\) and \(3, 2\)"):
        neighbors.survival(METHOD, PLAIN[:, :2])
