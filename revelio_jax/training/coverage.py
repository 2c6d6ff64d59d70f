"""Measure how well a batch is shuffled: how many samples its rows come from, and how evenly.

Rows of one sample (a prompt or an image) are similar, so a batch of few samples makes the loss noisy. The row numbers
of a batch are computed. Only the array ``sample`` is read from the stores, 4 bytes per row, for all lanes.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from revelio_jax.training.loader import Chunk, Order
from revelio_jax.training.mixture import Mixture

CACHED = 4096  # chunks; consecutive batches come from the same ones, and a read from object storage takes long

Read = Callable[[Chunk], Callable[[], np.ndarray]]
"""A function that starts to read the samples of a chunk. The function it returns waits for them: int32 [rows]."""


def reader(mixture: Mixture) -> Read:
    """Return a function that reads the samples of the chunks of ``mixture``, and remembers the latest ones."""

    @functools.lru_cache(CACHED)
    def start(chunk: Chunk) -> Callable[[], np.ndarray]:
        return functools.cache(mixture.sites[chunk.site].start_index("sample", chunk.start, chunk.stop))

    return start


def measure(mixture: Mixture, order: Order, step: int, read: Read | None = None) -> dict[str, float]:
    """Return ``coverage`` and ``entropy`` of the batch after ``step`` finished steps.

    ``coverage`` is the number of samples in the batch divided by its expectation for random rows. A source
    with n rows from S samples contributes S (1 - (1 - 1/S)^n). It is about 1 if rows are well shuffled and
    samples have equal length. ``entropy`` is the entropy of the samples' shares of the rows, divided by its
    maximum log min(B, samples). It is 1 if rows are spread as evenly as possible. ``read`` is from :func:`reader`.
    """
    rows = order.lanes * np.subtract(order.rows_before(step + 1), order.rows_before(step))
    expected = sum(
        source.samples * (1 - (1 - 1 / source.samples) ** count)
        for source, count in zip(mixture.sources, rows.tolist(), strict=True)
    )
    _, counts = np.unique(sample_ids(order, step, read or reader(mixture)), return_counts=True)
    shares = counts / counts.sum()
    most = min(order.batch_size, sum(source.samples for source in mixture.sources))
    entropy = -(shares * np.log(shares)).sum() / math.log(most) if most > 1 else 1.0
    return {"coverage": len(counts) / expected, "entropy": float(entropy)}


def sample_ids(order: Order, step: int, read: Read) -> np.ndarray:
    """Return the sample of each row of a batch, numbered over all stores: int64 [B], in no particular order."""
    # Start all reads before waiting for one.
    pending: list[tuple[list[Chunk], np.ndarray, list[Callable[[], np.ndarray]]]] = []
    for lane in range(order.lanes):
        for chunks, places in order.batch_groups(lane, step):
            reads = [read(chunk) for chunk in chunks]
            pending.append((chunks, places, reads))
    ids: list[np.ndarray] = []
    for chunks, places, reads in pending:
        chunk_ids = [(chunk.site << 32) + wait().astype(np.int64) for chunk, wait in zip(chunks, reads, strict=True)]
        ids.append(np.concatenate(chunk_ids)[places])
    return np.concatenate(ids)
