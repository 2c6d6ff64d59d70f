"""Mean and variance of rows, combined shard by shard in a fixed order so that the result is reproducible."""

import base64
import dataclasses

import numpy as np

from revelio_jax.store.json_files import StatisticsEntry

BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Number of rows, and mean [d] and centered sum of squares [d] of every column, in float64."""

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        return self.m2 / max(self.count, 1)

    def to_json(self) -> StatisticsEntry:
        return {"count": self.count, "mean": _encode(self.mean), "m2": _encode(self.m2)}

    @classmethod
    def from_json(cls, value: StatisticsEntry) -> "Statistics":
        return cls(value["count"], _decode(value["mean"]), _decode(value["m2"]))


def of_rows(rows: np.ndarray) -> Statistics:
    """Return statistics of rows [N, d], computed in blocks because a float64 copy of a shard is large."""
    total = Statistics(0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1]))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS].astype(np.float64)
        mean = block.mean(0)
        block -= mean
        total = combine(total, Statistics(len(block), mean, np.einsum("nd,nd->d", block, block)))
    return total


def combine(a: Statistics, b: Statistics) -> Statistics:
    """Combine the statistics of two sets of rows (Chan et al. 1983)."""
    count = a.count + b.count
    if count == 0:
        return a
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    return Statistics(count, mean, a.m2 + b.m2 + np.square(delta) * (a.count * b.count / count))


def _encode(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f8").tobytes()).decode()


def _decode(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f8")
