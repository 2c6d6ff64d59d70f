"""Writing a store: whole shards, a marker after each, the manifest last.

Every shard is a pure function of its samples and every key is written whole, so a run may be
killed at any moment: the next writes what has no marker again, and the finished store equals that
of a run that was never interrupted, byte for byte.
"""

import dataclasses
import functools
import hashlib
import io
import json
import typing

import numpy as np
import pyarrow
import pyarrow.parquet
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import layout, statistics


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """One site: its width and how many rows each shard will hold before any is dropped."""

    name: str
    d: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class StorePlan:
    """All that is known of a store before its first activation.

    ``facts`` decide its bytes beside the other fields: a run with others is refused, and they go
    into the fingerprint. ``notes``, such as the versions of libraries, are only kept.
    """

    sites: tuple[SitePlan, ...]
    dtype: str
    chunk_rows: int
    shard_samples: int
    samples: int
    facts: dict[str, typing.Any]
    notes: dict[str, typing.Any] = dataclasses.field(default_factory=dict)

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_samples)

    def shard_rows(self, site: SitePlan) -> int:
        """Rows that the array sets aside for a shard: the fullest shard, in whole chunks."""
        return -(-max(max(site.rows), 1) // self.chunk_rows) * self.chunk_rows

    def decisive(self) -> dict[str, typing.Any]:
        """What two runs must share to write one store; what says most comes first."""
        sites = {
            site.name: {"d": site.d, "shard_rows": self.shard_rows(site), "expected_rows": list(site.rows)}
            for site in self.sites
        }
        return {
            **self.facts,
            "format_version": layout.FORMAT_VERSION,
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "shard_samples": self.shard_samples,
            "samples": self.samples,
            "sites": sites,
        }

    def to_json(self) -> dict[str, typing.Any]:
        decisive = self.decisive()
        text = json.dumps(decisive, sort_keys=True)
        return {
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
            **decisive,
            "notes": self.notes,
        }


class StoreWriter:
    """Writes the shards that are missing, then the manifest."""

    def __init__(self, location: str, plan: StorePlan, samples: list[dict[str, typing.Any]]):
        """Begin or resume the store. Raises InputError where it holds another run's data."""
        self.location, self.plan = location, plan
        self._kvstore = layout.open_kvstore(location)
        self.finished = layout.read_json(self._kvstore, "manifest.json") is not None
        before = layout.read_json(self._kvstore, "plan.json")
        if before is None and (self.finished or self._holds_anything()):
            raise InputError(f"store {location}: the folder is not empty and holds no store")
        if before is not None:
            kept = {key: value for key, value in before.items() if key not in ("fingerprint", "notes")}
            difference = _difference(kept, plan.decisive())
            if difference:
                raise InputError(
                    f"store {location} was made with {difference}; choose another config.extract.store"
                )
        if self.finished:
            return
        try:
            # The plan first: whatever else lies there is then known to be this store's.
            if before is None:
                layout.write_json(self._kvstore, "plan.json", plan.to_json())
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(samples), buffer)
            self._kvstore.write("samples.parquet", buffer.getvalue()).result()
        except (ValueError, OSError) as error:
            raise InputError(f"store {location} cannot be written: {error}") from error

    def missing(self) -> list[int]:
        """Shards that have no marker yet, in order."""
        if self.finished:
            return []
        done = {
            key.decode() for key in self._kvstore.list(ts.KvStore.KeyRange("shards/", "shards0")).result()
        }
        return [i for i in range(self.plan.shards) if layout.shard_key(i) not in done]

    def write_shard(self, index: int, sites: dict[str, dict[str, np.ndarray]]) -> None:
        """Write one shard of every site, then its marker.

        ``sites`` maps a site to ``activations`` [rows, d] and int32 ``sample``, ``position`` and
        ``timestep`` [rows]. Rows with a non-finite value (after the cast to the store's dtype) are
        dropped and counted. Where there is also ``skipped``, the numbers of samples that could not be
        read, these have no rows, and there may be fewer than planned.
        """
        marker = {}
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
            finite = np.isfinite(values).all(1)
            values = values[finite]
            writes = [self._write(index, site, "activations", values)]
            for name in layout.INDEX_ARRAYS:
                writes.append(self._write(index, site, name, arrays[name][finite].astype(np.int32)))
            for write in writes:
                write.result()
            marker[site.name] = {
                "dropped": int((~finite).sum()),
                **({"skipped": skipped} if skipped else {}),
                **statistics.of_rows(values).to_json(),
            }
        layout.write_json(self._kvstore, layout.shard_key(index), marker)

    def finish(self) -> dict[str, typing.Any]:
        """Write the manifest; every shard must be there. Returns it."""
        if self.finished:
            return layout.read_json(self._kvstore, "manifest.json")
        if missing := self.missing():
            raise ValueError(f"shards {missing[:5]} are missing")
        manifest = layout.read_json(self._kvstore, "plan.json")
        for site in self.plan.sites:
            facts = manifest["sites"][site.name]
            facts |= {"rows": 0, "dropped": 0, "skipped": [], "shard_valid_rows": []}
        totals: dict[str, statistics.Statistics] = {}
        for index in range(self.plan.shards):
            marker = layout.read_json(self._kvstore, layout.shard_key(index))
            for name, part in marker.items():
                site = manifest["sites"][name]
                site["shard_valid_rows"].append(part["count"])
                site["dropped"] += part["dropped"]
                site["skipped"] += part.get("skipped", [])
                stats = statistics.Statistics.from_json(part)
                totals[name] = statistics.combine(totals[name], stats) if name in totals else stats
        for name, stats in totals.items():
            site = manifest["sites"][name]
            site["rows"] = stats.count
            site["mean"], site["variance"] = stats.mean.tolist(), stats.variance.tolist()
        layout.write_json(self._kvstore, "manifest.json", manifest)
        self.finished = True
        return manifest

    def _holds_anything(self) -> bool:
        try:
            return bool(self._kvstore.list().result())
        except (ValueError, OSError) as error:  # a file, or nothing that may be listed
            raise InputError(f"store {self.location}: {error}") from error

    def _write(self, index: int, site: SitePlan, name: str, valid: np.ndarray) -> ts.Future:
        """Write a shard of one array whole: a part of it would be merged with what a killed run left."""
        array = self._arrays[site.name, name]
        shard_rows = self.plan.shard_rows(site)
        start, stop = index * shard_rows, min((index + 1) * shard_rows, array.shape[0])
        rows = np.full((stop - start, *valid.shape[1:]), array.fill_value, valid.dtype)
        rows[: len(valid)] = valid
        return array[start:stop].write(rows, can_reference_source_data_indefinitely=True)

    @functools.cached_property
    def _arrays(self) -> dict[tuple[str, str], ts.TensorStore]:
        opening = {}
        for site in self.plan.sites:
            shard_rows = self.plan.shard_rows(site)
            rows = (self.plan.shards - 1) * shard_rows + site.rows[-1]
            shapes = {"activations": [rows, site.d]} | {name: [rows] for name in layout.INDEX_ARRAYS}
            for name, shape in shapes.items():
                dtype = self.plan.dtype if name == "activations" else "int32"
                key = f"{site.name}/{name}"
                spec = layout.array_spec(self._kvstore, key, dtype, shape, shard_rows, self.plan.chunk_rows)
                opening[site.name, name] = ts.open(spec, open=True, create=True, context=layout.CONTEXT)
        return {key: future.result() for key, future in opening.items()}


def _difference(before: typing.Any, now: typing.Any, path: str = "") -> str:
    """The first leaf in which two plans differ, as 'path x, this run has y'; '' where none."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *before]):
            found = _difference(before.get(key), now.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if before == now else f"{path} {_short(before)}, this run has {_short(now)}"


def _short(value: typing.Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
