"""Copy hook points and samples of one or several stores to a new store: merge, split, or take a part."""

import json
import typing
from collections.abc import Sequence

import numpy as np
import pyarrow

from revelio_jax import checksums
from revelio_jax.errors import InputError
from revelio_jax.store import layout
from revelio_jax.store.json_files import Manifest, Provenance
from revelio_jax.store.locks import Worker
from revelio_jax.store.reader import SiteReader, Store, open_store
from revelio_jax.store.writer import SitePlan, StorePlan, StoreWriter, difference

# Where a model was and where it ran. Its fingerprint identifies the weights.
_PLACES = ("device", "id", "revision")
# Fields of config.extract that may differ in stores whose rows belong together.
_FREE = ("batch_size", "sites")


def copy_store(
    sources: Sequence[str], target: str, sites: Sequence[str] | None = None, samples: Sequence[int] | None = None
) -> Store:
    """Write a new store with some hook points and samples of finished stores, bit for bit, without a model.

    ``sites`` are the hook points to copy, by default those of the first store. ``samples`` are the numbers of the
    samples to copy, in increasing order; they count through all ``sources``. By default all samples are copied. The new
    store numbers its samples from 0, and has its own fingerprint. Saved images and latents are copied too. Memory holds
    one shard. A call that was stopped continues if it is repeated.

    Raise InputError before anything is written if a store is missing or unfinished, if the stores differ in model,
    dtype, width or settings, or if a hook point or sample does not exist.
    """
    if not sources:
        raise InputError("no store to copy from")
    if isinstance(sources, str) or isinstance(sites, str):
        raise InputError("sources and sites must be lists of names, for example ['stores/mini_sd']")
    stores = [open_store(location) for location in sources]
    sites = list(sites or stores[0].site_names)
    for i, store in enumerate(stores):
        _check_alike(stores[0], store)
        if store.fingerprint in [other.fingerprint for other in stores[:i]]:
            raise InputError(f"store {store.location} has the same rows as a store before it; remove one")
        if unknown := [site for site in sites if site not in store.site_names]:
            raise InputError(f"store {store.location} has no {unknown[0]}; it has {', '.join(store.site_names)}")
    parts = _parts(stores, samples)
    copied = {
        site: [_open_source(store, site, part) for store, part in zip(stores, parts, strict=True)] for site in sites
    }
    _check_widths(copied)
    writer = StoreWriter(target, _plan(stores, copied, parts), _table(stores, parts))
    with writer.lock_shards(Worker()):
        for shard in writer.missing():
            start = shard * writer.plan.shard_samples
            numbers = range(start, min(start + writer.plan.shard_samples, writer.plan.samples))
            _copy_files(stores, parts, target, numbers)
            writer.write_shard(shard, {name: _rows(sources, numbers) for name, sources in copied.items()})
        writer.finish()
    return open_store(target)


def same_model(first: Manifest, other: Manifest) -> bool:
    """Return whether two stores have the same model. A model with a fingerprint may have been moved."""
    models = [dict(manifest.get("model") or {}) for manifest in (first, other)]
    if all("fingerprint" in model for model in models):
        models = [{name: value for name, value in model.items() if name not in _PLACES} for model in models]
    return models[0] == models[1]


class _Part(typing.NamedTuple):
    """The samples that are copied from a store: their numbers there [n], and the number of the first in the copy."""

    numbers: np.ndarray
    first: int


class _Source(typing.NamedTuple):
    """A hook point of a store: its copied samples, and the smallest and largest sample of each chunk [chunks]."""

    site: SiteReader
    part: _Part
    low: np.ndarray
    high: np.ndarray
    rows_of_sample: np.ndarray  # of the copied samples [n]
    skipped: np.ndarray  # numbers in the copy of samples that could not be read


def _open_source(store: Store, name: str, part: _Part) -> _Source:
    """Read the sample numbers of all rows of a hook point."""
    site = store.site(name)
    counts = np.zeros(store.manifest["samples"], np.int64)
    low, high = [], []
    for chunk in site.chunks:
        sample = site.read_index("sample", *chunk)
        counts += np.bincount(sample, minlength=len(counts))
        low.append(sample.min())
        high.append(sample.max())
    skipped = np.isin(part.numbers, store.manifest["sites"][name].get("skipped", []))
    return _Source(
        site, part, np.asarray(low), np.asarray(high), counts[part.numbers], part.first + np.flatnonzero(skipped)
    )


def _rows(sources: Sequence[_Source], samples: range) -> dict[str, np.ndarray]:
    """Return the rows of samples of the copy, as :meth:`StoreWriter.write_shard` takes them."""
    first = sources[0].site
    pieces: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int32)] for name in layout.INDEX_ARRAYS}
    pieces["activations"] = [np.empty((0, first.d), first.arrays["activations"].dtype.numpy_dtype)]
    for site, part, low, high, *_ in sources:
        start, stop = (min(max(number - part.first, 0), len(part.numbers)) for number in (samples.start, samples.stop))
        wanted = part.numbers[start:stop]
        if not len(wanted):
            continue
        for chunk in np.flatnonzero((high >= wanted[0]) & (low <= wanted[-1])):
            rows = site.chunks[chunk]
            index = {name: site.read_index(name, *rows) for name in layout.INDEX_ARRAYS}
            is_copied = np.isin(index["sample"], wanted)
            if not is_copied.any():
                continue
            values = np.empty((rows[1] - rows[0], site.d), pieces["activations"][0].dtype)
            site.read_into(rows[0], values)
            index["sample"] = (part.first + np.searchsorted(part.numbers, index["sample"])).astype(np.int32)
            for name, array in {"activations": values, **index}.items():
                pieces[name].append(array[is_copied])
    skipped = np.concatenate([source.skipped for source in sources])
    is_here = (skipped >= samples.start) & (skipped < samples.stop)
    return {name: np.concatenate(arrays) for name, arrays in pieces.items()} | {"skipped": skipped[is_here]}


