"""Paired times with a clock that the test controls, memory that a test allocates, evaluations of real pipelines."""

import contextlib
import sys

import numpy as np
import pytest
import scipy.stats

from revelio_jax.benchmark import timing
from revelio_jax.errors import InputError


class Clock:
    """A clock that advances only while a sampler works. The first run takes 100 times as long; later ones slow down."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sampler(self, name: str, seconds: float):
        def sample(number: int) -> None:
            is_first = name not in [called for called, _ in self.calls]
            self.calls.append((name, number))
            self.now += seconds * (100 if is_first else 1 + number / 2)

        return sample


def test_runs_alternate_and_warmup_is_not_counted():
    clock, openings = Clock(), []
    method = clock.sampler("method", 3.0)

    @contextlib.contextmanager
    def opened():
        openings.append("open")
        clock.now += 50  # opening a method is not counted
        yield method
        openings.append("close")

    found = timing.paired_times(clock.sampler("plain", 2.0), opened, images=4, repetitions=3, warmup=1, clock=clock)
    assert openings == ["open", "close"] * 4
    assert clock.calls == [(name, number) for number in (0, 0, 1, 2) for name in ("plain", "method")]
    np.testing.assert_allclose(found.plain, [0.5, 0.75, 1.0])
    np.testing.assert_allclose(found.method, [0.75, 1.125, 1.5])
    # The machine became twice as slow, and every ratio is the same.
    assert found.ratio() == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert found.summary()["plain_s"] == 0.75
    assert found.summary()["repetitions"] == 3


def test_the_interval_of_the_median_ratio_is_scipys():
    rng = np.random.default_rng(3)
    plain, ratios = rng.uniform(1, 2, 25), rng.normal(1.05, 0.02, 25)
    found = timing.PairedTimes(plain, plain * ratios).ratio()
    bootstrap = scipy.stats.bootstrap((ratios,), np.median, n_resamples=9999, method="percentile", rng=1)
    assert found["median"] == pytest.approx(np.median(ratios))
    assert found["low"] == pytest.approx(bootstrap.confidence_interval.low, abs=0.004)
    assert found["high"] == pytest.approx(bootstrap.confidence_interval.high, abs=0.004)
    assert found["low"] < found["median"] < found["high"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": 0}, "images is 0; it must be at least 1"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
    ],
)
def test_wrong_counts_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        timing.paired_times(print, contextlib.nullcontext, **({"images": 1} | wrong))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of a block")
def test_peak_memory_is_that_of_the_block():
    with timing.peak_memory() as before:
        pass
    if before.bytes is None:
        pytest.skip("this system does not let a process reset its peak memory")
    with timing.peak_memory() as large:
        np.ones(64 << 20, np.uint8).sum()
    with timing.peak_memory() as after:
        pass
    assert large.bytes - before.bytes > 48 << 20
    assert large.bytes - after.bytes > 48 << 20
    assert large.kind == "resident memory of the process"


def test_a_system_without_peaks_says_so(monkeypatch):
    monkeypatch.setattr(timing, "_reset_peak", lambda: False)
    with timing.peak_memory() as peak:
        pass
    assert (peak.bytes, peak.kind) == (None, "not measured")
