"""Read a finished store."""

import dataclasses
import functools
import typing
from collections.abc import Sequence

import numpy as np
import pyarrow
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import layout, parquet
from revelio_jax.store.json_files import Manifest


@dataclasses.dataclass(frozen=True)
class SiteReader:
    """One site of a finished store.

    ``chunks`` are the array rows (start, stop) of every inner chunk with valid rows, in order. Read whole chunks,
    because the disk does so too. ``mean`` and ``variance`` [d] are float64, over all valid rows.
    """

    name: str
    d: int
    dtype: str
    rows: int
    dropped: int
    chunks: tuple[tuple[int, int], ...]
    mean: np.ndarray
    variance: np.ndarray
    arrays: dict[str, ts.TensorStore]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return activations [stop - start, d] as float32."""
        rows = np.empty((stop - start, self.d), np.float32)
        self.read_into(start, rows)
        return rows

    def read_into(self, start: int, rows: np.ndarray) -> None:
        """Fill contiguous rows [N, d], float32 or of the stored dtype, from array row ``start`` on."""
        ts.array(rows).write(self.arrays["activations"][start : start + len(rows)]).result()

    def read_index(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return int32 [stop - start] of ``sample``, ``position`` or ``timestep``."""
        return self.arrays[name][start:stop].read().result()


@dataclasses.dataclass(frozen=True)
class Store:
    """A finished store: its location, its manifest, and the key-value store that holds its files."""

    location: str
    manifest: Manifest
    kvstore: ts.KvStore

    @property
    def fingerprint(self) -> str:
        """Return a hash of the model, input, positions and config."""
        return self.manifest["fingerprint"]

    @property
    def site_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["sites"])

    @functools.cached_property
    def samples(self) -> list[dict[str, typing.Any]]:
        """Return one dict per sample, in order of id."""
        return self.table().to_pylist()

    def table(self, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """Return the samples as a table in order of id; ``columns`` selects some columns."""
        table = self.kvstore.read("samples.parquet").result().value
        try:
            return parquet.read_table(table, columns=columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"store {self.location}: samples.parquet cannot be read: {error}") from error

    def site(self, name: str | None = None) -> SiteReader:
        """Return a site by name, by default the first. Raise InputError if it is unknown or malformed."""
        name = name or self.site_names[0]
        if name not in self.manifest["sites"]:
            raise InputError(f"config.data.site is {name!r}; store {self.location} has {', '.join(self.site_names)}")
        entry = self.manifest["sites"][name]
        names = ("activations", *layout.INDEX_ARRAYS)
        arrays = {key: self._open(f"{name}/{key}") for key in names}
        stored = arrays["activations"].dtype.name
        if stored != self.manifest["dtype"] or stored not in layout.DTYPES:
            raise InputError(
                f"store {self.location}: {name}/activations is {stored}, "
                f"the manifest says {self.manifest['dtype']}; allowed: {', '.join(layout.DTYPES)}"
            )
        if arrays["activations"].shape[1] != entry["d"]:
            raise InputError(
                f"store {self.location}: {name}/activations has width "
                f"{arrays['activations'].shape[1]}, the manifest says {entry['d']}"
            )
        chunk, shard_rows = self.manifest["chunk_rows"], entry["shard_rows"]
        chunks = tuple(
            (shard * shard_rows + start, shard * shard_rows + min(start + chunk, valid))
            for shard, valid in enumerate(entry["shard_valid_rows"])
            for start in range(0, valid, chunk)
        )
        return SiteReader(
            name=name,
            d=entry["d"],
            dtype=stored,
            rows=entry["rows"],
            dropped=entry["dropped"],
            chunks=chunks,
            mean=np.asarray(entry["mean"]),
            variance=np.asarray(entry["variance"]),
            arrays=arrays,
        )

    def _open(self, key: str) -> ts.TensorStore:
        try:
            return layout.open_array(self.kvstore, key)
        except ValueError as error:
            raise InputError(f"store {self.location}: {key} cannot be opened: {error}") from error


def open_store(location: str) -> Store:
    """Open a finished store. Raise InputError if it is missing, unfinished or of another format version."""
    kvstore = layout.open_kvstore(location)
    manifest = layout.read_manifest(kvstore)
    if manifest is None:
        if layout.read_plan(kvstore) is None:
            raise InputError(f"store {location}: it does not exist; revelio extract writes it")
        raise InputError(f"store {location} is unfinished; run the same extract command again to continue")
    layout.check_version(location, manifest)
    return Store(location, manifest, kvstore)
