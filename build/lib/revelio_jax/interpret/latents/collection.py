"""What is kept of every latent while the rows stream by: bounded, exact, the same for any batch size.

All of it is a pure function of the store: sums are of whole samples in their order, equals are ranked by a
hash of the sample, and what is drawn is drawn by one. numpy and scipy's sparse matrices on the host, while
the device computes the next batch.

With b bins, t places for each of the lists of the strongest (see strongest.py), c cells, s strata and n
drawn samples there are of each latent

    28 b + 28 + t (18 + c) + 40 s + n bytes, and where s > 1 another s (16 + 16 t).

With the defaults, 256 cells and five timesteps that is 11 KB, and for 65,536 latents 0.7 GiB, whatever the
number of rows. A part takes about 100 bytes for each of its entries, that is rows x latents that fire on one.
"""

import math
import typing

import numpy as np
import scipy.sparse

from revelio_jax.interpret.latents.layout import Cells, Strata
from revelio_jax.interpret.latents.stream import CodeBatch
from revelio_jax.interpret.latents.top_samples import Ranked, Strongest, mixed

OCTAVES, BINS_PER_OCTAVE = 16, 4  # of the histogram
BINS = OCTAVES * BINS_PER_OCTAVE
ABOVE = 3  # octaves above the typical length of a row, times the encoder's gain, where the histogram ends
BLOCK = 8192  # samples whose profiles are made together
WHOLE = 1 << 32  # shares of positions are added up as whole numbers, whose order does not matter


