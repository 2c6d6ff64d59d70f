"""Write a store: whole shards, a marker after each, the manifest last.

Every shard is a pure function of its samples and every key is written whole, so a run may be
killed at any moment: the next writes what has no marker again, and the finished store equals that
of a run that was never interrupted, byte for byte. So it does where several workers share the
shards; whoever finds all of them there writes the manifest.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow
import pyarrow.parquet
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import layout, locks, statistics
from revelio_jax.store.locks import Worker


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """A site: its width, and the rows of each shard before any is dropped."""

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
        """Return the array rows reserved per shard: the rows of the fullest shard, rounded up to whole chunks."""
        return -(-max(max(site.rows), 1) // self.chunk_rows) * self.chunk_rows

    def decisive(self) -> dict[str, typing.Any]:
        """Return the plan as JSON, which two runs must share to write one store; the most telling fields come first."""
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
    """Writer of the missing shards and of the manifest."""

    def __init__(self, location: str, plan: StorePlan, samples: list[dict[str, typing.Any]] | pyarrow.Table):
        """Start or resume the store. Raise InputError if it holds the data of another run.

        Several workers may do so at once: the first one's plan is everybody's.
        """
        self.location, self.plan = location, plan
        self._kvstore, self._folder = layout.open_kvstore(location), layout.local_folder(location)
        self.finished = layout.read_json(self._kvstore, "manifest.json") is not None
        # Asked twice: what lies there may be what another worker began between.
        if not self._planned() and (self.finished or self._holds_anything()) and not self._planned():
            raise InputError(f"store {location}: the folder is not empty and is not a store")
        if self.finished:
            locks.remove(self._folder)  # a run that was killed at its very end left them
            return
        with self._writing(), locks.alone(self._folder):
            # The plan first: whatever else lies there is then known to be this store's.
            if layout.read_json(self._kvstore, "plan.json") is None:
                layout.write_new(self._kvstore, "plan.json", layout.json_bytes(plan.to_json()))
            if not self._kvstore.list(ts.KvStore.KeyRange("samples.parquet", "samples.parquet0")).result():
                buffer = io.BytesIO()
                table = samples if isinstance(samples, pyarrow.Table) else pyarrow.Table.from_pylist(samples)
                pyarrow.parquet.write_table(table, buffer, write_page_checksum=True)
                layout.write_new(self._kvstore, "samples.parquet", buffer.getvalue())
            self._arrays = self._open_arrays()
        self._planned()  # another may have been first, with another plan

    @contextlib.contextmanager
    def claimed(self, worker: Worker) -> Iterator[None]:
        """Lock the worker's shards. Raise InputError if another run writes some of them."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                stack.enter_context(locks.held(self._folder, self.location, worker))
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
            index_arrays = {name: arrays[name].astype(np.int32, copy=False) for name in layout.INDEX_ARRAYS}
            with np.errstate(invalid="ignore"):
                stats = statistics.of_rows(values)
            # Sums in float64 are finite where all values are, which saves a pass over them.
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
            marker[site.name] = {
                "dropped": count - len(values),
                **({"skipped": skipped} if skipped else {}),
                **stats.to_json(),
            }
        with self._writing():
            layout.write_json(self._kvstore, layout.shard_key(index), marker)

    def finish(self) -> dict[str, typing.Any]:
        """Write the manifest; every shard must be there. Returns it.

        It is the same whoever writes it, so that several may.
        """
        if self.finished:
            return layout.read_json(self._kvstore, "manifest.json")
        if missing := self.missing():
            raise ValueError(f"shards {missing[:5]} are missing")
        with self._writing(), locks.alone(self._folder):
            manifest = layout.read_json(self._kvstore, "manifest.json")
            if manifest is None:
                plan = layout.read_json(self._kvstore, "plan.json")
                keys = map(layout.shard_key, range(self.plan.shards))
                manifest = manifest_of(plan, (layout.read_json(self._kvstore, key) for key in keys))
                layout.write_json(self._kvstore, "manifest.json", manifest)
            locks.remove(self._folder)
        self.finished = True
        return manifest

    def _planned(self) -> bool:
        """Return whether the store has a plan. Raise InputError if the plan differs from this run's."""
        plan = layout.read_json(self._kvstore, "plan.json")
        if plan is None:
            return False
        kept = {key: value for key, value in plan.items() if key not in ("fingerprint", "notes")}
        if found := difference(kept, self.plan.decisive()):
            raise InputError(f"store {self.location} was made with {found}; choose another config.extract.store")
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failed write, for example on a full disk, into an InputError of one line."""
        try:
            yield
        except InputError:
            raise
        except (ValueError, OSError) as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's text is long
            reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or error
            raise InputError(
                f"store {self.location} cannot be written: {reason}; "
                "finished shards stay, and the same command continues from them"
            ) from error

    def _holds_anything(self) -> bool:
        try:
            if self._folder is not None and self._folder == self._folder.parent:
                return True  # of / TensorStore lists nothing
            keys = self._kvstore.list().result()
            return not all(key.startswith(f"{locks.FOLDER}/".encode()) for key in keys)
        except (ValueError, OSError) as error:  # a file, or nothing that may be listed
            raise InputError(f"store {self.location}: {error}") from error

    def _write(self, index: int, site: SitePlan, name: str, valid: np.ndarray) -> ts.Future:
        """Write a whole shard of one array; a partial write would be merged with the rows of a killed run."""
        array = self._arrays[site.name, name]
        shard_rows = self.plan.shard_rows(site)
        start, stop = index * shard_rows, min((index + 1) * shard_rows, array.shape[0])
        if stop - start < shard_rows:  # the last may end in the middle: it would be merged, broken or not
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
        opening, begun = {}, bool(layout.done_shards(self._kvstore))
        for site in self.plan.sites:
            shard_rows = self.plan.shard_rows(site)
            rows = (self.plan.shards - 1) * shard_rows + site.rows[-1]
            shapes = {"activations": [rows, site.d]} | {name: [rows] for name in layout.INDEX_ARRAYS}
            for name, shape in shapes.items():
                dtype = self.plan.dtype if name == "activations" else "int32"
                key = f"{site.name}/{name}"
                if begun and layout.read_json(self._kvstore, f"{key}/zarr.json") is None:
                    raise InputError(
                        f"store {self.location}: {key} is missing, but shards are marked as finished; "
                        "revelio extract --verify prints what to delete"
                    )
                spec = layout.array_spec(self._kvstore, key, dtype, shape, shard_rows, self.plan.chunk_rows)
                opening[site.name, name] = ts.open(spec, open=True, create=True, context=layout.CONTEXT)
        return {key: future.result() for key, future in opening.items()}


def manifest_of(plan: dict[str, typing.Any], markers: Iterable[dict[str, typing.Any]]) -> dict[str, typing.Any]:
    """Return the manifest of a store from its plan.json and the markers of all shards, in order."""
    sites = {name: {"rows": 0, "dropped": 0, "skipped": [], "shard_valid_rows": []} for name in plan["sites"]}
    totals: dict[str, statistics.Statistics] = {}
    for marker in markers:
        for name, part in marker.items():
            sites[name]["shard_valid_rows"].append(part["count"])
            sites[name]["dropped"] += part["dropped"]
            sites[name]["skipped"] += part.get("skipped", [])
            stats = statistics.Statistics.from_json(part)
            totals[name] = statistics.combine(totals[name], stats) if name in totals else stats
    for name, stats in totals.items():
        mean, variance = stats.mean.tolist(), stats.variance.tolist()
        sites[name] |= {"rows": stats.count, "mean": mean, "variance": variance}
    for facts in sites.values():
        if not facts["skipped"]:  # as in stores from before there was such a thing
            del facts["skipped"]
    return plan | {"sites": {name: plan["sites"][name] | facts for name, facts in sites.items()}}


def difference(before: typing.Any, now: typing.Any, path: str = "", other: str = "this run has") -> str:
    """Return the first leaf in which two plans differ, as 'path x, this run has y', or '' if they agree."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *before]):
            found = difference(before.get(key), now.get(key), f"{path}.{key}" if path else key, other)
            if found:
                return found
        return ""
    return "" if before == now else f"{path} {_short(before)}, {other} {_short(now)}"


def _short(value: typing.Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
