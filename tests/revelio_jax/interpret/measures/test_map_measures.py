"""Moran's I and the localization of maps against their definitions, in float64."""

import itertools
import math

import numpy as np
import pytest

from revelio_jax.interpret.measures import autocorrelation, localization
from revelio_jax.interpret.measures.autocorrelation import morans_i


def by_definition(values):
    """Moran's I with an explicit matrix of weights."""
    cells = list(itertools.product(*map(range, values.shape)))
    weights = np.array([[float(abs(a - c) + abs(b - d) == 1) for c, d in cells] for a, b in cells])
    z = values.reshape(-1) - values.mean()
    return len(z) / weights.sum() * (weights * np.outer(z, z)).sum() / np.square(z).sum()


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 6), (2, 1)])
def test_morans_i_is_its_definition(shape):
    maps = np.random.default_rng(0).exponential(size=(3, *shape))
    np.testing.assert_allclose(morans_i(maps), [by_definition(values) for values in maps], atol=1e-12)


def test_areas_score_high_and_a_checkerboard_minus_one():
    checkers = np.indices((6, 6)).sum(0) % 2
    half = np.zeros((6, 6))
    half[:3] = 1
    single = np.zeros((6, 6))
    single[2, 2] = 1
    areas, board, point = morans_i(np.stack([half, checkers, single]))
    assert areas == pytest.approx(0.8)  # 54 of 60 edges join equal values
    assert board == pytest.approx(-1)
    assert abs(point - autocorrelation.expected(36)) < 0.05


def test_maps_without_variation_have_none():
    assert np.isnan(morans_i(np.array([np.full((3, 3), 0.1), np.zeros((3, 3))]))).all()
    assert np.isnan(morans_i(np.ones((1, 1, 1)))).all()


def test_shuffled_values_have_the_expected_value():
    random = np.random.default_rng(0)
    maps = random.permuted(np.tile(np.arange(16.0), (20_000, 1)), axis=1).reshape(-1, 4, 4)
    assert morans_i(maps).mean() == pytest.approx(autocorrelation.expected(16), abs=0.005)


@pytest.mark.parametrize("cells", [1, 9, 10, 64])
def test_the_share_in_the_top_cells_is_its_definition(cells):
    maps = np.random.default_rng(0).exponential(size=(3, cells))
    count = math.ceil(cells / 10)
    expected = [sum(sorted(values, reverse=True)[:count]) / sum(values) for values in maps.tolist()]
    np.testing.assert_allclose(localization.share_in_top(maps), expected, atol=1e-12)
    assert localization.share_in_top(np.ones((1, cells)))[0] == pytest.approx(localization.expected(cells))
    assert np.isnan(localization.share_in_top(np.zeros((1, cells)))[0])


def test_the_share_inside_a_mask_weighs_partly_covered_positions():
    maps = np.array([[1.0, 2, 3, 4], [0, 0, 0, 0], [1, 0, 0, 0]])
    masks = np.array([[1.0, 0.5, 0, 0], [1, 1, 1, 1], [np.nan] * 4])
    shares = localization.share_inside(maps, masks)
    assert shares[0] == pytest.approx(2 / 10)
    assert np.isnan(shares[1:]).all()
