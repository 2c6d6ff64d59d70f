"""Writing a store: whole shards, a marker after each, the manifest last."""

import dataclasses
import functools
import io
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
    """All that decides a store's bytes. ``facts`` are compared when a run is resumed."""

    sites: tuple[SitePlan, ...]
    dtype: str
    chunk_rows: int
    shard_samples: int
    samples: int
    facts: dict[str, typing.Any]

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_samples)

    def shard_rows(self, site: SitePlan) -> int:
        """Rows that the array sets aside for a shard: the fullest shard, in whole chunks."""
        return -(-max(max(site.rows), 1) // self.chunk_rows) * self.chunk_rows

    def to_json(self) -> dict[str, typing.Any]:
        sites = {
            site.name: {"d": site.d, "shard_rows": self.shard_rows(site), "expected_rows": list(site.rows)}
            for site in self.sites
        }
        return {
            "format_version": layout.FORMAT_VERSION,
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "shard_samples": self.shard_samples,
            "samples": self.samples,
            "sites": sites,
            **self.facts,
        }


class StoreWriter:
    """Writes the shards that are missing, then the manifest.

    Every shard is a pure function of its samples, so a store that was interrupted and resumed
    equals one that was not, byte for byte.
    """

    def __init__(self, location: str, plan: StorePlan, samples: list[dict[str, typing.Any]]):
        """Begin or resume the store. Raises InputError where it holds another run's data."""
        self.location, self.plan = location, plan
        self._kvstore = layout.open_kvstore(location)
        self.finished = layout.read_json(self._kvstore, "manifest.json") is not None
        before = layout.read_json(self._kvstore, "plan.json")
        if before is None:
            if self.finished or self._kvstore.list().result():
                raise InputError(f"store {location}: the folder is not empty and holds no store")
            table = pyarrow.Table.from_pylist(samples)
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(table, buffer)
            self._kvstore.write("samples.parquet", buffer.getvalue()).result()
            layout.write_json(self._kvstore, "plan.json", plan.to_json())
        else:
            difference = _difference(before, plan.to_json())
            if difference:
                raise InputError(
                    f"store {location} was made with {difference}; choose another config.extract.store"
                )

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
        dropped and counted.
        """
        marker = {}
        for site in self.plan.sites:
            arrays = sites[site.name]
            values = arrays["activations"]
            if values.ndim != 2 or values.shape[1] != site.d:
                raise ValueError(f"{site.name}: activations {values.shape}, expected [rows, {site.d}]")
            with np.errstate(over="ignore"):
                values = values.astype(ts.dtype(self.plan.dtype).numpy_dtype)
            finite = np.isfinite(values.astype(np.float32)).all(1)
            values = values[finite]
            start = index * self.plan.shard_rows(site)
            writes = [self._array(site.name, "activations")[start : start + len(values)].write(values)]
            for name in layout.INDEX_ARRAYS:
                column = arrays[name][finite].astype(np.int32)
                writes.append(self._array(site.name, name)[start : start + len(column)].write(column))
            for write in writes:
                write.result()
            marker[site.name] = {
                "dropped": int((~finite).sum()),
                **statistics.of_rows(values).to_json(),
            }
        layout.write_json(self._kvstore, layout.shard_key(index), marker)

    def finish(self) -> dict[str, typing.Any]:
        """Write the manifest; every shard must be there. Returns it."""
        if missing := self.missing():
            raise ValueError(f"shards {missing[:5]} are missing")
        manifest = self.plan.to_json()
        totals: dict[str, statistics.Statistics] = {}
        for index in range(self.plan.shards):
            marker = layout.read_json(self._kvstore, layout.shard_key(index))
            for name, part in marker.items():
                site = manifest["sites"][name]
                site.setdefault("shard_valid_rows", []).append(part["count"])
                site["dropped"] = site.get("dropped", 0) + part["dropped"]
                stats = statistics.Statistics.from_json(part)
                totals[name] = statistics.combine(totals[name], stats) if name in totals else stats
        for name, stats in totals.items():
            site = manifest["sites"][name]
            site["rows"] = stats.count
            site["mean"], site["variance"] = stats.mean.tolist(), stats.variance.tolist()
        layout.write_json(self._kvstore, "manifest.json", manifest)
        self.finished = True
        return manifest

    @functools.cache  # noqa: B019 - a writer lives as long as its run
    def _array(self, site: str, name: str) -> ts.TensorStore:
        plan = next(s for s in self.plan.sites if s.name == site)
        shard_rows = self.plan.shard_rows(plan)
        rows = (self.plan.shards - 1) * shard_rows + plan.rows[-1]
        activations = name == "activations"
        spec = layout.array_spec(
            self._kvstore,
            f"{site}/{name}",
            self.plan.dtype if activations else "int32",
            [rows, plan.d] if activations else [rows],
            shard_rows,
            self.plan.chunk_rows,
        )
        return ts.open(spec, open=True, create=True).result()


def _difference(before: typing.Any, now: typing.Any, path: str = "") -> str:
    """The first leaf in which two plans differ, as 'path x, this run has y'; '' where none."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            found = _difference(before.get(key), now.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return ""
    return "" if before == now else f"{path} {_short(before)}, this run has {_short(now)}"


def _short(value: typing.Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
