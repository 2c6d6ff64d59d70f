"""What a mode of extraction hands to ``extract.run``: all that it decided, and how a shard comes about."""

import dataclasses
import hashlib
import importlib.metadata
import json
import typing
from collections.abc import Callable

import numpy as np

from revelio_jax.store import StorePlan

LIBRARIES = ("revelio_jax", "torch", "transformers", "diffusers", "tensorstore")

Row = dict[str, typing.Any]
Rows = dict[str, dict[str, np.ndarray]]  # site -> activations [rows, d]; sample, position, timestep [rows]
Done = Callable[[int], typing.Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """The samples, the store's plan, and a function that computes a shard.

    ``shard(samples, advance)`` takes the numbers of the shard's samples and returns the rows of every
    site, as ``StoreWriter.write_shard`` takes them. It depends on nothing but those numbers, so that
    shards may be computed in any order and process; it calls ``advance(n)`` when n more samples are done,
    ``rounds`` times in all for each.
    """

    samples: list[Row]
    plan: StorePlan
    shard: Callable[[range, Done], Rows]
    unit: str
    rounds: int = 1


def versions() -> dict[str, str]:
    """Versions of the libraries that a store's numbers come from."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def fingerprint(samples: list[Row]) -> str:
    """sha256 of the samples and their labels."""
    return digest(json.dumps(samples, sort_keys=True, default=str).encode())


def digest(*parts: bytes) -> str:
    """sha256 of the parts, one after another."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()
