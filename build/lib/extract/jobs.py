"""What a mode of extraction hands to ``extract.run``: all that it decided, and how a shard comes about."""

import dataclasses
import hashlib
import importlib.metadata
import json
import typing
from collections.abc import Callable

import numpy as np
import pyarrow

from revelio_jax.config import ExtractConfig
from revelio_jax.store import SitePlan, StorePlan

LIBRARIES = ("revelio_jax", "torch", "transformers", "diffusers", "tensorstore")

Row = dict[str, typing.Any]
Rows = dict[str, dict[str, np.ndarray]]  # site -> activations [rows, d]; sample, position, timestep [rows]
Done = Callable[[int], typing.Any]


@dataclasses.dataclass(frozen=True)
class ExtractionJob:
    """The samples, the store's plan, and a function that computes a shard.

    ``shard(samples, advance)`` takes the numbers of the shard's samples and returns the rows of every
    site, as ``StoreWriter.write_shard`` takes them. It depends on nothing but those numbers, so that
    shards may be computed in any order and process; it calls ``advance(n)`` when n more samples are done,
    ``rounds`` times in all for each.
    """

    samples: list[Row] | pyarrow.Table
    plan: StorePlan
    shard: Callable[[range, Done], Rows]
    unit: str
    rounds: int = 1


def plan(extract: ExtractConfig, rows: dict[str, tuple[int, np.ndarray]], facts: dict[str, typing.Any]) -> StorePlan:
    """The plan of a store; ``rows`` has of every site its width and how many rows each sample has.

    ``facts`` are what of the config, the model and the input decides the rows, beside what all modes have.
    """
    size = extract.shard_samples
    planned = []
    for name, (d, of_sample) in rows.items():
        shards = tuple(int(of_sample[start : start + size].sum()) for start in range(0, len(of_sample), size))
        planned.append(SitePlan(name, d, shards))
    common = {"sites": list(extract.sites), "batch_size": extract.batch_size}
    return StorePlan(
        sites=tuple(planned),
        dtype=extract.dtype,
        chunk_rows=extract.chunk_rows,
        shard_samples=size,
        samples=len(of_sample),
        facts=facts | {"extract": common | facts["extract"]},
        notes={"versions": {name: importlib.metadata.version(name) for name in LIBRARIES}},
    )


def fingerprint(samples: list[Row]) -> str:
    """sha256 of the samples and their labels."""
    return digest(json.dumps(samples, sort_keys=True, default=str).encode())


def digest(*parts: bytes) -> str:
    """sha256 of the parts, one after another."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()
