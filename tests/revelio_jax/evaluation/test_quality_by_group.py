"""Quality by group equals a plain computation on the rows of each group, for every form of a code."""

import jax.numpy as jnp
import numpy as np
import pytest

from revelio_jax.evaluation import groups, redundancy
from revelio_jax.evaluation.quality import measure
from revelio_jax.sae import reference
from revelio_jax.sae.code import Code
from revelio_jax.training.run import make_order, open_run, restore_run


def test_groups_equal_a_plain_computation(trained):
    _, mixture = open_run(trained)
    order, (_, _, state, mesh) = make_order(trained, mixture), restore_run(trained)
    by_first = groups.Grouping("sign", ("low", "high", "none"), lambda chunk, x_ND: (x_ND[:, 0] > 0).astype(np.int32))
    partitions = [*groups.groupings(mixture, order), by_first]
    batch = trained.train.batch_size
    rows = groups.labeled_rows(mixture, order, batch, partitions)
    quality, fires_F = measure(state, rows, partitions, trained.sae, batch, mesh)

    x = np.concatenate([mixture.sites[0].read(start, stop) for _, start, stop in order.held_out]).astype(np.float64)
    mean, scale = np.asarray(state.mean_D), float(state.scale)
    z = np.asarray(reference.encode(state.params, ((x - mean) / scale).astype(np.float32), trained.sae.k))
    x_hat = mean + scale * np.asarray(reference.decode(state.params, z), np.float64)
    assert list(quality["groups"]["sign"]) == ["low", "high"]  # a group without rows is left out
    weights, fvus = [], []
    for name, use in {"low": x[:, 0] <= 0, "high": x[:, 0] > 0}.items():
        measured, total = quality["groups"]["sign"][name], np.square(x[use] - x.mean(0)).sum()
        cosine = (x * x_hat)[use].sum(1) / np.linalg.norm(x[use], axis=1) / np.linalg.norm(x_hat[use], axis=1)
        assert measured["rows"] == use.sum()
        assert measured["fvu"] == pytest.approx(np.square(x - x_hat)[use].sum() / total, rel=1e-4)
        assert measured["cosine"] == pytest.approx(cosine.mean(), rel=1e-5)
        assert measured["l0"] == pytest.approx((z[use] > 0).sum(1).mean(), rel=1e-4)
        assert measured["dead_fraction"] == pytest.approx(1 - (z[use] > trained.sae.dead_threshold).any(0).mean())
        weights.append(total)
        fvus.append(measured["fvu"])
    assert quality["fvu"] == pytest.approx(np.average(fvus, weights=weights), rel=1e-6)
    density = (z > trained.sae.dead_threshold).mean(0)
    assert quality["always_firing"] == (density > 0.1).sum()
    np.testing.assert_array_equal(fires_F, density > 0)


def test_norm_deciles_have_about_a_tenth_of_the_rows(trained):
    _, mixture = open_run(trained)
    order = make_order(trained, mixture)
    partitions = groups.groupings(mixture, order)
    assert [grouping.name for grouping in partitions] == ["all", "norm"]  # one timestep, and no tokens
    labels = np.concatenate([labels for _, labels in groups.labeled_rows(mixture, order, 64, partitions)])
    shares = np.bincount(labels[:, 1], minlength=10) / len(labels)
    assert shares.sum() == 1
    assert np.abs(shares - 0.1).max() < 0.05


@pytest.mark.parametrize("form", ["slots", "matrix"])
def test_rows_are_counted_by_group(form):
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(size=(40, 12)), 0).astype(np.float32) * (rng.random((40, 12)) < 0.3)
    group = rng.integers(-1, 3, 40).astype(np.int32)
    code = Code(jnp.asarray(z))
    if form == "slots":
        indices = np.argsort(-z, 1)[:, :8]
        z = np.where(np.isin(np.arange(12), indices), z, 0) if z.astype(bool).sum(1).max() > 8 else z
        code = Code(jnp.asarray(np.take_along_axis(z, indices, 1)), jnp.asarray(indices))
    expected = np.stack([(z[group == g] > 0.1).sum(0) for g in range(3)])
    np.testing.assert_array_equal(code.count_by(jnp.asarray(group), 3, 12, 0.1), expected)


def test_redundancy_of_equal_and_orthogonal_directions():
    rows = np.concatenate([np.eye(4), np.eye(4)[:1] * 3, np.ones((1, 4))])
    fires = np.array([True] * 5 + [False])
    found = redundancy.redundancy(rows, fires)
    assert found == {"latents": 5, "quartiles": [0.0, 0.0, 1.0]}
    assert redundancy.redundancy(rows, np.zeros(6, bool)) is None
