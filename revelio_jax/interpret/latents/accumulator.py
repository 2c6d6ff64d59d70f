"""Accumulate statistics of each latent over all rows, in bounded memory.

The result is exact and independent of the batch size: sums run over whole samples in their order, and a hash of the
sample number decides ties and random draws. The host computes in numpy and scipy.sparse while the device encodes the
next batch.

With b bins, t places per list of top samples (see top_samples.py), c cells, s strata and n random samples, each
latent takes

    28 b + 28 + t (18 + c) + 40 s + n bytes, and with s > 1 another s (16 + 16 t).

With embeddings of width e, a latent takes another 8 e + 40 bytes.

With the defaults, 256 cells and five timesteps, a latent takes 11 KB, and 65,536 latents take 0.7 GiB. A batch
takes about 100 bytes for each entry, that is, for each pair of a row and a latent that fires on it.
"""

import math
import typing

import numpy as np
import scipy.sparse

from revelio_jax.interpret.latents.layout import PositionMap, Strata
from revelio_jax.interpret.latents.stream import CodeBatch
from revelio_jax.interpret.latents.top_samples import RankedSamples, TopSamples, mix
from revelio_jax.interpret.measures.monosemanticity import SimilaritySums

OCTAVES, BINS_PER_OCTAVE = 16, 4  # of the histogram
BINS = OCTAVES * BINS_PER_OCTAVE
OCTAVES_ABOVE_SCALE = 3  # the histogram ends this many octaves above the scale of the values
BLOCK = 8192  # samples whose profiles are computed together
WHOLE = 1 << 32  # shares of positions are summed as integers, so that the order of the sum does not matter


