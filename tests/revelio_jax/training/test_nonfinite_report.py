"""A non-finite loss stops the run and reports the step, the checkpoint and the rows."""

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
    """Train a run that must stop; return its message and the contents of nonfinite.json."""
    with pytest.raises(SystemExit) as stopped:
        train(config)
    run = pathlib.Path(config.run)

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((run / "nonfinite.json").read_text(), parse_constant=no_constant)
    message = stopped.value.code  # text: printed to stderr with exit status 1
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith(f"error: step {record['step']}: loss is ")
    assert str(run / "nonfinite.json") in message
    assert record["step"] > checkpoints.newest_step(run)
    return message, record


@pytest.fixture
def broken(base, with_train, planted, write_store, tmp_path):
    """A function that returns the config of a run on a store with ``value`` in one row, and the row's number.

    The run sees this row first in STEP. ``later`` writes the value after the store is finished, so that the
    statistics of the store do not include it.
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
    ("value", "later", "largest", "fields"),
    [
        (1e30, False, 1e30, {}),
        (1e30, True, 1e30, {}),
        (np.nan, True, "nan", {}),
        (np.nan, True, "nan", {"resident": "yes", "steps_per_dispatch": 20}),  # in the middle of a dispatch
    ],
)
def test_the_report_names_the_broken_row(broken, with_train, value, later, largest, fields):
    config, row = broken(value, later, normalize="none", b_dec_init="zero")
    message, record = stop(with_train(config, **fields))
    assert record["step"] == STEP
    assert record["checkpoint"] == f"{config.run}/checkpoints/40"
    assert f"last good checkpoint: {record['checkpoint']};" in message
    assert record["rows"][0] == row
    assert record["largest"][0] == (largest if isinstance(largest, str) else pytest.approx(largest))
    sample = order_of(config)[0].read_index("sample", row, row + 1)[0]
    assert f"row {row} (sample {sample}, |x| {value:.4g})" in message
    assert f"and {config.train.batch_size - 3} more" in message


def test_the_report_has_all_rows_of_the_step(broken, planted):
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


def test_the_report_shows_a_standard_deviation_that_a_row_spoils(broken):
    """The failing batch may not contain the row, but the standard deviation shows it."""
    config, _ = broken(1e30)
    message, record = stop(config)
    assert record["std"] > 1e27 > 1e3 > record["largest"][0]
    assert record["checkpoint"] is None
    assert "last good checkpoint: none" in message
    assert f"the standard deviation of the store's rows is {record['std']:.4g}" in message


def test_a_learning_rate_that_is_too_high_is_reported(base, with_train, tmp_path):
    message, record = stop(with_train(base, run=str(tmp_path / "run"), learning_rate=1e30))
    assert "lower config.train.learning_rate and resume" in message
    assert record["step"] > 1
