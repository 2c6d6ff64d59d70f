"""How far a store is, and whether all that it holds is as it was written."""

import dataclasses
import typing
from collections.abc import Iterator

import numpy as np
import pyarrow
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import layout, parquet, statistics
from revelio_jax.store.writer import difference, manifest_of

# Statistics of the same rows may differ in their last bits on another machine, which sums in another order.
TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class StoreState:
    """A store as it lies there: its plan, the shards that have a marker, the manifest once there is one."""

    location: str
    kvstore: ts.KvStore
    plan: dict[str, typing.Any]
    done: frozenset[int]
    manifest: dict[str, typing.Any] | None

    @property
    def shards(self) -> int:
        return -(-self.plan["samples"] // self.plan["shard_samples"])

    def samples(self, shard: int) -> range:
        size = self.plan["shard_samples"]
        return range(shard * size, min((shard + 1) * size, self.plan["samples"]))


def find(location: str) -> StoreState:
    """A store, finished or not. Raises InputError where there is none."""
    kvstore = layout.open_kvstore(location)
    plan = layout.read_json(kvstore, "plan.json")
    if plan is None:
        raise InputError(f"store {location}: no store there; python -m extract.run makes it")
    if plan.get("format_version") != layout.FORMAT_VERSION:
        raise InputError(
            f"store {location} has format version {plan.get('format_version')}; "
            f"this version reads {layout.FORMAT_VERSION}"
        )
    try:
        manifest = layout.read_json(kvstore, "manifest.json")
    except InputError as error:
        advice = "where it is broken, delete it and extract again: it is made anew"
        raise InputError(f"{error}; {advice}") from error
    shards = range(-(-plan["samples"] // plan["shard_samples"]))
    return StoreState(location, kvstore, plan, frozenset(layout.done_shards(kvstore)) & set(shards), manifest)


def faults(store: StoreState) -> Iterator[tuple[int | str, str]]:
    """Read everything; yields (shard, "") for each good shard and (shard or file, what is wrong) for others.

    Reading checks the checksum of every chunk. Rows are also compared with the statistics in the shard's
    marker, so that a file that is gone, which reads as the fill value, is seen too. What has a fault is
    written again by a run that does not find it: of a shard the marker, of the whole store a file; and no
    manifest. A shard of one site is in memory at a time, not more.
    """
    arrays, markers = {}, {}
    for name in store.plan["sites"] if store.done else ():
        for key in ("activations", *layout.INDEX_ARRAYS):
            try:
                arrays[name, key] = layout.open_array(store.kvstore, f"{name}/{key}")
            except ValueError as error:
                yield f"{name}/{key}/zarr.json", f"the array cannot be opened: {_short(error)}"
                # What it held is to be made anew too, so no marker may say that it is there.
                for shard in sorted(store.done):
                    yield shard, f"{name}/{key} cannot be opened"
                return
    unset: dict[tuple[str, str], set[int]] = {key: set() for key in arrays}
    filled: dict[tuple[str, str], set[int]] = {key: set() for key in arrays}
    for shard in sorted(store.done):
        try:
            marker = layout.read_json(store.kvstore, layout.shard_key(shard))
            for name in store.plan["sites"]:
                for key in _check(store, arrays, shard, name, marker[name]):
                    unset[name, key].add(shard)
                if marker[name]["count"]:
                    for key in layout.INDEX_ARRAYS:
                        filled[name, key].add(shard)
        except (KeyError, TypeError):
            yield shard, "its marker lacks fields"
        except ValueError as error:
            yield shard, _short(error)
        else:
            markers[shard] = marker
            yield shard, ""
    # An index may be -1 in all rows, as the timestep of text is, and takes no file then; but in every shard.
    for (name, key), shards in unset.items():
        if shards != filled[name, key]:
            for shard in sorted(shards):
                yield shard, f"{name}/{key} is gone"
    yield from _of_the_whole(store, markers)


def _check(
    store: StoreState,
    arrays: dict[tuple[str, str], ts.TensorStore],
    shard: int,
    name: str,
    marker: dict[str, typing.Any],
) -> list[str]:
    """Raise ValueError where a site's shard is not as its marker says; returns indices that are all unset."""
    planned = store.plan["sites"][name]
    wanted = statistics.Statistics.from_json(marker)
    expected, rows = planned["expected_rows"][shard], wanted.count + marker["dropped"]
    if rows > expected or (rows < expected and not marker.get("skipped")):
        raise ValueError(
            f"{name}: the marker has {wanted.count} rows and {marker['dropped']} dropped, "
            f"planned were {planned['expected_rows'][shard]}"
        )
    start = shard * planned["shard_rows"]
    stop = min(start + planned["shard_rows"], arrays[name, "sample"].shape[0])
    read = {key: arrays[name, key][start:stop].read() for key in ("activations", *layout.INDEX_ARRAYS)}
    values = {}
    for key, future in read.items():
        try:
            values[key] = future.result()
        except ValueError as error:
            raise ValueError(f"{name}/{key}: {error}") from error
    sample, samples = values["sample"], store.samples(shard)
    valid = sample[: wanted.count]
    if (sample[wanted.count :] != -1).any() or ((valid < samples.start) | (valid >= samples.stop)).any():
        raise ValueError(f"{name}/sample: not the samples of {wanted.count} rows of this shard")
    got = statistics.of_rows(values["activations"][: wanted.count])
    scale = np.sqrt(wanted.variance + np.square(wanted.mean))
    if not (
        (np.abs(got.mean - wanted.mean) <= TOLERANCE * scale).all()
        and (np.abs(got.variance - wanted.variance) <= TOLERANCE * np.square(scale)).all()
    ):
        raise ValueError(f"{name}/activations: not the rows that the marker's statistics are of")
    return [key for key in layout.INDEX_ARRAYS if wanted.count and (values[key][: wanted.count] == -1).all()]


def _of_the_whole(store: StoreState, markers: dict[int, dict[str, typing.Any]]) -> Iterator[tuple[str, str]]:
    """What is wrong with samples.parquet and the manifest."""
    table = store.kvstore.read("samples.parquet").result()
    try:
        ids = parquet.read_table(table.value, page_checksum_verification=True)["id"].to_pylist()
        if ids != list(range(store.plan["samples"])):
            yield "samples.parquet", f"not the ids of {store.plan['samples']} samples"
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        yield "samples.parquet", f"cannot be read: {_short(error)}"
    if store.manifest is None:
        return
    if store.done != frozenset(range(store.shards)):
        yield "manifest.json", f"is there, but only {len(store.done)} of {store.shards} shards are"
    elif len(markers) == store.shards:
        wanted = manifest_of(store.plan, (markers[shard] for shard in sorted(markers)))
        if found := difference(store.manifest, wanted, other="the markers have"):
            yield "manifest.json", f"has {found}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
