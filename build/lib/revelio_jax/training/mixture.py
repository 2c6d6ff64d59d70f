"""What a run is trained on: one store, or several mixed with weights.

An entry of ``config.data.stores`` is a location, or a weight before it: ``2:stores/flux_a``,
``1/3:gs://bucket/flux_b``. Without one the weight is 1. A location may be a pattern of local folders,
``stores/flux_*``. The stores of one entry are read as if they were one, row for row; the entries are
mixed so that each gives its weight's share of the rows of every batch, however many rows it has.
"""

import dataclasses
import fractions
import functools
import glob
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorstore as ts

from revelio_jax.errors import InputError
from revelio_jax.store import SiteReader, Store, open_store


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureSource:
    """The stores of one entry, their sites, and the share of the rows that they give together."""

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
    """All sources of a run. Their sites share one name, width ``d`` and model."""

    name: str
    d: int
    sources: tuple[MixtureSource, ...]

    @functools.cached_property
    def sites(self) -> tuple[SiteReader, ...]:
        """The sites of all stores, in order; the number of a chunk's site counts in it."""
        return tuple(site for source in self.sources for site in source.sites)

    @functools.cached_property
    def stores(self) -> tuple[Store, ...]:
        return tuple(store for source in self.sources for store in source.stores)

    @functools.cached_property
    def shares(self) -> tuple[fractions.Fraction, ...]:
        """The share of the rows that each site gives."""
        return tuple(
            source.share * fractions.Fraction(site.rows, max(source.rows, 1))
            for source in self.sources
            for site in source.sites
        )

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The dtype of the stores; float32 where they have several."""
        dtypes = {site.dtype for site in self.sites}
        return ts.dtype(dtypes.pop() if len(dtypes) == 1 else "float32").numpy_dtype

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """[d] float64, of rows as they are mixed."""
        return sum(float(share) * site.mean for share, site in zip(self.shares, self.sites, strict=True))

    @functools.cached_property
    def variance(self) -> np.ndarray:
        """[d] float64, of rows as they are mixed: within the stores and between them."""
        return sum(
            float(share) * (site.variance + np.square(site.mean - self.mean))
            for share, site in zip(self.shares, self.sites, strict=True)
        )

    @property
    def fingerprint(self) -> str:
        """Identifies the data: that of the one store, or shares and fingerprints of all."""
        if len(self.stores) == 1:
            return self.stores[0].fingerprint
        return "; ".join(
            f"{source.share} of {' '.join(store.fingerprint for store in source.stores)}" for source in self.sources
        )


def open_mixture(entries: Sequence[str], site: str = "") -> Mixture:
    """Open every store that ``entries`` name; ``site`` is a site of all, or empty for the first's first.

    Raises InputError where an entry is wrong or names no store, where a store comes twice, and where
    one has another site, width or model than the first.
    """
    weights, sources, seen = [_weight(entry) for entry in entries], [], set()
    first: tuple[Store, SiteReader] | None = None
    for weight, location in weights:
        stores, sites = tuple(open_store(folder) for folder in _folders(location)), []
        for store in stores:
            if store.kvstore.url in seen:
                raise InputError(f"config.data.stores names {store.location} twice; once is allowed")
            seen.add(store.kvstore.url)
            first = first or (store, store.site(site))
            sites.append(_same(*first, store))
        share = weight / sum(weight for weight, _ in weights)
        sources.append(MixtureSource(location, share, stores, tuple(sites)))
    return Mixture(first[1].name, first[1].d, tuple(sources))


def _same(first: Store, first_site: SiteReader, store: Store) -> SiteReader:
    """The site of ``store`` that is the first store's too."""
    if first_site.name not in store.site_names:
        raise InputError(
            f"config.data.stores: {store.location} has no site {first_site.name}, as {first.location} has; "
            f"it has {', '.join(store.site_names)}"
        )
    site = store.site(first_site.name)
    if site.d != first_site.d:
        raise InputError(
            f"config.data.stores: {site.name} of {store.location} has width {site.d}, "
            f"but {first_site.d} in {first.location}; all must have the same"
        )
    model, wanted = store.manifest.get("model"), first.manifest.get("model")
    if model != wanted:
        raise InputError(
            f"config.data.stores: {store.location} is of the model {model}, "
            f"but {first.location} of {wanted}; all must be of the same"
        )
    return site


def _weight(entry: str) -> tuple[fractions.Fraction, str]:
    """Weight and location of an entry. What stands before a colon is a weight, unless ``//`` follows."""
    number, colon, location = entry.partition(":")
    if not colon or location.startswith("//"):
        return fractions.Fraction(1), entry
    try:
        weight = fractions.Fraction(number)
    except (ValueError, ZeroDivisionError):
        weight = fractions.Fraction(0)
    if weight <= 0:
        raise InputError(
            f"config.data.stores has {entry!r}; before the colon must be a weight above 0, as 0.5 or 1/3 "
            "(give one where a location has a colon of its own: 1:odd:name)"
        )
    return weight, location


def _folders(location: str) -> list[str]:
    """The location, or the folders that fit it, in order of their names."""
    if "://" in location or not set("*?[") & set(location) or pathlib.Path(location).exists():
        return [location]
    folders = sorted(path for path in glob.glob(location) if pathlib.Path(path).is_dir())
    if not folders:
        raise InputError(f"config.data.stores has the pattern {location!r}, which fits no folder")
    return folders