def histogram(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the edges [BINS + 1], and the bin of a value by the upper half of its bits, uint8 [2^15].

    Edges are the numbers with 8 significant bits next above each quarter of an octave, so that the bin of a
    float32 > 0 follows from its upper half, without a logarithm. What is outside is in the outermost bins.
    """
    top = np.ceil(np.log2(max(scale, 1e-30))) + ABOVE
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.arange(1 << 15, dtype=np.uint32) << 16
        at = np.floor((np.log2(bits.view(np.float32).astype(np.float64)) - (top - OCTAVES)) * BINS_PER_OCTAVE)
    at[np.isnan(at)] = np.inf  # no numbers
    edges = bits[np.searchsorted(at, np.arange(BINS + 1))].view(np.float32)
    return np.log2(edges.astype(np.float64)), np.clip(at, 0, BINS - 1).astype(np.uint8)


class _Entries(typing.NamedTuple):
    """What fires in a part, by latent and then by row, and how many entries each latent has."""

    latent: np.ndarray
    row: np.ndarray
    value: np.ndarray
    count_F: np.ndarray


class _Runs(typing.NamedTuple):
    """Entries of one latent and one sample, or one latent and one map of a sample, as runs.

    ``start`` and ``length`` among the entries; ``latent``; ``of``, the sample's or map's number in the part;
    ``peak``, the largest value.
    """

    start: np.ndarray
    length: np.ndarray
    latent: np.ndarray
    of: np.ndarray
    peak: np.ndarray


class Collection:
    """What is kept of ``latents`` latents; :meth:`add` takes whole samples, in order.

    ``scale`` is the typical size of values. A profile has the largest value in each of the ``cells``.
    ``drawn`` are numbers of samples, rising, of which it is kept which latents fire on them.
    """

    def __init__(
        self,
        latents: int,
        top: int,
        weaker: int,
        scale: float,
        cells: Cells,
        strata: Strata,
        drawn: np.ndarray,
    ):
        self.latents, self.weaker, self.strata, self.drawn = latents, weaker, strata, drawn
        self.edges, self._bins = histogram(scale)
        self._cell_P, self._cells = cells.of_position, math.prod(cells.shape)
        self.rows = self.seen = 0  # rows, and samples, in all
        self.histogram = np.zeros((latents, BINS), np.int64)
        self.samples = np.zeros(latents, np.int64)
        self.rows_of = np.zeros((latents, strata.kept), np.int64)
        self.samples_of = np.zeros((latents, strata.kept), np.int64)
        self.maps_of = np.zeros((latents, strata.kept), np.int64)
        self.sum_of = np.zeros((latents, strata.kept))
        self.spread_of = np.zeros((latents, strata.kept), np.int64)  # over maps, in parts of 1 / WHOLE
        self.top = Strongest(latents, top, self._cells)
        self.of_stratum = Strongest(latents * strata.kept if strata.names else 0, top)
        # Of each latent and bin the sample whose peak is in the bin that has the smallest hash.
        self._hash_F = mixed(np.arange(latents, dtype=np.uint32))
        bins = (latents, BINS if weaker else 0)
        self.weak_key = np.full(bins, 2**64 - 1, np.uint64)  # hash << 32 | sample
        self.weak_value = np.zeros(bins, np.float32)
        self.weak_position = np.full(bins, -1, np.int32)
        self.weak_timestep = np.full(bins, -1, np.int32)
        self.fires = np.zeros((latents, len(drawn)), bool)

    @property
    def nbytes(self) -> int:
        own = sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))
        return own + self.top.nbytes + self.of_stratum.nbytes

    def add(self, part: CodeBatch) -> None:
        """Take in a part; its samples come after those of the parts before."""
        new_sample_N = np.diff(part.sample_N, prepend=-1) != 0
        new_map_N = new_sample_N | (np.diff(part.timestep_N, prepend=part.timestep_N[0]) != 0)
        first_of_sample, first_of_map = np.flatnonzero(new_sample_N), np.flatnonzero(new_map_N)
        self.rows += len(part.sample_N)
        self.seen += len(first_of_sample)
        if not len(part.latent_E):
            return
        map_of_N = np.cumsum(new_map_N, dtype=np.int32) - 1
        entries = _by_latent(part, self.latents)
        maps = samples = _runs(entries, map_of_N)
        if len(first_of_map) > len(first_of_sample):
            samples = _runs(entries, np.cumsum(new_sample_N, dtype=np.int32) - 1)
        numbers = part.sample_N[first_of_sample]

        flat = entries.latent * BINS
        flat += self.bins(entries.value)
        np.add.at(self.histogram.reshape(-1), flat, 1)
        self.samples += np.bincount(samples.latent, minlength=self.latents)
        self._add_strata(part, entries, maps, samples, first_of_map, first_of_sample)
        self._add_strongest(part, entries, samples, numbers, map_of_N)
        if self.weaker:
            self._draw(part, entries, samples, numbers)
        is_drawn = np.isin(numbers, self.drawn)
        if is_drawn.any():
            on = np.flatnonzero(is_drawn[samples.of])
            self.fires[samples.latent[on], np.searchsorted(self.drawn, numbers)[samples.of[on]]] = True

    def bins(self, value_N: np.ndarray) -> np.ndarray:
        """The bin of every value above 0, uint8."""
        return np.take(self._bins, np.ascontiguousarray(value_N).view(np.uint16)[1::2])

    def ranked(self) -> tuple[Ranked, Ranked, np.ndarray]:
        """The strongest of every latent, of every latent and stratum kept, and the profiles of the former."""
        return self.top.ranked(), self.of_stratum.ranked(), self.top.profiles()

    def _add_strata(
        self,
        part: CodeBatch,
        entries: _Entries,
        maps: _Runs,
        samples: _Runs,
        first_of_map: np.ndarray,
        first_of_sample: np.ndarray,
    ) -> None:
        """Counts, sums and the strongest by stratum; a map has one stratum, a sample may have several."""
        shape = self.rows_of.shape
        stratum_of_map = self._stratum(part.sample_N[first_of_map], part.timestep_N[first_of_map])
        of_maps = self._lists(maps, stratum_of_map)
        value_E = entries.value.astype(np.float64)
        if shape[1] == 1:
            rows = entries.count_F[:, None]
            np.add.at(self.sum_of.reshape(-1), entries.latent, value_E)
        else:
            rows = np.bincount(of_maps, maps.length, self.rows_of.size).astype(np.int64).reshape(shape)
            np.add.at(self.sum_of.reshape(-1), of_maps, np.add.reduceat(value_E, maps.start))
        self.rows_of += rows
        self.maps_of += np.bincount(of_maps, minlength=self.maps_of.size).reshape(shape)
        share_of_map = WHOLE // np.diff(first_of_map, append=len(part.sample_N))  # of one position
        if (share_of_map == share_of_map[0]).all():
            self.spread_of += rows * share_of_map[0]
        else:
            np.add.at(self.spread_of.reshape(-1), of_maps, maps.length * share_of_map[maps.of])

        of_strata, lists = maps, of_maps
        if self.strata.timesteps is None and samples is not maps:
            stratum_of_sample = self._stratum(part.sample_N[first_of_sample], part.timestep_N[first_of_sample])
            of_strata, lists = samples, self._lists(samples, stratum_of_sample)
        self.samples_of += np.bincount(lists, minlength=self.samples_of.size).reshape(shape)
        if self.strata.names:
            wanted = self.of_stratum.wanted(lists, of_strata.peak)
            wanted = wanted[np.argsort(lists[wanted], kind="stable")]
            row = _row_of_peak(entries, of_strata, wanted)[0]
            self.of_stratum.add(
                lists[wanted],
                of_strata.peak[wanted],
                part.sample_N[row],
                part.position_N[row],
                part.timestep_N[row],
            )

    def _stratum(self, sample: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        """Numbers of strata; of samples without one the number after the last."""
        if self.strata.timesteps is not None:
            return np.searchsorted(self.strata.timesteps, timestep)
        if self.strata.of_sample is not None:
            of = self.strata.of_sample[sample]
            return np.where(of < 0, len(self.strata.names), of)
        return np.zeros(len(sample), np.int64)

    def _lists(self, runs: _Runs, stratum: np.ndarray) -> np.ndarray:
        """The latent and stratum of every run as one number."""
        if self.strata.kept == 1:
            return runs.latent
        return runs.latent * self.strata.kept + np.take(stratum, runs.of)

    def _add_strongest(
        self, part: CodeBatch, entries: _Entries, samples: _Runs, numbers: np.ndarray, map_of_N: np.ndarray
    ) -> None:
        """Offer the peaks to the lists of the strongest, with the profile of the map that each is in."""
        wanted = self.top.wanted(samples.latent, samples.peak)
        for some in np.split(wanted, range(BLOCK, len(wanted), BLOCK)):
            some = some[self.top.wanted(samples.latent[some], samples.peak[some])]
            row, at, run = _row_of_peak(entries, samples, some)
            same_map = map_of_N[entries.row[at]] == map_of_N[row][run]
            at, run = at[same_map], run[same_map]
            peak = samples.peak[some]
            profile = np.zeros((len(some), self._cells), np.uint8)
            cell = self._cell_P[np.maximum(part.position_N[entries.row[at]], 0)]
            shade = np.ceil(255 * (entries.value[at] / peak[run])).astype(np.uint8)
            np.maximum.at(profile.reshape(-1), run * self._cells + cell, shade)
            self.top.add(
                samples.latent[some],
                peak,
                numbers[samples.of[some]],
                part.position_N[row],
                part.timestep_N[row],
                profile,
            )

    def _draw(self, part: CodeBatch, entries: _Entries, samples: _Runs, numbers: np.ndarray) -> None:
        """Keep of each latent and bin the sample with the smallest hash: a uniform draw, always the same."""
        hash_N = np.take(self._hash_F, samples.latent)
        hash_N ^= np.take(mixed(~numbers.astype(np.uint32)), samples.of)
        hash_N *= np.uint32(0x9E3779B1)
        flat = samples.latent * BINS
        flat += self.bins(samples.peak)
        smallest = self.weak_key.reshape(-1)
        better = np.flatnonzero(hash_N <= smallest.view(np.uint32)[1::2][flat])  # the upper halves
        key, flat = hash_N[better].astype(np.uint64) << np.uint64(32), flat[better]
        key |= numbers[samples.of[better]].astype(np.uint64)
        np.minimum.at(smallest, flat, key)
        won = key == smallest[flat]
        better, flat = better[won], flat[won]
        row = _row_of_peak(entries, samples, better)[0]
        self.weak_value.reshape(-1)[flat] = samples.peak[better]
        self.weak_position.reshape(-1)[flat] = part.position_N[row]
        self.weak_timestep.reshape(-1)[flat] = part.timestep_N[row]


def _by_latent(part: CodeBatch, latents: int) -> _Entries:
    """The entries of a part by latent and row; by counting, since they come by row."""
    rows = len(part.fires_N)
    row_starts = np.concatenate([[0], np.cumsum(part.fires_N)]).astype(np.int32)
    by_row = scipy.sparse.csr_array((part.value_E, part.latent_E, row_starts), (rows, latents))
    by_latent = by_row.tocsc()
    count_F = np.diff(by_latent.indptr)
    return _Entries(np.repeat(np.arange(latents), count_F), by_latent.indices, by_latent.data, count_F)


def _runs(entries: _Entries, group_of_N: np.ndarray) -> _Runs:
    group = np.take(group_of_N, entries.row)
    new = np.empty(len(group), bool)
    np.not_equal(group[1:], group[:-1], out=new[1:])
    new[(np.cumsum(entries.count_F) - entries.count_F)[entries.count_F > 0]] = True
    start = np.flatnonzero(new)
    length = np.empty_like(start)
    np.subtract(start[1:], start[:-1], out=length[:-1])
    length[-1] = len(group) - start[-1]
    peak = np.maximum.reduceat(entries.value, start)
    return _Runs(start, length, np.take(entries.latent, start), np.take(group, start), peak)


def _row_of_peak(entries: _Entries, runs: _Runs, some: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some runs the row of the peak, the first of equals; all their entries, and the run of each."""
    length = runs.length[some]
    run = np.repeat(np.arange(len(some)), length)
    at = np.arange(len(run)) + np.repeat(runs.start[some] - (np.cumsum(length) - length), length)
    peaks = np.flatnonzero(entries.value[at] == runs.peak[some][run])
    first = np.flatnonzero(np.diff(run[peaks], prepend=-1))
    return entries.row[at[peaks[first]]], at, run
