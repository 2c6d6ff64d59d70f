"""Write a store: whole shards, a marker after each shard, and the manifest last.

Every shard is a pure function of its samples, and every key is written as a whole. A run may therefore be killed at any
moment. The next run writes the shards without a marker again. The finished store is byte for byte the store of an
uninterrupted run, also if several workers share the shards. The worker that finds all shards finished writes the
manifest.
"""

import contextlib
import dataclasses
import io
import json
import typing
from collections.abc import Generator, Iterable, Iterator

import numpy as np
import pyarrow
import pyarrow.parquet
import tensorstore as ts

from revelio_jax import checksums
from revelio_jax.errors import InputError, write_failure
from revelio_jax.store import layout, locks, parquet, statistics
from revelio_jax.store.json_files import (
    Manifest,
    Marker,
    Plan,
    PlanIdentity,
    Provenance,
    SiteShape,
    SiteTotals,
)
from revelio_jax.store.locks import Worker


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """The plan of a site: its width, and the number of rows of each shard before non-finite rows are dropped."""

    name: str
    d: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """The description of a store before its first activation is computed.

    ``provenance`` (model, input and config) and the other fields determine the content of the store. They are part of
    the fingerprint, and a run with other values is refused. ``notes``, for example library versions, are only recorded.
    ``batch_size``, the samples per forward pass, is recorded with each shard. Another run may use another one, for
    example after this one ran out of memory: it changes at most the last bits of rows.
    """

    sites: tuple[SitePlan, ...]
    dtype: str
    chunk_rows: int
    shard_samples: int
    samples: int
    provenance: Provenance
    batch_size: int | None = None
    notes: dict[str, typing.Any] = dataclasses.field(default_factory=dict[str, typing.Any])

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_samples)

    def shard_rows(self, site: SitePlan) -> int:
        """Return the array rows reserved per shard: the rows of the fullest shard, rounded up to whole chunks."""
        return -(-max(max(site.rows), 1) // self.chunk_rows) * self.chunk_rows

    def identity(self) -> PlanIdentity:
        """Return the fields that two runs must share to write one store; the most informative fields come first."""
        sites: dict[str, SiteShape] = {
            site.name: {"d": site.d, "shard_rows": self.shard_rows(site), "expected_rows": list(site.rows)}
            for site in self.sites
        }
        return {
            **self.provenance,
            "format_version": layout.FORMAT_VERSION,
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "shard_samples": self.shard_samples,
            "samples": self.samples,
            "sites": sites,
        }

    def to_json(self) -> Plan:
        """Return the contents of plan.json."""
        identity = self.identity()
        text = json.dumps(identity, sort_keys=True)
        return {
            "fingerprint": checksums.of_bytes(text.encode()),
            **identity,
            "notes": self.notes,
        }


class StoreWriter:
    """A writer of the missing shards and the manifest of a store."""

    def __init__(self, location: str | None, plan: StorePlan, samples: list[dict[str, typing.Any]] | pyarrow.Table):
        """Start or resume the store. Raise InputError if it belongs to a run with another plan.

        Several workers may start at once; the plan of the first one is binding for all.
        """
        location = layout.checked_location(location)
        self.location, self.plan = location, plan
        self._kvstore, self._folder = layout.open_kvstore(location), layout.local_folder(location)
        self._manifest = layout.read_manifest(self._kvstore)
        # Check for a plan twice: another worker may start the store between the first check and the listing.
        if not self._has_plan() and (self.finished or self._has_files()) and not self._has_plan():
            raise InputError(f"store {location}: the folder is not empty and is not a store")
        if self.finished:
            locks.remove(self._folder)  # a run that was killed just before its end may have left them
            return
        with self._writing(), locks.exclusive(self._folder):
            self._start(samples)
            self._arrays = self._open_arrays()
        self._has_plan()  # raises InputError if another run was first, with another plan

    @property
    def finished(self) -> bool:
        """Return whether the store has a manifest."""
        return self._manifest is not None

    @contextlib.contextmanager
    def lock_shards(self, worker: Worker) -> Generator[None]:
        """Lock the worker's shards in the block. Raise InputError if another run is writing some of them."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                stack.enter_context(locks.lock_shards(self._folder, self.location, worker))
            yield

    def missing(self) -> list[int]:
        """Return the shards without a marker, in order."""
        if self.finished:
            return []
        done = layout.done_shards(self._kvstore)
        return [i for i in range(self.plan.shards) if i not in done]

    def write_shard(self, index: int, sites: dict[str, dict[str, np.ndarray]]) -> None:
        """Write one shard of every site, then its marker.

        ``sites`` maps a site to ``activations`` [rows, d] and int32 ``sample``, ``position`` and
        ``timestep`` [rows]. Rows with a non-finite value (after the cast to the store's dtype) are
        dropped and counted. Optional ``skipped`` are the numbers of samples that could not be read. They have no rows,
        so the shard may have fewer rows than planned.
        """
        marker: Marker = {}
        for site in self.plan.sites:
            arrays = sites[site.name]
            values = arrays["activations"]
            skipped = arrays.get("skipped", np.empty(0, np.int32)).tolist()
            count, planned = len(values), site.rows[index]
            fits = count <= planned if skipped else count == planned
            if values.shape[1:] != (site.d,) or not fits:
                raise ValueError(f"{site.name}: activations {values.shape}, planned ({planned}, {site.d})")
            with np.errstate(over="ignore"):
                values = values.astype(ts.dtype(self.plan.dtype).numpy_dtype, copy=False)
            index_arrays = {name: arrays[name].astype(np.int32, copy=False) for name in layout.INDEX_ARRAYS}
            with np.errstate(invalid="ignore"):
                stats = statistics.of_rows(values)
            # The float64 sums are finite if all values are, so finite rows need no second pass.
            if not np.isfinite(stats.m2).all():
                finite = np.isfinite(values).all(1)
                values = values[finite]
                index_arrays = {name: array[finite] for name, array in index_arrays.items()}
                stats = statistics.of_rows(values)
            writes = [self._write(index, site, "activations", values)]
            writes += [self._write(index, site, name, array) for name, array in index_arrays.items()]
            with self._writing():
                for write in writes:
                    write.result()
            marker[site.name] = {"dropped": count - len(values), **stats.to_json()}
            if skipped:
                marker[site.name]["skipped"] = skipped
            if self.plan.batch_size:
                marker[site.name]["batch_size"] = self.plan.batch_size
        with self._writing():
            layout.write_json(self._kvstore, layout.shard_key(index), marker)

    def written_batch_size(self) -> int | None:
        """Return the batch size of the first finished shard, or None without one or if it is not recorded."""
        done = layout.done_shards(self._kvstore)
        marker = layout.read_marker(self._kvstore, min(done)) if done else None
        return next(iter(marker.values())).get("batch_size") if marker else None

    def finish(self) -> Manifest:
        """Write the manifest of a store whose shards are all finished, and return it.

        All workers would write the same manifest, so several may call this method.
        """
        if self._manifest is not None:
            return self._manifest
        if missing := self.missing():
            raise ValueError(f"shards {missing[:5]} are missing")
        with self._writing(), locks.exclusive(self._folder):
            manifest = layout.read_manifest(self._kvstore)
            if manifest is None:
                plan = layout.read_plan(self._kvstore)
                if plan is None:
                    raise ValueError("plan.json is missing")
                manifest = build_manifest(plan, self._markers())
                layout.write_json(self._kvstore, "manifest.json", manifest)
            locks.remove(self._folder)
        self._manifest = manifest
        return manifest

    def _start(self, samples: list[dict[str, typing.Any]] | pyarrow.Table) -> None:
        """Write the plan and the samples if they are missing.

        The plan is first: it identifies the other files as files of this store. Its notes have the sha256 of the
        samples. Raise InputError if the samples are more than readers accept.
        """
        written = layout.read_plan(self._kvstore)
        if written and self._kvstore.list(ts.KvStore.KeyRange("samples.parquet", "samples.parquet0")).result():
            return
        buffer = io.BytesIO()
        table = samples if isinstance(samples, pyarrow.Table) else pyarrow.Table.from_pylist(samples)
        pyarrow.parquet.write_table(table, buffer, write_page_checksum=True)
        sha256 = checksums.of_bytes(buffer.getvalue())
        try:
            for name in parquet.read_schema(buffer.getvalue()).names:
                parquet.read_table(buffer.getvalue(), columns=[name])
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"store {self.location}: samples.parquet: {error}; extract fewer samples per store"
            ) from error
        if written is None:
            content = self.plan.to_json()
            content["notes"] = {**content.get("notes", {}), layout.SAMPLES_SHA256: sha256}
            layout.write_new(self._kvstore, "plan.json", layout.json_bytes(content))
        elif written.get("notes", {}).get(layout.SAMPLES_SHA256, sha256) != sha256:
            raise InputError(
                f"store {self.location}: samples.parquet is missing, and this version of pyarrow writes other bytes "
                "than the one that started the store; delete the store and extract again"
            )
        layout.write_new(self._kvstore, "samples.parquet", buffer.getvalue())

    def _markers(self) -> Iterator[Marker]:
        """Yield the markers of all shards, in order."""
        for shard in range(self.plan.shards):
            marker = layout.read_marker(self._kvstore, shard)
            if marker is None:
                raise ValueError(f"shard {shard} is missing")
            yield marker

    def _has_plan(self) -> bool:
        """Return whether the store has a plan. Raise InputError if the plan differs from this run's."""
        plan = layout.read_plan(self._kvstore)
        if plan is None:
            return False
        identity = {key: value for key, value in plan.items() if key not in ("fingerprint", "notes")}
        # Earlier versions made the batch size a part of the identity.
        if isinstance(settings := plan.get("extract"), dict):
            identity["extract"] = {name: value for name, value in settings.items() if name != "batch_size"}
        if fields := difference(identity, self.plan.identity()):
            raise InputError(f"store {self.location} was made with {fields}; choose another config.extract.store")
        return True

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        """Turn a failed write into one line: InputError for a wrong location, EnvironmentFailure for a full disk."""
        try:
            yield
        except InputError:
            raise
        except (ValueError, OSError) as error:
            advice = "finished shards are kept, and the same command continues from them"
            raise write_failure(f"store {self.location}", error, advice) from error

    def _has_files(self) -> bool:
        """Return whether the location holds any file other than locks."""
        try:
            if self._folder is not None and self._folder == self._folder.parent:
                return True  # TensorStore lists no keys of the folder /
            keys = self._kvstore.list().result()
            return not all(key.startswith(f"{locks.FOLDER}/".encode()) for key in keys)
        except (ValueError, OSError) as error:  # a file, or a folder that may not be listed
            raise InputError(f"store {self.location}: {error}") from error

    def _write(self, index: int, site: SitePlan, name: str, valid: np.ndarray) -> ts.WriteFutures:
        """Write a whole shard of one array; a partial write would be merged with the rows of a killed run."""
        array = self._arrays[site.name, name]
        shard_rows = self.plan.shard_rows(site)
        start, stop = index * shard_rows, min((index + 1) * shard_rows, array.shape[0])
        if stop - start < shard_rows:  # a partial last shard is deleted first, because TensorStore would merge it
            key = f"{site.name}/{name}/c/{index}" + "/0" * (array.ndim - 1)
            with self._writing():
                self._kvstore.write(key, None).result()
        if len(valid) < stop - start:
            rows = np.full((stop - start, *valid.shape[1:]), array.fill_value, valid.dtype)
            rows[: len(valid)] = valid
        else:
            rows = np.ascontiguousarray(valid)
        return array[start:stop].write(rows, can_reference_source_data_indefinitely=True)

    def _open_arrays(self) -> dict[tuple[str, str], ts.TensorStore]:
        futures: dict[tuple[str, str], ts.Future[ts.TensorStore]] = {}
        has_shards = bool(layout.done_shards(self._kvstore))
        for site in self.plan.sites:
            shard_rows = self.plan.shard_rows(site)
            rows = (self.plan.shards - 1) * shard_rows + site.rows[-1]
            shapes = {"activations": [rows, site.d]} | {name: [rows] for name in layout.INDEX_ARRAYS}
            for name, shape in shapes.items():
                dtype = self.plan.dtype if name == "activations" else "int32"
                key = f"{site.name}/{name}"
                if has_shards and layout.read_json(self._kvstore, f"{key}/zarr.json") is None:
                    raise InputError(
                        f"store {self.location}: {key} is missing, but shards are marked as finished; "
                        "revelio extract --verify prints the files to delete"
                    )
                spec = layout.array_spec(self._kvstore, key, dtype, shape, shard_rows, self.plan.chunk_rows)
                futures[site.name, name] = ts.open(spec, open=True, create=True, context=layout.CONTEXT)
        return {key: future.result() for key, future in futures.items()}


def build_manifest(plan: Plan, markers: Iterable[Marker]) -> Manifest:
    """Return the manifest of a store from its plan.json and the markers of all shards, in order."""
    sites: dict[str, SiteTotals] = {
        name: {"rows": 0, "dropped": 0, "shard_valid_rows": [], "mean": [], "variance": []} for name in plan["sites"]
    }
    skipped: dict[str, list[int]] = {name: [] for name in sites}
    batch_sizes: set[int] = set()
    totals: dict[str, statistics.Statistics] = {}
    for marker in markers:
        for name, part in marker.items():
            sites[name]["shard_valid_rows"].append(part["count"])
            sites[name]["dropped"] += part["dropped"]
            skipped[name] += part.get("skipped", [])
            batch_sizes |= {part["batch_size"]} if "batch_size" in part else set()
            stats = statistics.Statistics.from_json(part)
            totals[name] = statistics.combine(totals[name], stats) if name in totals else stats
    for name, site in sites.items():
        stats = totals[name]
        site |= {"rows": stats.count, "mean": stats.mean.tolist(), "variance": stats.variance.tolist()}
        if skipped[name]:
            site["skipped"] = skipped[name]
    manifest: Manifest = {**plan, "sites": {name: {**plan["sites"][name], **site} for name, site in sites.items()}}
    if batch_sizes:
        manifest["batch_sizes"] = sorted(batch_sizes)
    return manifest


def difference(stored: typing.Any, own: typing.Any, path: str = "", other: str = "this run has") -> str:
    """Return the first leaf in which two plans differ, as 'path x, this run has y', or '' if they agree."""
    if isinstance(stored, dict) and isinstance(own, dict):
        for key in dict.fromkeys([*own, *stored]):
            text = difference(stored.get(key), own.get(key), f"{path}.{key}" if path else key, other)
            if text:
                return text
        return ""
    return "" if stored == own else f"{path} {_short(stored)}, {other} {_short(own)}"


def _short(value: typing.Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
