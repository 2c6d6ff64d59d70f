"""How well a batch is shuffled: from how many samples its rows are, and how evenly.

Rows of one sample (a prompt, a picture) resemble each other; a batch of few samples shows in the loss.
Row numbers are arithmetic; of the stores only ``sample`` is read, 4 bytes a row, of all lanes.
"""

import math

import numpy as np

from revelio_jax.training.loader import Order
from revelio_jax.training.mixture import Mixture


def measure(mixture: Mixture, order: Order, step: int) -> dict[str, float]:
    """``coverage`` and ``entropy`` of the batch that follows ``step`` finished steps.

    ``coverage`` is the number of samples in the batch over the number to be expected if every source
    drew its n rows at random from its S samples, S (1 - (1 - 1/S)^n): about 1 where rows are well
    shuffled and samples equally long. ``entropy`` is the entropy of the samples' shares of the rows
    over the largest it can have, log min(B, samples): 1 where rows are spread as evenly as can be.
    """
    rows = order.lanes * np.subtract(order.before(step + 1), order.before(step))
    expected = sum(
        source.samples * (1 - (1 - 1 / source.samples) ** count)
        for source, count in zip(mixture.sources, rows.tolist(), strict=True)
    )
    _, counts = np.unique(sample_ids(mixture, order, step), return_counts=True)
    shares = counts / counts.sum()
    most = min(order.batch_size, sum(source.samples for source in mixture.sources))
    entropy = -(shares * np.log(shares)).sum() / math.log(most) if most > 1 else 1.0
    return {"coverage": len(counts) / expected, "entropy": float(entropy)}


def sample_ids(mixture: Mixture, order: Order, step: int) -> np.ndarray:
    """int64 [B]: the samples of a batch's rows, numbered through all stores; not in the batch's order."""
    begun = []  # all reads are under way before the first is waited for
    for lane in order.streams:
        for stream, row, end in zip(lane, order.before(step), order.before(step + 1), strict=True):
            groups = stream.groups_from(row)
            while row < end:
                chunks, places = next(groups)
                reads = [mixture.sites[site].arrays["sample"][start:stop].read() for site, start, stop in chunks]
                begun.append((chunks, places[: end - row], reads))
                row += len(places)
    ids = []
    for chunks, places, reads in begun:
        of_chunks = [
            (chunk.site << 32) + read.result().astype(np.int64) for chunk, read in zip(chunks, reads, strict=True)
        ]
        ids.append(np.concatenate(of_chunks)[places])
    return np.concatenate(ids)
