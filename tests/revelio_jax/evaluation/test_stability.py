"""Stability of two dictionaries against the best assignment by trial, and beyond the size of the exact method."""

import itertools

import numpy as np
import pytest

from revelio_jax.evaluation import stability as module
from revelio_jax.evaluation.stability import stability


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_matching_is_the_best_of_all_permutations():
    random = np.random.default_rng(0)
    for _ in range(5):
        one, other = random.normal(size=(5, 4)), random.normal(size=(5, 4))
        cosine = unit(one) @ unit(other).T
        best = max(itertools.permutations(range(5)), key=lambda order: cosine[range(5), order].sum())
        result = stability(one, other)
        assert result["mean_cosine"] == pytest.approx(cosine[range(5), best].mean(), abs=1e-6)
        assert result["shared"] == pytest.approx((cosine[range(5), best] > 0.7).mean())
        assert result["matching"] == "hungarian"


def test_order_and_length_of_the_rows_do_not_matter():
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 8))
    result = stability(rows, 3 * random.permutation(rows))
    assert result["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert result["shared"] == 1


def test_different_numbers_of_latents_match_the_smaller_dictionary():
    random = np.random.default_rng(0)
    rows = random.normal(size=(30, 8))
    for result in (stability(rows, rows[:12]), stability(rows[:12], rows)):
        assert result["latents"] == 12
        assert result["mean_cosine"] == pytest.approx(1, abs=1e-6)


def test_a_dead_latent_has_cosine_0():
    rows = np.eye(4)
    dead = rows.copy()
    dead[2] = 0
    result = stability(dead, rows)
    assert result["mean_cosine"] == pytest.approx(3 / 4)
    assert result["shared"] == 3 / 4


@pytest.mark.parametrize("exact", [0, 7])
def test_large_dictionaries_are_matched_greedily(exact, monkeypatch):
    random = np.random.default_rng(0)
    one = random.normal(size=(60, 6))
    other = np.concatenate([one[:30] + 0.3 * random.normal(size=(30, 6)), random.normal(size=(30, 6))])
    exact_result = stability(one, other)
    monkeypatch.setattr(module, "EXACT", exact)
    monkeypatch.setattr(module, "BLOCK", 16)
    result = stability(one, other)
    assert result["matching"] == "greedy"
    cosine, taken = unit(one) @ unit(other).T, []
    if exact == 0:  # the largest remaining cosine, again and again
        for _ in range(60):
            row, column = np.unravel_index(cosine.argmax(), cosine.shape)
            taken.append(cosine[row, column])
            cosine[row], cosine[:, column] = -np.inf, -np.inf
        assert result["mean_cosine"] == pytest.approx(np.mean(taken), abs=1e-5)
    assert exact_result["mean_cosine"] / 2 <= result["mean_cosine"] <= exact_result["mean_cosine"] + 1e-6
    assert abs(result["shared"] - exact_result["shared"]) < 0.1
