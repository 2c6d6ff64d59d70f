"""Rows of a denoiser's store: the number of rows per sample, and the rows of a shard from recorded activations."""

import typing
from collections.abc import Iterable

import numpy as np
import torch

from extract import jobs
from extract.jobs import ShardRows, SiteSize
from revelio_jax.config import ExtractConfig
from revelio_jax.pipelines.denoiser import ActivationShape
from revelio_jax.pipelines.loading import DTYPES, as_numpy
from revelio_jax.pipelines.recorder import Recording
from revelio_jax.store import ModelRecord, StorePlan

# Fields of config.extract that determine the rows in both modes that run a denoiser.
FIELDS = ("mode", "value", "pool", "height", "width")


def plan(
    extract: ExtractConfig,
    shapes: dict[str, ActivationShape],
    timesteps: tuple[int, ...],
    samples: int,
    *,
    model: ModelRecord,
    settings: dict[str, typing.Any],
    inputs: dict[str, str],
) -> StorePlan:
    """Return the plan of a store whose shards :func:`shard_rows` returns. Every sample has the same number of rows.

    ``model``, ``settings`` and ``inputs`` are as in :func:`extract.jobs.store_plan`.
    """
    sizes = []
    for name, shape in shapes.items():
        positions = 1 if extract.pool == "mean" else shape.positions
        sizes.append(SiteSize(name, shape.d, np.full(samples, len(timesteps) * positions)))
    shared = {name: getattr(extract, name) for name in FIELDS} | {"timesteps": list(timesteps)}
    return jobs.store_plan(extract, sizes, model, shared | settings, inputs)


def shard_rows(
    batches: Iterable[tuple[list[int], Recording]],
    shapes: dict[str, ActivationShape],
    timesteps: tuple[int, ...],
    samples: range,
    extract: ExtractConfig,
) -> ShardRows:
    """Return the rows of one shard, ordered by sample, then timestep, then position.

    A batch has the ids of its samples and their recorded activations; batches may come in any order. Ids of ``samples``
    that are in no batch are reported as ``skipped``. With config.extract.pool=mean the position is -1.
    """
    is_pooled = extract.pool == "mean"
    arrays = {}
    for name, shape in shapes.items():
        size = (len(samples), len(timesteps), 1 if is_pooled else shape.positions, shape.d)
        arrays[name] = torch.empty(size, dtype=DTYPES[extract.dtype])
    recorded: list[int] = []
    for batch, recording in batches:
        places = torch.tensor(batch) - samples.start
        for name, array in arrays.items():
            for i, timestep in enumerate(timesteps):
                array[places, i] = recording[timestep][name]
        recorded += batch
    ids = np.sort(np.asarray(recorded, np.int32))
    rows: ShardRows = {}
    for name, array in arrays.items():
        positions = array.shape[2]
        if len(ids) < len(samples):
            array = array[torch.from_numpy(ids - samples.start)]
        position = np.full(1, -1, np.int32) if is_pooled else np.arange(positions, dtype=np.int32)
        rows[name] = {
            "activations": as_numpy(array.flatten(0, 2)),
            "sample": np.repeat(ids, len(timesteps) * positions),
            "timestep": np.tile(np.repeat(np.asarray(timesteps, np.int32), positions), len(ids)),
            "position": np.tile(position, len(ids) * len(timesteps)),
            "skipped": np.setdiff1d(np.asarray(samples, np.int32), ids),
        }
    return rows