def histogram(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return log2 of the bin edges [BINS + 1], and the bin for each upper half of a value's bits, uint8 [2^15].

    Edges are a quarter of an octave apart, rounded up to 8 significant bits. The bin of a float32 > 0 therefore follows
    from its upper half, without a logarithm. Values outside of the edges are counted in the outermost bins.
    """
    top = np.ceil(np.log2(max(scale, 1e-30))) + OCTAVES_ABOVE_SCALE
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.arange(1 << 15, dtype=np.uint32) << 16
        bin_of_bits = np.floor((np.log2(bits.view(np.float32).astype(np.float64)) - (top - OCTAVES)) * BINS_PER_OCTAVE)
    bin_of_bits[np.isnan(bin_of_bits)] = np.inf  # the bits of NaN
    edges = bits[np.searchsorted(bin_of_bits, np.arange(BINS + 1))].view(np.float32)
    return np.log2(edges.astype(np.float64)), np.clip(bin_of_bits, 0, BINS - 1).astype(np.uint8)


class _Entries(typing.NamedTuple):
    """The nonzero entries of a batch, sorted by latent and then by row; ``count_F`` is the number per latent."""

    latent: np.ndarray
    row: np.ndarray
    value: np.ndarray
    count_F: np.ndarray


class _Groups(typing.NamedTuple):
    """Adjacent entries of one latent and one sample, or of one latent and one map (a timestep of a sample).

    ``start`` and ``length`` locate the entries of a group. ``member`` is the index of its sample or map in the
    batch, and ``peak`` its largest value.
    """

    start: np.ndarray
    length: np.ndarray
    latent: np.ndarray
    member: np.ndarray
    peak: np.ndarray


class LatentAccumulator:
    """Statistics of ``latents`` latents; :meth:`add` takes batches of whole samples in their order.

    ``top`` and ``weaker`` samples are recorded per latent. ``scale`` is the typical size of values. A profile has
    the largest value in each cell of ``position_map``. ``random_samples`` are sample numbers, ascending; for each
    of them the latents that fire on it are recorded. ``embedding_NE`` are the embeddings of all samples, see
    :class:`SimilaritySums`; None: no monosemanticity score.
    """

    def __init__(
        self,
        latents: int,
        top: int,
        weaker: int,
        scale: float,
        position_map: PositionMap,
        strata: Strata,
        random_samples: np.ndarray,
        embedding_NE: np.ndarray | None = None,
    ):
        self.latents, self.weaker, self.strata, self.random_samples = latents, weaker, strata, random_samples
        self.edges, self._bins = histogram(scale)
        self._cell_P, self._cells = position_map.cell_of_position, math.prod(position_map.shape)
        self.rows_read = self.samples_read = 0
        self.histogram = np.zeros((latents, BINS), np.int64)
        self.samples = np.zeros(latents, np.int64)
        self.rows_of = np.zeros((latents, strata.counted), np.int64)
        self.samples_of = np.zeros((latents, strata.counted), np.int64)
        self.maps_of = np.zeros((latents, strata.counted), np.int64)
        self.sum_of = np.zeros((latents, strata.counted))
        self.spread_of = np.zeros((latents, strata.counted), np.int64)  # summed over maps, in units of 1 / WHOLE
        self.top = TopSamples(latents, top, self._cells)
        self.of_stratum = TopSamples(latents * strata.counted if strata.names else 0, top)
        # For each latent and bin, the sample with the smallest hash of all samples whose peak is in the bin.
        self._hash_F = mix(np.arange(latents, dtype=np.uint32))
        bins = (latents, BINS if weaker else 0)
        self.weak_key = np.full(bins, 2**64 - 1, np.uint64)  # hash << 32 | sample
        self.weak_value = np.zeros(bins, np.float32)
        self.weak_position = np.full(bins, -1, np.int32)
        self.weak_timestep = np.full(bins, -1, np.int32)
        self.fires = np.zeros((latents, len(random_samples)), bool)
        self.similarity = None if embedding_NE is None else SimilaritySums(latents, embedding_NE)

    @property
    def nbytes(self) -> int:
        own = sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))
        return own + self.top.nbytes + self.of_stratum.nbytes + (self.similarity.nbytes if self.similarity else 0)

    def add(self, batch: CodeBatch) -> None:
        """Add a batch of whole samples. Batches must be added in the order of the samples."""
        new_sample_N = np.diff(batch.sample_N, prepend=-1) != 0
        new_map_N = new_sample_N | (np.diff(batch.timestep_N, prepend=batch.timestep_N[0]) != 0)
        first_of_sample, first_of_map = np.flatnonzero(new_sample_N), np.flatnonzero(new_map_N)
        self.rows_read += len(batch.sample_N)
        self.samples_read += len(first_of_sample)
        if not len(batch.latent_E):
            if self.similarity:
                nothing = np.zeros(0, np.int64)
                self.similarity.add(batch.sample_N[first_of_sample], nothing, nothing, nothing)
            return
        map_of_N = np.cumsum(new_map_N, dtype=np.int32) - 1
        entries = _sort_by_latent(batch, self.latents)
        maps = samples = _group(entries, map_of_N)
        if len(first_of_map) > len(first_of_sample):
            samples = _group(entries, np.cumsum(new_sample_N, dtype=np.int32) - 1)
        numbers = batch.sample_N[first_of_sample]
        if self.similarity:
            self.similarity.add(numbers, samples.latent, numbers[samples.member], samples.peak)

        flat = entries.latent * BINS
        flat += self.bins(entries.value)
        np.add.at(self.histogram.reshape(-1), flat, 1)
        self.samples += np.bincount(samples.latent, minlength=self.latents)
        self._add_strata(batch, entries, maps, samples, first_of_map, first_of_sample)
        self._add_top(batch, entries, samples, numbers, map_of_N)
        if self.weaker:
            self._add_weaker(batch, entries, samples, numbers)
        is_random = np.isin(numbers, self.random_samples)
        if is_random.any():
            recorded = np.flatnonzero(is_random[samples.member])
            column = np.searchsorted(self.random_samples, numbers)[samples.member[recorded]]
            self.fires[samples.latent[recorded], column] = True

    def bins(self, value_N: np.ndarray) -> np.ndarray:
        """Return the histogram bins of float32 values above 0, uint8."""
        return np.take(self._bins, np.ascontiguousarray(value_N).view(np.uint16)[1::2])

    def ranked(self) -> tuple[RankedSamples, RankedSamples, np.ndarray]:
        """Return the top samples by latent, the top samples by latent and stratum, and the profiles of the former."""
        return self.top.ranked(), self.of_stratum.ranked(), self.top.profiles()

    def _add_strata(
        self,
        batch: CodeBatch,
        entries: _Entries,
        maps: _Groups,
        samples: _Groups,
        first_of_map: np.ndarray,
        first_of_sample: np.ndarray,
    ) -> None:
        """Add counts, sums and top samples by stratum. A map has one stratum; a sample can have several."""
        shape = self.rows_of.shape
        stratum_of_map = self._stratum(batch.sample_N[first_of_map], batch.timestep_N[first_of_map])
        list_of_map = self._lists(maps, stratum_of_map)
        value_E = entries.value.astype(np.float64)
        if shape[1] == 1:
            rows = entries.count_F[:, None]
            np.add.at(self.sum_of.reshape(-1), entries.latent, value_E)
        else:
            rows = np.bincount(list_of_map, maps.length, self.rows_of.size).astype(np.int64).reshape(shape)
            np.add.at(self.sum_of.reshape(-1), list_of_map, np.add.reduceat(value_E, maps.start))
        self.rows_of += rows
        self.maps_of += np.bincount(list_of_map, minlength=self.maps_of.size).reshape(shape)
        share_of_map = WHOLE // np.diff(first_of_map, append=len(batch.sample_N))  # share of one position
        if (share_of_map == share_of_map[0]).all():
            self.spread_of += rows * share_of_map[0]
        else:
            np.add.at(self.spread_of.reshape(-1), list_of_map, maps.length * share_of_map[maps.member])

        groups, lists = maps, list_of_map
        if self.strata.timesteps is None and samples is not maps:
            stratum_of_sample = self._stratum(batch.sample_N[first_of_sample], batch.timestep_N[first_of_sample])
            groups, lists = samples, self._lists(samples, stratum_of_sample)
        self.samples_of += np.bincount(lists, minlength=self.samples_of.size).reshape(shape)
        if self.strata.names:
            candidates = self.of_stratum.candidates(lists, groups.peak)
            candidates = candidates[np.argsort(lists[candidates], kind="stable")]
            row = _row_of_peak(entries, groups, candidates)[0]
            self.of_stratum.add(
                lists[candidates],
                groups.peak[candidates],
                batch.sample_N[row],
                batch.position_N[row],
                batch.timestep_N[row],
            )

    def _stratum(self, sample: np.ndarray, timestep: np.ndarray) -> np.ndarray:
        """Return stratum numbers; a sample without a stratum gets the number after the last."""
        if self.strata.timesteps is not None:
            return np.searchsorted(self.strata.timesteps, timestep)
        if self.strata.of_sample is not None:
            stratum = self.strata.of_sample[sample]
            return np.where(stratum < 0, len(self.strata.names), stratum)
        return np.zeros(len(sample), np.int64)

    def _lists(self, groups: _Groups, stratum: np.ndarray) -> np.ndarray:
        """Return the latent and stratum of each group as one number."""
        if self.strata.counted == 1:
            return groups.latent
        return groups.latent * self.strata.counted + np.take(stratum, groups.member)

    def _add_top(
        self, batch: CodeBatch, entries: _Entries, samples: _Groups, numbers: np.ndarray, map_of_N: np.ndarray
    ) -> None:
        """Add the peaks to the top samples, with the profile of the map of each peak."""
        candidates = self.top.candidates(samples.latent, samples.peak)
        for block in np.split(candidates, range(BLOCK, len(candidates), BLOCK)):
            block = block[self.top.candidates(samples.latent[block], samples.peak[block])]
            row, entry, group = _row_of_peak(entries, samples, block)
            same_map = map_of_N[entries.row[entry]] == map_of_N[row][group]
            entry, group = entry[same_map], group[same_map]
            peak = samples.peak[block]
            profile = np.zeros((len(block), self._cells), np.uint8)
            cell = self._cell_P[np.maximum(batch.position_N[entries.row[entry]], 0)]
            shade = np.ceil(255 * (entries.value[entry] / peak[group])).astype(np.uint8)
            np.maximum.at(profile.reshape(-1), group * self._cells + cell, shade)
            self.top.add(
                samples.latent[block],
                peak,
                numbers[samples.member[block]],
                batch.position_N[row],
                batch.timestep_N[row],
                profile,
            )

    def _add_weaker(self, batch: CodeBatch, entries: _Entries, samples: _Groups, numbers: np.ndarray) -> None:
        """Keep the sample with the smallest hash of each latent and bin, which is a reproducible uniform draw."""
        hash_N = np.take(self._hash_F, samples.latent)
        hash_N ^= np.take(mix(~numbers.astype(np.uint32)), samples.member)
        hash_N *= np.uint32(0x9E3779B1)
        flat = samples.latent * BINS
        flat += self.bins(samples.peak)
        smallest = self.weak_key.reshape(-1)
        better = np.flatnonzero(hash_N <= smallest.view(np.uint32)[1::2][flat])  # the upper halves of the keys
        key, flat = hash_N[better].astype(np.uint64) << np.uint64(32), flat[better]
        key |= numbers[samples.member[better]].astype(np.uint64)
        np.minimum.at(smallest, flat, key)
        is_smallest = key == smallest[flat]
        better, flat = better[is_smallest], flat[is_smallest]
        row = _row_of_peak(entries, samples, better)[0]
        self.weak_value.reshape(-1)[flat] = samples.peak[better]
        self.weak_position.reshape(-1)[flat] = batch.position_N[row]
        self.weak_timestep.reshape(-1)[flat] = batch.timestep_N[row]


def _sort_by_latent(batch: CodeBatch, latents: int) -> _Entries:
    """Sort the entries of a batch by latent and row. They are already sorted by row, so a counting sort suffices."""
    rows = len(batch.fires_N)
    row_starts = np.concatenate([[0], np.cumsum(batch.fires_N)]).astype(np.int32)
    by_row = scipy.sparse.csr_array((batch.value_E, batch.latent_E, row_starts), (rows, latents))
    by_latent = by_row.tocsc()
    count_F = np.diff(by_latent.indptr)
    return _Entries(np.repeat(np.arange(latents), count_F), by_latent.indices, by_latent.data, count_F)


def _group(entries: _Entries, member_of_N: np.ndarray) -> _Groups:
    """Group the entries of each latent by ``member_of_N``, the sample or map of each row."""
    member = np.take(member_of_N, entries.row)
    new = np.empty(len(member), bool)
    np.not_equal(member[1:], member[:-1], out=new[1:])
    new[(np.cumsum(entries.count_F) - entries.count_F)[entries.count_F > 0]] = True
    start = np.flatnonzero(new)
    length = np.empty_like(start)
    np.subtract(start[1:], start[:-1], out=length[:-1])
    length[-1] = len(member) - start[-1]
    peak = np.maximum.reduceat(entries.value, start)
    return _Groups(start, length, np.take(entries.latent, start), np.take(member, start), peak)


def _row_of_peak(entries: _Entries, groups: _Groups, some: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row of the peak of the groups ``some``, the entries of these groups, and the group of each entry.

    Of equal peaks the first row is returned. Entries are indices into ``entries``, groups indices into ``some``.
    """
    length = groups.length[some]
    group = np.repeat(np.arange(len(some)), length)
    entry = np.arange(len(group)) + np.repeat(groups.start[some] - (np.cumsum(length) - length), length)
    peaks = np.flatnonzero(entries.value[entry] == groups.peak[some][group])
    first = np.flatnonzero(np.diff(group[peaks], prepend=-1))
    return entries.row[entry[peaks[first]]], entry, group
