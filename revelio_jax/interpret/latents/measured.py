"""Measure each latent of the results beyond its purity, and take means over latents.

    monosemanticity    how similar its samples are to an independent model; with config.interpret.embedder
    moran              Moran's I of its maps; for positions that form a map
    localization       share of the activation in the top cells of its maps; for positions that form a map
    inside             share of the activation inside the mask of its object; with config.interpret.masks

As purity, the measures are taken of latents that fire on more than ten samples. Those of maps are means over the maps
of the ten strongest samples. See :mod:`revelio_jax.interpret.measures` for the equations.
"""

import typing

import numpy as np
import pyarrow

from revelio_jax.interpret.latents import purity
from revelio_jax.interpret.latents.accumulator import LatentAccumulator
from revelio_jax.interpret.latents.layout import PositionMap
from revelio_jax.interpret.latents.masks import MaskReader
from revelio_jax.interpret.latents.summary import MeasureMean
from revelio_jax.interpret.measures import autocorrelation, localization

BLOCK = 1024  # latents whose maps are measured together


class Measured(typing.NamedTuple):
    """A measure of each latent, float64 [F], NaN if it cannot be measured, and its value by chance."""

    values: np.ndarray
    chance: float | None


def measure(
    accumulator: LatentAccumulator,
    profile_FMC: np.ndarray,
    sample_FM: np.ndarray,
    position_map: PositionMap,
    masks: MaskReader | None,
) -> dict[str, Measured]:
    """Return the measures by name. ``profile_FMC`` and ``sample_FM`` are the maps and numbers of the top samples."""
    strongest = min(purity.STRONGEST, profile_FMC.shape[1])
    enough_F = accumulator.samples > strongest
    measures = {}
    if accumulator.similarity:
        scores_F = np.where(enough_F, accumulator.similarity.scores(), np.nan)
        measures["monosemanticity"] = Measured(scores_F, accumulator.similarity.chance())
    if position_map.grid:
        maps_FMC, samples = profile_FMC[:, :strongest], np.where(enough_F[:, None], sample_FM[:, :strongest], -1)
        measures |= _of_maps(maps_FMC, samples, position_map.shape, masks)
    return measures


def _of_maps(
    map_FMC: np.ndarray, sample_FM: np.ndarray, shape: tuple[int, int], masks: MaskReader | None
) -> dict[str, Measured]:
    """Return means over maps; ``sample_FM`` is -1 for maps that are left out."""
    cells = shape[0] * shape[1]
    chance = {"moran": autocorrelation.expected(cells), "localization": localization.expected(cells)}
    mask_of: dict[int, np.ndarray] = {}
    if masks:
        read = {int(number): masks(int(number)) for number in np.unique(sample_FM[sample_FM >= 0])}
        mask_of = {number: mask.reshape(-1) for number, mask in read.items() if mask is not None}
        chance["inside"] = float(np.mean([mask.mean() for mask in mask_of.values()])) if mask_of else None
    values = {name: np.full(len(map_FMC), np.nan) for name in chance}
    without = np.full(cells, np.nan)
    for start in range(0, len(map_FMC), BLOCK):
        part = slice(start, start + BLOCK)
        used = sample_FM[part] >= 0
        maps_NC, latent_N = map_FMC[part][used], np.nonzero(used)[0]
        of_maps = {
            "moran": autocorrelation.morans_i(maps_NC.reshape(-1, *shape)),
            "localization": localization.share_in_top(maps_NC),
        }
        if masks:
            masks_NC = np.array([mask_of.get(int(number), without) for number in sample_FM[part][used]])
            of_maps["inside"] = localization.share_inside(maps_NC, masks_NC.reshape(len(maps_NC), cells))
        for name, value_N in of_maps.items():
            values[name][part] = _means(value_N, latent_N, len(used))
    return {name: Measured(values[name], chance[name]) for name in values}


def _means(value_N: np.ndarray, latent_N: np.ndarray, latents: int) -> np.ndarray:
    """Return the mean of the finite values of each latent, NaN without any."""
    known_N = np.isfinite(value_N)
    count_F = np.bincount(latent_N[known_N], minlength=latents)
    sum_F = np.bincount(latent_N[known_N], value_N[known_N], latents)
    return np.where(count_F > 0, sum_F, np.nan) / np.maximum(count_F, 1)


def with_columns(table: pyarrow.Table, measures: dict[str, Measured]) -> pyarrow.Table:
    """Return the table of latents with a float32 column per measure, null without a value."""
    for name, measured in measures.items():
        table = table.append_column(name, pyarrow.array(measured.values.astype(np.float32), from_pandas=True))
    return table


def means(measures: dict[str, Measured]) -> dict[str, MeasureMean]:
    """Return the mean of each measure over latents with its interval, and its value by chance."""
    return {
        name: {"measured": purity.interval(measured.values), "chance": measured.chance}
        for name, measured in measures.items()
    }
