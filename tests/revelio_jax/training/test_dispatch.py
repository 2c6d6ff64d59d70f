"""Several steps per dispatch give the same bits, lines, checkpoints and stops as steps one by one."""

import contextlib
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax import grid
from revelio_jax.config import TrainConfig
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints, dispatch, processes
from tests.helpers.configs import changed

TIMINGS = {"rows_per_s", "step_s", "data_wait_s", "rss_gib"}
ONE_LENGTH = {"steps": 28, "checkpoint_every": 14}  # every dispatch has 7 steps, so that one program is compiled


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 100))
def test_dispatches_end_at_checkpoints_and_do_not_depend_on_their_start(steps, count, every):
    options = TrainConfig(steps=steps, checkpoint_every=every)
    spans = list(dispatch.spans(0, count, options))
    assert [step for span in spans for step in span] == list(range(1, steps + 1))
    assert {len(span) for span in spans[:-1]} <= {count, every % count, every}  # each length compiles once
    for i, span in enumerate(spans):
        assert 1 <= len(span) <= count
        assert not any(step % every == 0 for step in span[:-1])
        assert list(dispatch.spans(span.start - 1, count, options)) == spans[i:]


class Devices:
    """A mesh of accelerators."""

    def __init__(self, size, platform="gpu"):
        self.size, self.platform = size, platform
        self.devices = np.array([[self]])


@pytest.mark.parametrize(
    ("weights", "batch_size", "devices", "every", "expected"),
    [
        (768 * 12288, 4096, 1, 1000, 25),
        (768 * 12288, 4096, 1, 48, 24),
        (768 * 12288, 4096, 1, 997, 25),  # a prime: each last dispatch before a checkpoint is shorter
        (4096 * 65536, 8192, 1, 1000, 1),
        (4096 * 65536, 8192, 8, 1000, 2),
        (16 * 48, 64, 1, 1024, 32),  # at most AUTO_STEPS
    ],
)
def test_small_steps_share_a_dispatch_on_accelerators(weights, batch_size, devices, every, expected):
    options = TrainConfig(batch_size=batch_size, checkpoint_every=every)
    assert dispatch.size(options, weights, Devices(devices)) == expected
    assert dispatch.size(options, weights, Devices(devices, "cpu")) == 1
    fixed = TrainConfig(batch_size=batch_size, checkpoint_every=every, steps_per_dispatch=7)
    assert dispatch.size(fixed, weights, Devices(devices)) == 7


def outcome(config):
    """Return the arrays of the newest checkpoint by name, and the lines of metrics.jsonl without timings."""
    run = pathlib.Path(config.run)
    mesh = sharding.make_mesh(1, 1, config.train.batch_size, 48)
    newest = checkpoints.newest_step(run)
    assert newest == config.train.steps
    state = checkpoints.restore(run, newest, 48, 16, config.sae, config.train, mesh)
    arrays = {jax.tree_util.keystr(path): np.asarray(value) for path, value in jax.tree.leaves_with_path(state)}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def assert_same(config, expected):
    (arrays, lines), (expected_arrays, expected_lines) = outcome(config), outcome(expected)
    assert list(arrays) == list(expected_arrays)
    for name, value in expected_arrays.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)
    assert lines == expected_lines


@pytest.fixture(scope="module")
def short(base, with_train, tmp_path_factory):
    """A function that returns the config of a run with checkpoints at 30, 60 and 64 in a new folder."""

    def make(**fields):
        fields = {"steps": 64, "checkpoint_every": 30, "every": 5, "decay_share": 0.0, "ema": 0.99, **fields}
        return with_train(base, run=str(tmp_path_factory.mktemp("run")), **fields)

    return make


@pytest.fixture(scope="module")
def finished(short):
    """A function that returns the config of a finished run with rows from the host, by its steps per dispatch."""

    @functools.cache
    def run(count):
        config = short(steps_per_dispatch=count)
        train(config)
        return config

    return run


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7])
def test_resident_rows_do_not_change_a_run(short, finished, count):
    config = short(resident="yes", steps_per_dispatch=count)
    train(config)
    assert_same(config, finished(count))


@pytest.mark.slow
def test_dispatches_hardly_change_a_run(finished):
    """A loop is compiled in other ways than a single step, so that the last bits may differ; here those of the EMA."""
    (arrays, lines), (expected, expected_lines) = outcome(finished(7)), outcome(finished(1))
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value, atol=1e-6, err_msg=name)
    for line, expected_line in zip(lines, expected_lines, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-5)
    steps = sorted(int(path.name) for path in pathlib.Path(finished(7).run, "checkpoints").iterdir())
    assert steps == [30, 60, 64]


@pytest.mark.slow
def test_the_steps_of_a_dispatch_share_its_time(finished):
    """Their results arrive together, so the time between two results is not the time of a step."""
    log = [json.loads(line) for line in pathlib.Path(finished(7).run, "metrics.jsonl").read_text().splitlines()]
    # Steps 35 and 40 end in the dispatches 31-37 and 38-44: line 40 has 2 steps of the first, 3 of the second.
    assert [line["step"] for line in log[6:8]] == [35, 40]
    assert log[7]["step_s"] > 0.3 * log[6]["step_s"]


@pytest.mark.slow
def test_resident_rows_do_not_change_a_run_on_a_mesh(short):
    fields = {"data": 2, "feature": 4, "lanes": 2, "steps_per_dispatch": 7, **ONE_LENGTH}
    expected, config = short(**fields), short(**fields, resident="yes")
    train(expected)
    train(config)
    assert_same(config, expected)


@pytest.mark.slow
def test_a_stop_ends_with_the_dispatch_and_a_resumed_run_has_the_same_bits(short, finished, monkeypatch, capsys):
    config = short(resident="yes", steps_per_dispatch=7)

    @contextlib.contextmanager
    def third():
        yield lambda number: number == 3

    with monkeypatch.context() as patch:
        patch.setattr(processes, "sigterm", third)
        with pytest.raises(SystemExit) as stopped:
            train(config)
    assert stopped.value.code == processes.STOPPED
    assert "step 21 is saved" in capsys.readouterr().out
    train(changed(config, resume=True))
    assert_same(config, finished(7))


@pytest.mark.slow
def test_resident_rows_do_not_change_a_grid(short):
    fields = {"steps_per_dispatch": 7, **ONE_LENGTH}
    expected, config = short(**fields), short(**fields, resident="yes")
    axes = ["sae.k=2,3", "train.seed=0,1"]  # two row streams
    for each in (expected, config):
        grid.train(each, axes)
    for member, alone in zip(grid.configs(config, axes), grid.configs(expected, axes), strict=True):
        assert_same(member, alone)
