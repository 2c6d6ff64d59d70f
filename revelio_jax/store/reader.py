"""Read a finished store."""

import dataclasses
import functools
import itertools
import typing
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow
import tensorstore as ts

from revelio_jax.errors import EnvironmentFailure, InputError, first_sentence
from revelio_jax.store import conformity, layout, local_chunks, parquet, statistics
from revelio_jax.store.json_files import Manifest
from revelio_jax.store.local_chunks import LocalChunks

# Status codes of TensorStore for missing files and for content that does not match its checksum or its metadata.
BROKEN = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE")


@dataclasses.dataclass(frozen=True)
class SiteReader:
    """One site of a finished store.

    ``chunks`` are the array rows (start, stop) of every inner chunk with valid rows, in order. Read whole chunks,
    because the disk does so too. ``mean`` and ``variance`` [d] are float64, over all valid rows. Reads raise InputError
    for a broken or missing shard, and EnvironmentFailure if the disk or the network fails.
    """

    location: str
    kvstore: ts.KvStore
    name: str
    d: int
    dtype: str
    rows: int
    dropped: int
    shard_rows: int
    chunks: tuple[tuple[int, int], ...]
    mean: np.ndarray
    variance: np.ndarray
    arrays: dict[str, ts.TensorStore]
    strict: dict[str, ts.TensorStore]  # some of the arrays, which report chunks without data
    local: LocalChunks | None  # of the activations

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return activations [stop - start, d] as float32."""
        rows = np.empty((stop - start, self.d), np.float32)
        self.read_into(start, rows)
        return rows

    def read_into(self, start: int, rows: np.ndarray) -> None:
        """Fill contiguous rows [N, d], float32 or of the stored dtype, from array row ``start`` on."""
        self.start_into(start, rows)()

    def start_into(self, start: int, rows: np.ndarray) -> Callable[[], None]:
        """Start to fill ``rows`` as :meth:`read_into` does. Return a function that waits until they are filled."""
        wait_for_chunk = self.local and self.local.start(start, rows)

        def begin() -> Callable[[], None]:
            target, stop = ts.array(rows), start + len(rows)
            return self._read("activations", start, stop, lambda stored: target.write(stored))

        if wait_for_chunk is None:
            return begin()

        def wait() -> None:
            if not wait_for_chunk():
                begin()()  # reports what is broken

        return wait

    def read_index(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return int32 [stop - start] of ``sample``, ``position`` or ``timestep``."""
        return self.start_index(name, start, stop)()

    def start_index(self, name: str, start: int, stop: int) -> Callable[[], np.ndarray]:
        """Start to read an index array. Return a function that waits for the values and returns them."""
        return self._read(name, start, stop, lambda stored: stored.read())

    def _read(
        self, array: str, start: int, stop: int, begin: Callable[[ts.TensorStore], typing.Any]
    ) -> Callable[[], typing.Any]:
        """Start a read with ``begin``. Return a function that waits for it and returns its result."""
        reading = begin(self.strict.get(array, self.arrays[array])[start:stop])

        def wait() -> typing.Any:
            try:
                try:
                    return reading.result()
                except ValueError as error:
                    if not str(error).startswith("NOT_FOUND") or self._lost_shards(array, start, stop):
                        raise
                return begin(self.arrays[array][start:stop]).result()
            except ValueError as error:
                raise self._fault(array, start, error) from error

        return wait

    def _lost_shards(self, array: str, start: int, stop: int) -> bool:
        """Return whether a file with some of the rows is missing.

        TensorStore leaves out chunks that hold only the fill value: padding, and activations that are 0 everywhere.
        """
        try:
            for shard in range(start // self.shard_rows, -(-stop // self.shard_rows)):
                key = f"{self.name}/{array}/c/{shard}" + "/0" * (array == "activations")
                if not self.kvstore.list(ts.KvStore.KeyRange(key, key + "\0")).result():
                    marker = layout.read_marker(self.kvstore, shard) or {}
                    stats = statistics.Statistics.from_json(marker[self.name])
                    if stats.count and (array != "activations" or stats.mean.any() or stats.m2.any()):
                        return True
        except (ValueError, KeyError):
            return True
        return False

    def _fault(self, array: str, start: int, error: ValueError) -> InputError | EnvironmentFailure:
        """Return the exception for rows that cannot be read from ``start`` on, which names the shard and the repair."""
        shard = f"store {self.location}: shard {start // self.shard_rows} of {self.name}"
        reason = f"{array}: {first_sentence(error)}"
        if not str(error).startswith(BROKEN):
            return EnvironmentFailure(f"{shard} cannot be read; {reason}")
        advice = "revelio extract --verify names all broken shards and the files to delete before extracting again"
        return InputError(f"{shard} is broken; {advice}; {reason}")


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
        table = self._parquet(lambda data: parquet.read_table(data, columns=columns))
        if len(table) != self.manifest["samples"]:
            raise InputError(
                f"store {self.location}: samples.parquet has {len(table)} rows, the manifest says "
                f"{self.manifest['samples']} samples"
            )
        return table

    @functools.cached_property
    def schema(self) -> pyarrow.Schema:
        """Return the names and types of the columns of the samples."""
        return self._parquet(parquet.read_schema)

    def _parquet(self, read: Callable[[bytes], typing.Any]) -> typing.Any:
        data = self.kvstore.read("samples.parquet").result().value
        try:
            layout.check_samples(self.manifest, data)
            return read(data)
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            raise InputError(f"store {self.location}: samples.parquet cannot be read: {error}") from error

    def site(self, name: str | None = None) -> SiteReader:
        """Return a site by name, by default the first. Raise InputError if it is unknown or malformed."""
        name = name or self.site_names[0]
        if name not in self.manifest["sites"]:
            raise InputError(f"config.data.site is {name!r}; store {self.location} has {', '.join(self.site_names)}")
        entry = self.manifest["sites"][name]
        names = ("activations", *layout.INDEX_ARRAYS)
        arrays = {key: self._open(f"{name}/{key}") for key in names}
        chunk, shard_rows = self.manifest["chunk_rows"], entry["shard_rows"]
        # Other index arrays may be -1 in all rows, so a missing file is not a fault.
        strict = {key: self._open(f"{name}/{key}", fill=False) for key in ("activations", "sample")}
        stored = arrays["activations"].dtype.name
        if stored != self.manifest["dtype"] or stored not in layout.DTYPES:
            raise InputError(
                f"store {self.location}: {name}/activations is {stored}, "
                f"the manifest says {self.manifest['dtype']}; allowed: {', '.join(layout.DTYPES)}"
            )
        if arrays["activations"].shape[1:] != (entry["d"],):
            raise InputError(
                f"store {self.location}: {name}/activations has width "
                f"{', '.join(map(str, arrays['activations'].shape[1:]))}, the manifest says {entry['d']}"
            )
        valid = entry["shard_valid_rows"]
        for key, array in arrays.items():
            dtype, tail = (stored, [entry["d"]]) if key == "activations" else ("int32", [])
            shape = [(len(valid) - 1) * shard_rows + valid[-1], *tail]
            try:
                layout.check_array(
                    array, layout.array_spec(self.kvstore, f"{name}/{key}", dtype, shape, shard_rows, chunk)
                )
            except ValueError as error:
                raise InputError(f"store {self.location}: {name}/{key}/zarr.json: {error}") from error
        chunks: list[tuple[int, int]] = []
        for shard, count in enumerate(valid):
            first, end = shard * shard_rows, shard * shard_rows + count
            chunks += itertools.pairwise([*range(first, end, chunk), end])
        return SiteReader(
            location=self.location,
            kvstore=self.kvstore,
            name=name,
            d=entry["d"],
            dtype=stored,
            rows=entry["rows"],
            dropped=entry["dropped"],
            shard_rows=shard_rows,
            chunks=tuple(chunks),
            mean=np.asarray(entry["mean"]),
            variance=np.asarray(entry["variance"]),
            arrays=arrays,
            strict=strict,
            local=local_chunks.open_chunks(self.kvstore, f"{name}/activations", arrays["activations"]),
        )

    def _has_files(self, site: str) -> bool:
        """Return whether the store has a file of a site. Users may copy only some sites of a store."""
        return bool(self.kvstore.list(ts.KvStore.KeyRange(f"{site}/", f"{site}0")).result())

    def _open(self, key: str, fill: bool = True) -> ts.TensorStore:
        try:
            return layout.open_array(self.kvstore, key, fill)
        except ValueError as error:
            site = key.rpartition("/")[0]
            if not self._has_files(site):
                present = ", ".join(name for name in self.site_names if self._has_files(name)) or "no hook point"
                raise InputError(
                    f"store {self.location} lists {site} but has no files of it, only of {present}; set "
                    "config.data.site, or copy the folder of this hook point too"
                ) from error
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
    conformity.check_manifest(manifest, f"store {location}: manifest")
    return Store(location, manifest, kvstore)
