"""A loss that is not finite: the run stops, and names the step, the checkpoint and the rows."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorstore as ts

from revelio_jax.train import train
from revelio_jax.training import checkpoints, loader
from revelio_jax.training.mixture import open_mixture
from revelio_jax.training.run import make_order

STEP, EVERY = 47, 20  # the step that takes the broken row; steps between checkpoints


def order_of(config):
    mixture = open_mixture([config.extract.store])
    return mixture.sites[0], make_order(config, mixture)


def stop(config):
    """What a run that must stop says and keeps."""
    with pytest.raises(SystemExit) as stopped:
        train(config)
    run = pathlib.Path(config.run)

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((run / "nonfinite.json").read_text(), parse_constant=no_constant)
    said = stopped.value.code  # a text: printed to stderr, exit status 1
    assert "\n" not in said
    assert len(said) < 1000
    assert said.startswith(f"error: step {record['step']}: loss is ")
    assert str(run / "nonfinite.json") in said
    assert record["step"] > checkpoints.newest(run)
    return said, record


@pytest.fixture
def broken(base, with_train, planted, write_store, tmp_path):
    """A function: the config of a run on a store with ``value`` in one row, and that row's number.

    The row is one that the run sees first in STEP. ``later`` writes the value when the store is finished,
    so that it is not in the store's statistics.
    """

    def make(value, later=False, **sae):
        store = str(tmp_path / "store")
        config = dataclasses.replace(
            with_train(base, run=str(tmp_path / "run"), checkpoint_every=EVERY),
            extract=dataclasses.replace(base.extract, store=store),
            sae=dataclasses.replace(base.sae, **sae),
        )
        rows = planted.copy()
        row = int(loader.rows_of(order_of(base)[1], STEP - 1)[1][5])
        if not later:
            rows[row, 3] = value
        write_store(store, rows)
        if later:
            path = f"file://{store}/clip.layer.1/activations/"
            ts.open({"driver": "zarr3", "kvstore": path}, write=True).result()[row, 3].write(value).result()
        return config, row

    return make


@pytest.mark.parametrize(
    ("value", "later", "largest"), [(1e30, False, 1e30), (1e30, True, 1e30), (np.nan, True, "nan")]
)
def test_a_broken_row_is_named(broken, value, later, largest):
    config, row = broken(value, later, normalize="none", b_dec_init="zero")
    said, record = stop(config)
    assert record["step"] == STEP
    assert record["checkpoint"] == f"{config.run}/checkpoints/40"
    assert f"last good checkpoint: {record['checkpoint']};" in said
    assert record["rows"][0] == row
    assert record["largest"][0] == (largest if isinstance(largest, str) else pytest.approx(largest))
    sample = order_of(config)[0].read_index("sample", row, row + 1)[0]
    assert f"row {row} (sample {sample}, |x| {value:.4g})" in said
    assert f"and {config.train.batch_size - 3} more" in said


def test_all_rows_of_the_step_are_kept(broken, planted):
    config, _ = broken(np.inf, later=True, b_dec_init="zero")
    _, record = stop(config)
    site, order = order_of(config)
    rows = np.array(record["rows"])
    assert sorted(rows) == sorted(loader.rows_of(order, record["step"] - 1)[1])
    for name in ("sample", "position", "timestep"):
        there = site.read_index(name, 0, len(planted))  # no row was dropped
        np.testing.assert_array_equal(record[f"{name}s"], there[rows])
    assert record["largest"][0] == "inf"
    np.testing.assert_allclose(record["largest"][1:], np.abs(planted[rows[1:]]).max(1))
    assert record["largest"][1:] == sorted(record["largest"][1:], reverse=True)


def test_a_row_that_spoils_the_statistics(broken):
    """The batch that fails need not have it; the standard deviation tells."""
    config, _ = broken(1e30)
    said, record = stop(config)
    assert record["std"] > 1e27 > 1e3 > record["largest"][0]
    assert record["checkpoint"] is None
    assert "last good checkpoint: none" in said
    assert f"the standard deviation of the store's rows is {record['std']:.4g}" in said


def test_a_rate_that_is_too_high(base, with_train, tmp_path):
    said, record = stop(with_train(base, run=str(tmp_path / "run"), learning_rate=1e30))
    assert "lower config.train.learning_rate and resume" in said
    assert record["step"] > 1
