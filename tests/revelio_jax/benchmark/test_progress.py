"""Measurements of revelio benchmark are saved one by one and reused."""

import numpy as np

from revelio_jax.benchmark import progress
from revelio_jax.benchmark.measurement import Outcome

SETTINGS = {"seeds": [0], "steer": {"sizes": (1, 2)}}


def outcome_of(value):
    return Outcome(*(np.array([value, np.nan, 1 / 3]) for _ in range(4)))


def never():
    raise AssertionError("measured again")


def test_finished_measurements_are_reused_exactly(tmp_path):
    saved = progress.Progress(tmp_path, SETTINGS)
    measured, is_reused = saved.outcome(("style", -0.5, 0), lambda: outcome_of(0.1))
    assert not is_reused
    again = progress.Progress(tmp_path, SETTINGS)
    reused, is_reused = again.outcome(("style", -0.5, 0), never)
    assert is_reused
    assert again.reused == 1
    for name in vars(measured):
        np.testing.assert_array_equal(getattr(reused, name), getattr(measured, name))
    again.remove()
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_torn_or_damaged_is_measured_again(tmp_path):
    for value in (1, 2):
        progress.Progress(tmp_path, SETTINGS).outcome((value,), lambda value=value: outcome_of(value))
    path = tmp_path / progress.NAME
    head, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + first.replace(b"1.0", b"3.0", 1) + second[: len(second) // 2])
    saved = progress.Progress(tmp_path, SETTINGS)
    for value in (1, 2):
        assert saved.outcome((value,), lambda value=value: outcome_of(value))[0].concept[0] == value
    assert saved.reused == 0
    again = progress.Progress(tmp_path, SETTINGS)
    assert [again.outcome((value,), never)[0].concept[0] for value in (1, 2)] == [1, 2]


def test_measurements_of_other_settings_are_not_used(tmp_path):
    progress.Progress(tmp_path, SETTINGS).outcome((1,), lambda: outcome_of(1))
    other = progress.Progress(tmp_path, SETTINGS | {"seeds": [1]})
    assert other.outcome((1,), lambda: outcome_of(2))[0].concept[0] == 2
    (tmp_path / progress.NAME).write_bytes(b"")
    assert not progress.Progress(tmp_path, SETTINGS).outcome((1,), lambda: outcome_of(2))[1]
