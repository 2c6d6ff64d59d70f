"""The stores of a run: one store, or a weighted mixture.

An entry of ``config.data.stores`` is a location with an optional weight in front: ``2:stores/flux_a``,
``1/3:gs://bucket/flux_b``. The default weight is 1. A location may be a pattern of local folders,
``stores/flux_*``. The stores of one entry are read as one. Each entry contributes its share of the weights to
the rows of every batch, regardless of its size.
"""

import dataclasses
import fractions
import functools
import glob
import pathlib
import typing
from collections.abc import Sequence

import numpy as np
import tensorstore as ts

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.sae_folder.cfg import Activations, TrainedStore
from revelio_jax.store import ModelRecord, SiteReader, Store, object_storage, open_store
from revelio_jax.store.selection import same_model

if typing.TYPE_CHECKING:
    from revelio_jax.training.loader import Order


class RowsRecord(typing.TypedDict):
    """The rows of a run, as its checkpoints record them: an export needs the record instead of the stores."""

    fingerprint: str
    site: str
    d: int
    model: ModelRecord
    value: str
    positions: list[str | None]  # of each store
    activations: Activations
    stores: list[TrainedStore]


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureSource:
    """The stores of one entry, their sites, and their joint share of the rows of a batch."""

    location: str
    share: fractions.Fraction
    stores: tuple[Store, ...]
    sites: tuple[SiteReader, ...]

    @functools.cached_property
    def rows(self) -> int:
        return sum(site.rows for site in self.sites)

    @property
    def samples(self) -> int:
        return sum(store.manifest["samples"] for store in self.stores)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """All sources of a run. Their sites have the same name, width ``d`` and model."""

    name: str
    d: int
    sources: tuple[MixtureSource, ...]

    @functools.cached_property
    def sites(self) -> tuple[SiteReader, ...]:
        """The sites of all stores, in order; ``Chunk.site`` is an index into it."""
        return tuple(site for source in self.sources for site in source.sites)

    @functools.cached_property
    def stores(self) -> tuple[Store, ...]:
        return tuple(store for source in self.sources for store in source.stores)

    @functools.cached_property
    def shares(self) -> tuple[fractions.Fraction, ...]:
        """The share of each site in the rows of a batch."""
        return tuple(
            source.share * fractions.Fraction(site.rows, max(source.rows, 1))
            for source in self.sources
            for site in source.sites
        )

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The dtype of the stores; float32 if they differ."""
        dtypes = {site.dtype for site in self.sites}
        return ts.dtype(dtypes.pop() if len(dtypes) == 1 else "float32").numpy_dtype

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """The mean of the mixed rows: [d] float64."""
        means = [float(share) * site.mean for share, site in zip(self.shares, self.sites, strict=True)]
        return sum(means, np.zeros(self.d))

    @functools.cached_property
    def variance(self) -> np.ndarray:
        """The variance of the mixed rows, within and between stores: [d] float64."""
        variances = [
            float(share) * (site.variance + np.square(site.mean - self.mean))
            for share, site in zip(self.shares, self.sites, strict=True)
        ]
        return sum(variances, np.zeros(self.d))

    @property
    def fingerprint(self) -> str:
        """The identity of the data: the fingerprint of one store, or all shares and fingerprints."""
        if len(self.stores) == 1:
            return self.stores[0].fingerprint
        return "; ".join(
            f"{source.share} of {' '.join(store.fingerprint for store in source.stores)}" for source in self.sources
        )

    def prepare(self, order: "Order", config: Config, step: int, dispatch_steps: int) -> None:
        """Prepare to read the rows from ``step`` on. A live run starts to extract them; stores have all rows.

        Raise InputError if dispatches of ``dispatch_steps`` steps need too many rows at once.
        """

    def release(self, order: "Order", config: Config, step: int) -> None:
        """Give up the rows of the steps before ``step``. A live run deletes them."""

    def start_reading(self) -> None:
        """Let reads of a live run wait until their rows are extracted."""

    def stop_reading(self) -> None:
        """Let reads of a live run that wait raise an exception, now and until :meth:`start_reading`."""

    def close(self) -> None:
        """End the extraction of a live run."""

    def record(self) -> RowsRecord:
        """Return the description of the rows that checkpoints hold."""
        manifests = [store.manifest for store in self.stores]
        return {
            "fingerprint": self.fingerprint,
            "site": self.name,
            "d": self.d,
            "model": manifests[0].get("model", ModelRecord()),  # the same in all stores
            # At hook points of a denoiser, rows may be a block's output minus its input.
            "value": manifests[0].get("extract", {}).get("value", "output"),
            "positions": [manifest.get("extract", {}).get("positions") for manifest in manifests],
            "activations": {
                "count": self.rows,
                "mean_norm": float(np.linalg.norm(self.mean)),
                "squared_deviation": float(self.variance.sum()),
            },
            "stores": [
                {"fingerprint": store.fingerprint, "share": float(share)}
                for store, share in zip(self.stores, self.shares, strict=True)
            ],
        }


def open_mixture(entries: Sequence[str], site: str | None = None) -> Mixture:
    """Open the stores of all ``entries``. ``site`` is the site to read, by default the first one of the first store.

    Raise InputError if an entry is malformed or matches no store, if a store is named twice, or if stores
    differ in site, width or model.
    """
    weights = [_weight(entry) for entry in entries]
    sources: list[MixtureSource] = []
    seen: set[str] = set()
    first: tuple[Store, SiteReader] | None = None
    for weight, location in weights:
        stores = tuple(open_store(folder) for folder in _folders(location))
        sites: list[SiteReader] = []
        for store in stores:
            if object_storage.url_of(store.kvstore) in seen:
                raise InputError(f"config.data.stores contains {store.location} twice; remove one")
            seen.add(object_storage.url_of(store.kvstore))
            first = first or (store, store.site(site))
            sites.append(first[1] if store is first[0] else _matching_site(*first, store))
        share = weight / sum(weight for weight, _ in weights)
        sources.append(MixtureSource(location, share, stores, tuple(sites)))
    site_name, d = sources[0].sites[0].name, sources[0].sites[0].d
    return Mixture(site_name, d, tuple(sources))


def _matching_site(first: Store, first_site: SiteReader, store: Store) -> SiteReader:
    """Return the site of ``store`` that matches ``first_site``. Raise InputError if none does."""
    if first_site.name not in store.site_names:
        raise InputError(
            f"config.data.stores: {store.location} has no site {first_site.name}, which {first.location} has; "
            f"it has {', '.join(store.site_names)}"
        )
    site = store.site(first_site.name)
    if site.d != first_site.d:
        raise InputError(
            f"config.data.stores: {site.name} of {store.location} has width {site.d}, "
            f"but {first_site.d} in {first.location}; all must have the same width"
        )
    if not same_model(first.manifest, store.manifest):
        raise InputError(
            f"config.data.stores: {store.location} was extracted from {store.manifest.get('model')}, "
            f"but {first.location} from {first.manifest.get('model')}; all must have the same model"
        )
    for field in ("value", "pool"):  # otherwise rows of one site would have two meanings
        value, first_value = (each.manifest.get("extract", {}).get(field) for each in (store, first))
        if value != first_value:
            raise InputError(
                f"config.data.stores: {store.location} was extracted with config.extract.{field}={value}, "
                f"but {first.location} with {first_value}; all must have the same"
            )
    return site


def _weight(entry: str) -> tuple[fractions.Fraction, str]:
    """Return the weight and the location of an entry. Text before a colon is a weight, unless ``//`` follows."""
    number, colon, location = entry.partition(":")
    if not colon or location.startswith("//"):
        return fractions.Fraction(1), entry
    try:
        weight = fractions.Fraction(number)
    except (ValueError, ZeroDivisionError):
        weight = fractions.Fraction(0)
    if weight <= 0:
        raise InputError(
            f"config.data.stores has {entry!r}; the text before the colon must be a weight above 0, for example 0.5 or "
            "1/3 (a location that contains a colon needs a weight: 1:odd:name)"
        )
    return weight, location


def _folders(location: str) -> list[str]:
    """Return the location, or the folders that match its pattern, sorted by name."""
    if "://" in location or not set("*?[") & set(location) or pathlib.Path(location).exists():
        return [location]
    folders = sorted(path for path in glob.glob(location) if pathlib.Path(path).is_dir())
    if not folders:
        raise InputError(f"config.data.stores has the pattern {location!r}, which matches no folder")
    return folders
