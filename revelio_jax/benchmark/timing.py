"""Measure the time of a method, paired with the plain pipeline, and its peak memory.

:func:`revelio_jax.baselines.counted` counts the evaluations of the denoiser.
"""

import contextlib
import dataclasses
import pathlib
import re
import sys
import time
import typing
from collections.abc import Callable, Generator

import numpy as np
import torch

from revelio_jax.errors import InputError

DRAWS = 2000  # of the bootstrap


class Ratio(typing.TypedDict):
    """A median of ratios with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class PairedTimes:
    """Seconds per image of each repetition [R]: the plain pipeline's and, right after it, the method's."""

    plain: np.ndarray
    method: np.ndarray

    def ratio(self) -> Ratio:
        """Return the median of the ratios method / plain, with a percentile bootstrap interval over repetitions.

        Both runs of a repetition happen within seconds, so slow changes of the machine's speed cancel in the ratio.
        """
        ratios_R = self.method / self.plain
        draws = np.median(np.random.default_rng(0).choice(ratios_R, (DRAWS, len(ratios_R))), axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        return {"median": float(np.median(ratios_R)), "low": float(low), "high": float(high)}

    def summary(self) -> dict[str, typing.Any]:
        """Return the median seconds per image of both, the ratio, and the number of repetitions."""
        medians = {"plain_s": float(np.median(self.plain)), "method_s": float(np.median(self.method))}
        return {**medians, "ratio": self.ratio(), "repetitions": len(self.plain)}


def paired_times(
    plain: Callable[[int], object],
    method: Callable[[], contextlib.AbstractContextManager[Callable[[int], object]]],
    images: int,
    repetitions: int = 10,
    warmup: int = 1,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTimes:
    """Run plain, method, plain, method, ... and return the seconds per image of each run.

    ``plain`` samples ``images`` images; it gets the number of the repetition, for prompts and seeds. ``method`` opens
    the method and yields a function that samples as many. It is opened and closed in every pair, because an open method
    may change the plain pipeline; the time for it is not counted. ``warmup`` pairs with number 0 are run first and not
    counted: they compile, allocate and fill caches. With a CUDA ``device`` the clock is read after all its kernels have
    finished.
    """
    for name, value, least in (("images", images, 1), ("repetitions", repetitions, 1), ("warmup", warmup, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")

    def seconds(run: Callable[[int], object], number: int) -> float:
        _wait(device)
        start = clock()
        run(number)
        _wait(device)
        return (clock() - start) / images

    pairs: list[tuple[float, float]] = []
    for number in [0] * warmup + list(range(repetitions)):
        plain_s = seconds(plain, number)
        with method() as run:
            pairs.append((plain_s, seconds(run, number)))
    plain_R, method_R = np.array(pairs[warmup:]).T
    return PairedTimes(plain_R, method_R)


@dataclasses.dataclass
class PeakMemory:
    """The largest memory in use, in bytes. ``kind`` says which: of a GPU, or of the whole process.

    ``bytes`` is None, and ``kind`` says so, if the system does not report it.
    """

    bytes: int | None = None
    kind: str = "not measured"


@contextlib.contextmanager
def peak_memory(device: torch.device | None = None) -> Generator[PeakMemory]:
    """Measure the peak memory in the block; the result is set at its end.

    On CUDA it is the memory that torch allocated. Otherwise, on Linux, it is the resident memory of the process with
    everything that it held before.
    """
    peak = PeakMemory()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes, peak.kind = torch.cuda.max_memory_allocated(device), "allocated by torch on the GPU"
        return
    is_reset = sys.platform == "linux" and _reset_peak()
    yield peak
    if is_reset and (found := re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())):
        peak.bytes, peak.kind = int(found[1]) * 1024, "resident memory of the process"


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak() -> bool:
    """Set the process's largest resident memory to the present one. Return whether the system allows it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
