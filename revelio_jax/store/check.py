"""Report the progress of a store, and verify its content against checksums and statistics."""

import dataclasses
import typing
from collections.abc import Iterator

import numpy as np
import pyarrow
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import layout, parquet, statistics
from revelio_jax.store.json_files import Manifest, Plan, SiteMarker
from revelio_jax.store.writer import build_manifest, difference

# Machines sum in different orders, so statistics of the same rows may differ in their last bits.
TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class StoreState:
    """The state of a store: its plan, its finished shards, and its manifest, None if the store is unfinished."""

    location: str
    kvstore: ts.KvStore
    plan: Plan
    done: frozenset[int]
    manifest: Manifest | None

    @property
    def shards(self) -> int:
        return -(-self.plan["samples"] // self.plan["shard_samples"])

    def samples(self, shard: int) -> range:
        size = self.plan["shard_samples"]
        return range(shard * size, min((shard + 1) * size, self.plan["samples"]))


def read_state(location: str | None) -> StoreState:
    """Return the state of a store, finished or not. Raise InputError if the store is missing or malformed."""
    location = layout.checked_location(location)
    kvstore = layout.open_kvstore(location)
    plan = layout.read_plan(kvstore)
    if plan is None:
        raise InputError(f"store {location}: it does not exist; revelio extract writes it")
    layout.check_version(location, plan)
    try:
        manifest = layout.read_manifest(kvstore)
    except InputError as error:
        advice = "delete this file and run the same extract command again"
        raise InputError(f"{error}; {advice}") from error
    shards = range(-(-plan["samples"] // plan["shard_samples"]))
    return StoreState(location, kvstore, plan, frozenset(layout.done_shards(kvstore)) & set(shards), manifest)


def faults(store: StoreState) -> Iterator[tuple[int | str, str]]:
    """Read the whole store. Yield (shard, "") for each intact shard, and (shard or file, fault) for each fault.

    Reading verifies the checksum of every chunk. Rows are also compared with the statistics in the shard's marker,
    because a missing file reads as the fill value. To repair a shard, delete its marker and the manifest; to repair a
    file, delete the file and the manifest. The next run writes them again. Memory holds at most one shard of one site.
    """
    arrays: dict[tuple[str, str], ts.TensorStore] = {}
    intact: list[int] = []
    for name in store.plan["sites"] if store.done else ():
        for key in ("activations", *layout.INDEX_ARRAYS):
            try:
                arrays[name, key] = layout.open_array(store.kvstore, f"{name}/{key}")
                layout.check_array(arrays[name, key], _spec(store, name, key))
            except ValueError as error:
                yield f"{name}/{key}/zarr.json", f"the array cannot be opened: {_short(error)}"
                # The array must be written again, so every shard in it is faulty.
                for shard in sorted(store.done):
                    yield shard, f"{name}/{key} cannot be opened"
                return
    unset: dict[tuple[str, str], set[int]] = {key: set() for key in arrays}
    filled: dict[tuple[str, str], set[int]] = {key: set() for key in arrays}
    for shard in sorted(store.done):
        try:
            marker = layout.read_marker(store.kvstore, shard)
            if marker is None or set(marker) != set(store.plan["sites"]):
                raise KeyError(shard)
            for name in store.plan["sites"]:
                for key in _check(store, arrays, shard, name, marker[name]):
                    unset[name, key].add(shard)
                if marker[name]["count"]:
                    for key in layout.INDEX_ARRAYS:
                        filled[name, key].add(shard)
        except (KeyError, TypeError):
            yield shard, "fields are missing from its marker"
        except ValueError as error:
            yield shard, _short(error)
        else:
            intact.append(shard)
            yield shard, ""
    # An index array with -1 in all rows, such as the timestep of text, has no file. That must hold for every shard.
    for (name, key), shards in unset.items():
        if shards != filled[name, key]:
            for shard in sorted(shards):
                yield shard, f"{name}/{key} is missing"
    yield from _file_faults(store, intact)


def _spec(store: StoreState, name: str, key: str) -> dict[str, typing.Any]:
    """Return the spec of an array, with the rows that the plan needs."""
    plan, site = store.plan, store.plan["sites"][name]
    dtype, tail = (plan["dtype"], [site["d"]]) if key == "activations" else ("int32", [])
    shape = [(store.shards - 1) * site["shard_rows"] + site["expected_rows"][-1], *tail]
    return layout.array_spec(store.kvstore, f"{name}/{key}", dtype, shape, site["shard_rows"], plan["chunk_rows"])


def _check(
    store: StoreState,
    arrays: dict[tuple[str, str], ts.TensorStore],
    shard: int,
    name: str,
    marker: SiteMarker,
) -> list[str]:
    """Compare a shard of a site with its marker. Return the index arrays that are unset in all rows.

    Raise ValueError if the shard and its marker differ.
    """
    planned = store.plan["sites"][name]
    marked = statistics.Statistics.from_json(marker)
    expected, rows = planned["expected_rows"][shard], marked.count + marker["dropped"]
    if rows > expected or (rows < expected and not marker.get("skipped")):
        raise ValueError(
            f"{name}: the marker has {marked.count} rows and {marker['dropped']} dropped rows, "
            f"the plan has {expected} rows"
        )
    start = shard * planned["shard_rows"]
    stop = min(start + planned["shard_rows"], arrays[name, "sample"].shape[0])
    futures = {key: arrays[name, key][start:stop].read() for key in ("activations", *layout.INDEX_ARRAYS)}
    values = {}
    for key, future in futures.items():
        try:
            values[key] = future.result()
        except ValueError as error:
            raise ValueError(f"{name}/{key}: {error}") from error
    sample, samples = values["sample"], store.samples(shard)
    valid = sample[: marked.count]
    if (sample[marked.count :] != -1).any() or ((valid < samples.start) | (valid >= samples.stop)).any():
        raise ValueError(f"{name}/sample: these are not the samples of the {marked.count} rows of this shard")
    stored = statistics.of_rows(values["activations"][: marked.count])
    scale = np.sqrt(marked.variance + np.square(marked.mean))
    if not (
        (np.abs(stored.mean - marked.mean) <= TOLERANCE * scale).all()
        and (np.abs(stored.variance - marked.variance) <= TOLERANCE * np.square(scale)).all()
    ):
        raise ValueError(f"{name}/activations: the rows do not match the statistics in the marker")
    return [key for key in layout.INDEX_ARRAYS if marked.count and (values[key][: marked.count] == -1).all()]


def _file_faults(store: StoreState, intact: list[int]) -> Iterator[tuple[str, str]]:
    """Yield the faults of samples.parquet and of the manifest; ``intact`` are the shards without a fault."""
    table = store.kvstore.read("samples.parquet").result()
    try:
        layout.check_samples(store.plan, table.value)
        # One column at a time, because the tokens of all samples take much memory.
        for name in parquet.read_schema(table.value).names:
            parquet.read_table(table.value, columns=[name], page_checksum_verification=True)
        ids = parquet.read_table(table.value, columns=["id"])["id"].to_numpy()
        if not np.array_equal(ids, np.arange(store.plan["samples"])):
            yield "samples.parquet", f"its ids must be 0 to {store.plan['samples'] - 1}"
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        yield "samples.parquet", f"cannot be read: {_short(error)}"
    if store.manifest is None:
        return
    if store.done != frozenset(range(store.shards)):
        yield "manifest.json", f"exists, but only {len(store.done)} of {store.shards} shards are finished"
    elif len(intact) == store.shards:
        # Read again, because the markers of a large store take much memory.
        markers = (layout.read_marker(store.kvstore, shard) for shard in intact)
        expected = build_manifest(store.plan, (marker for marker in markers if marker))
        if fields := difference(store.manifest, expected, other="the markers have"):
            yield "manifest.json", f"has {fields}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
