"""Types, store plans and fingerprints that the modes of extraction share."""

import dataclasses
import importlib.metadata
import json
import typing
from collections.abc import Callable

import numpy as np

from revelio_jax import checksums
from revelio_jax.config import ExtractConfig
from revelio_jax.store import ModelRecord, SitePlan, StorePlan

LIBRARIES = ("revelio_jax", "torch", "transformers", "diffusers", "tensorstore")

Sample = dict[str, typing.Any]  # one row of samples.parquet: id, prompt or image, labels, seed
SiteRows = dict[str, np.ndarray]  # activations [rows, d]; int32 sample, position, timestep [rows]
ShardRows = dict[str, SiteRows]  # by name in config.extract.sites
Progress = Callable[[int], object]  # called with the number of newly finished samples


@dataclasses.dataclass(frozen=True)
class SiteSize:
    """Width ``d`` of a hook point, and the number of rows of each sample: int [samples]."""

    name: str
    d: int
    rows_per_sample: np.ndarray


def store_plan(
    extract: ExtractConfig,
    sites: list[SiteSize],
    model: ModelRecord,
    settings: dict[str, typing.Any],
    inputs: dict[str, str],
) -> StorePlan:
    """Return the plan of a store.

    ``model``, ``settings`` and ``inputs`` become the entries model, extract and input of the manifest. They determine
    the rows, together with the shapes. ``settings`` holds the fields of config.extract that the mode uses; this
    function adds the fields that every mode uses.
    """
    size = extract.shard_samples
    samples = len(sites[0].rows_per_sample)
    starts = range(0, samples, size)
    plans = [
        SitePlan(site.name, site.d, tuple(int(site.rows_per_sample[start : start + size].sum()) for start in starts))
        for site in sites
    ]
    settings = {"sites": list(extract.sites)} | settings
    return StorePlan(
        sites=tuple(plans),
        dtype=extract.dtype,
        chunk_rows=extract.chunk_rows,
        shard_samples=size,
        samples=samples,
        batch_size=extract.batch_size,
        provenance={"model": model, "extract": settings, "input": inputs},
        notes={"versions": {name: importlib.metadata.version(name) for name in LIBRARIES}},
    )


def samples_fingerprint(samples: list[Sample]) -> str:
    """Return the sha256 of the samples and their labels."""
    return checksums.of_bytes(json.dumps(samples, sort_keys=True, default=str).encode())