def _check_alike(first: Store, store: Store) -> None:
    """Raise InputError if the rows of two stores do not belong together."""
    if not same_model(first.manifest, store.manifest):
        raise InputError(
            f"store {store.location} was extracted from {store.manifest.get('model')}, but {first.location} from "
            f"{first.manifest.get('model')}; all must have the same model"
        )

    def settings(manifest: Manifest) -> dict[str, typing.Any]:
        fields = {name: value for name, value in manifest.get("extract", {}).items() if name not in _FREE}
        return {"dtype": manifest["dtype"], "config.extract": fields}

    if fields := difference(settings(store.manifest), settings(first.manifest), other=f"{first.location} has"):
        raise InputError(f"store {store.location} has {fields}; all must have the same")


def _check_widths(sites: dict[str, list[_Source]]) -> None:
    """Raise InputError if the widths of the stores differ at a hook point."""
    for name, (first, *others) in sites.items():
        for other in others:
            if other.site.d != first.site.d:
                raise InputError(
                    f"store {other.site.location} has width {other.site.d} at {name}, but {first.site.location} has "
                    f"{first.site.d}; all must have the same"
                )


def _parts(stores: Sequence[Store], samples: Sequence[int] | None) -> list[_Part]:
    """Return the copied samples of each store. Raise InputError if a number is out of range or not in order."""
    ends = np.cumsum([0, *(store.manifest["samples"] for store in stores)])
    numbers = np.arange(ends[-1]) if samples is None else np.asarray(samples)
    if not len(numbers):
        raise InputError("samples is empty; it must hold at least one number")
    if numbers.dtype.kind not in "iu" or numbers[0] < 0 or numbers[-1] >= ends[-1] or (np.diff(numbers) <= 0).any():
        raise InputError(f"samples must be whole numbers from 0 to {ends[-1] - 1}, each larger than the one before")
    cuts = np.searchsorted(numbers, ends)
    return [
        _Part(numbers[start:stop] - end, int(start))
        for start, stop, end in zip(cuts[:-1], cuts[1:], ends[:-1], strict=True)
    ]


def _plan(stores: Sequence[Store], sites: dict[str, list[_Source]], parts: Sequence[_Part]) -> StorePlan:
    """Return the plan of the copy."""
    manifest, size = stores[0].manifest, stores[0].manifest["shard_samples"]
    samples = sum(len(part.numbers) for part in parts)
    identity = [[store.fingerprint, part.numbers.tolist()] for store, part in zip(stores, parts, strict=True)]
    inputs = {"copy": checksums.of_bytes(json.dumps(identity).encode())}
    # The images of a folder are found by their sample numbers.
    images = manifest.get("input", {}).get("images")
    if images and len(stores) == 1 and parts[0].numbers[-1] == samples - 1:
        inputs["images"] = images
    # In stores of earlier versions, the batch size is there; the writer does not count it as a setting.
    settings = {name: value for name, value in manifest.get("extract", {}).items() if name != "batch_size"}
    provenance: Provenance = {
        "model": manifest.get("model", {}),
        "extract": {**settings, "sites": list(sites)},
        "input": inputs,
    }
    plans: list[SitePlan] = []
    for name, sources in sites.items():
        rows = np.concatenate([source.rows_of_sample for source in sources])
        plans.append(SitePlan(name, sources[0].site.d, tuple(np.add.reduceat(rows, range(0, samples, size)).tolist())))
    notes = {**manifest.get("notes", {}), "copied_from": [store.fingerprint for store in stores]}
    return StorePlan(tuple(plans), manifest["dtype"], manifest["chunk_rows"], size, samples, provenance, notes=notes)


def _table(stores: Sequence[Store], parts: Sequence[_Part]) -> pyarrow.Table:
    """Return the samples of the copy; a column that a store lacks is null there."""
    tables = [store.table().take(part.numbers) for store, part in zip(stores, parts, strict=True)]
    try:
        table = pyarrow.concat_tables(tables, promote_options="default")
    except (pyarrow.ArrowException, TypeError) as error:
        raise InputError(f"the columns of samples.parquet differ: {error}") from error
    ids = pyarrow.array(range(table.num_rows), table.schema.field("id").type)
    return table.set_column(table.schema.get_field_index("id"), table.schema.field("id"), ids)


def _copy_files(stores: Sequence[Store], parts: Sequence[_Part], target: str, samples: range) -> None:
    """Copy saved images and latents of samples of the copy."""
    kvstore = layout.open_kvstore(target)
    for store, part in zip(stores, parts, strict=True):
        settings = store.manifest.get("extract", {})
        keys = [layout.image_key] * bool(settings.get("save_images"))
        keys += [layout.latents_key] * bool(settings.get("save_latents"))
        start, stop = (min(max(number - part.first, 0), len(part.numbers)) for number in (samples.start, samples.stop))
        for place in range(start, stop) if keys else ():
            for key in keys:
                saved = store.kvstore.read(key(int(part.numbers[place]))).result()
                if saved.state == "value":
                    kvstore.write(key(part.first + place), saved.value).result()
