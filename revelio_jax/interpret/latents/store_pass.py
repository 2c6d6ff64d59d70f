"""One pass over the rows of a store: read, encode, and accumulate statistics of each latent."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import dictionary, stream
from revelio_jax.interpret.latents.accumulator import LatentAccumulator
from revelio_jax.interpret.latents.dictionary import NEURONS, RANDOM, Dictionary
from revelio_jax.interpret.latents.layout import PositionMap, Strata
from revelio_jax.interpret.latents.neighbors import CoactivationRows
from revelio_jax.interpret.latents.stream import CodeBatch
from revelio_jax.store import SiteReader, Store


def open_inputs(config: Config) -> tuple[Store, SiteReader, Dictionary]:
    """Open the store, the hook point and the latents of ``config``. Raise InputError if they do not match."""
    run, sae = config.run, config.interpret.sae
    if not run:
        raise InputError("config.run is not set; set it to the folder of the run, for example runs/mini_sd")
    if pathlib.Path(run).exists() and not pathlib.Path(run).is_dir():
        raise InputError(f"config.run is {run!r}; it must be a folder")
    if sae == NEURONS:
        store, site = stream.open_site(config)
        return store, site, dictionary.neurons(site)
    latents = dictionary.load(str(pathlib.Path(run, "export")) if sae in (None, RANDOM) else sae)
    store, site = stream.open_site(config)
    dictionary.check(latents, store, site)
    if sae == RANDOM:
        return store, site, dictionary.random(latents, site)
    return store, site, latents


def accumulate(
    config: Config,
    store: Store,
    site: SiteReader,
    latents: Dictionary,
    strata: Strata,
    position_map: PositionMap,
    embedding_NE: np.ndarray | None = None,
) -> tuple[LatentAccumulator, CoactivationRows]:
    """Read and encode all rows. Return the statistics of each latent and the rows for co-activation.

    ``embedding_NE`` are the embeddings of all samples, for the monosemanticity score.
    """
    options = config.interpret
    scale = latents.gain * float(np.sqrt(site.variance.sum()))
    draws = random_samples(store, site, options.random_samples)
    accumulator = LatentAccumulator(
        latents.n_latents, options.top, options.weaker, scale, position_map, strata, draws, embedding_NE
    )
    coactivation = CoactivationRows(options.coactivation_rows if options.neighbors else 0, site.rows)
    with tqdm(total=site.rows, desc="interpret", unit="row", unit_scale=True, dynamic_ncols=True) as bar:
        for batch in stream.whole_samples(encoded_rows(config, site, latents)):
            accumulator.add(batch)
            coactivation.add(batch)
            bar.update(len(batch.sample_N))
    return accumulator, coactivation


def encoded_rows(config: Config, site: SiteReader, latents: Dictionary) -> Iterator[CodeBatch]:
    """Yield the codes of all rows in order. The device encodes the next batch while the caller uses the current one."""
    batch_size = config.interpret.batch_size
    encode = dictionary.make_encode(latents, stream.largest_batch(site, batch_size), config.sae.encode_chunk)
    previous = None
    with contextlib.closing(stream.batches(site, batch_size)) as batches:
        for batch in batches:
            current = batch, encode(batch.x_ND)
            if previous:
                yield stream.compact(previous[0], *previous[1]())
            previous = current
        if previous:
            yield stream.compact(previous[0], *previous[1]())


def random_samples(store: Store, site: SiteReader, count: int) -> np.ndarray:
    """Return up to ``count`` random sample numbers, ascending, drawn uniformly from the samples that have rows."""
    skipped = store.manifest["sites"][site.name].get("skipped", [])
    with_rows = np.setdiff1d(np.arange(store.manifest["samples"]), skipped)
    return np.sort(np.random.default_rng(0).choice(with_rows, min(count, len(with_rows)), replace=False))
