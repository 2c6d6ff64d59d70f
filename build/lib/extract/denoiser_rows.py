"""The rows of a denoiser's store: how many each sample has, and a shard of them from what was recorded."""

import typing
from collections.abc import Iterable

import numpy as np
import torch

from extract import jobs
from extract.jobs import Rows
from revelio_jax.config import ExtractConfig
from revelio_jax.pipelines.denoiser import ActivationShape
from revelio_jax.pipelines.loading import DTYPES, as_numpy
from revelio_jax.pipelines.recorder import Found
from revelio_jax.store import StorePlan


def plan(
    extract: ExtractConfig,
    shapes: dict[str, ActivationShape],
    timesteps: tuple[int, ...],
    samples: int,
    facts: dict[str, typing.Any],
) -> StorePlan:
    """The plan of a store whose rows :func:`rows` makes, as many for every sample."""
    fields = {name: getattr(extract, name) for name in ("mode", "value", "pool", "height", "width")}
    fields |= {"timesteps": list(timesteps)}
    each = {name: len(timesteps) * (1 if extract.pool == "mean" else shape.positions) for name, shape in shapes.items()}
    planned = {name: (shape.d, np.full(samples, each[name])) for name, shape in shapes.items()}
    return jobs.plan(extract, planned, facts | {"extract": fields | facts["extract"]})


def rows(
    batches: Iterable[tuple[list[int], Found]],
    shapes: dict[str, ActivationShape],
    timesteps: tuple[int, ...],
    samples: range,
    extract: ExtractConfig,
) -> Rows:
    """The rows of a shard, by sample, then timestep, then position.

    A batch is the numbers of its samples and what was recorded of them; those of ``samples`` that are in
    none were skipped. A mean over positions has position -1.
    """
    pooled = extract.pool == "mean"
    kept = {}
    for name, shape in shapes.items():
        size = (len(samples), len(timesteps), 1 if pooled else shape.positions, shape.d)
        kept[name] = torch.empty(size, dtype=DTYPES[extract.dtype])
    numbers: list[int] = []
    for batch, found in batches:
        here = slice(len(numbers), len(numbers) + len(batch))
        for name, array in kept.items():
            for i, timestep in enumerate(timesteps):
                array[here, i] = found[timestep][name]
        numbers += batch
    shard = {}
    for name, array in kept.items():
        count = array.shape[2]
        position = np.full(1, -1, np.int32) if pooled else np.arange(count, dtype=np.int32)
        shard[name] = {
            "activations": as_numpy(array[: len(numbers)].flatten(0, 2)),
            "sample": np.repeat(np.asarray(numbers, np.int32), len(timesteps) * count),
            "timestep": np.tile(np.repeat(np.asarray(timesteps, np.int32), count), len(numbers)),
            "position": np.tile(position, len(numbers) * len(timesteps)),
            "skipped": np.setdiff1d(np.asarray(samples, np.int32), np.asarray(numbers, np.int32)),
        }
    return shard
