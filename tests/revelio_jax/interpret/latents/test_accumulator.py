"""Statistics of latents against plain loops over dense codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.interpret.latents import accumulator, stream
from revelio_jax.interpret.latents.accumulator import BINS, LatentAccumulator
from revelio_jax.interpret.latents.layout import PositionMap, Strata
from revelio_jax.interpret.latents.top_samples import mix, unmix

LATENTS = 7


def make_rows(random, samples, timesteps, positions, density, levels):
    """Return index arrays and dense codes [N, F] of samples of different lengths; few ``levels`` make many ties."""
    index = []
    for sample in sorted(random.choice(3 * samples, samples, replace=False)):
        for timestep in timesteps:
            index += [(sample, timestep, position) for position in range(random.integers(1, positions + 1))]
    sample, timestep, position = np.array(index, np.int32).T
    shape = len(sample), LATENTS
    z = random.integers(1, levels + 1, shape) * (random.random(shape) < density)
    return sample, timestep, position, (z * random.choice([1.0, 1.1, 0.001])).astype(np.float32)


def parts_of(sample, timestep, position, z, batch_size):
    """Yield the codes as top-k returns them, the largest first, in batches that may split samples."""
    order = np.argsort(-z, axis=1, kind="stable").astype(np.int32)
    for start in range(0, len(z), batch_size):
        rows = slice(start, start + batch_size)
        batch = stream.RowBatch(np.empty((0, 0)), sample[rows], position[rows], timestep[rows])
        yield stream.compact(batch, np.take_along_axis(z[rows], order[rows], 1), order[rows])


def collected(rows, batch_size, cells, strata, top=3, weaker=4, drawn=()):
    statistics = LatentAccumulator(LATENTS, top, weaker, 4.0, cells, strata, np.array(drawn, np.int64))
    for part in stream.whole_samples(parts_of(*rows, batch_size)):
        statistics.add(part)
    return statistics


def peaks_of(z, sample, f, rows=None):
    """Return the peak (value, sample, row) of every sample for one latent, strongest first, ties by hash."""
    found = {}
    for row in np.flatnonzero(z[:, f] > 0) if rows is None else rows:
        if z[row, f] > 0 and (sample[row] not in found or z[row, f] > found[sample[row]][0]):
            found[sample[row]] = (z[row, f], sample[row], row)
    return sorted(found.values(), key=lambda peak: (-peak[0], mix(np.array([peak[1]], np.uint32))))


ROWS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.sampled_from([(-1,), (0,), (999, 500, 1)]),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 2, 1000]),
)


@settings(deadline=None, max_examples=150)
@given(ROWS, st.integers(1, 40), st.integers(1, 6), st.sampled_from(["none", "timestep", "column"]))
def test_statistics_equal_plain_loops(shape, batch_size, most_cells, stratum_kind):
    seed, samples, timesteps, positions, density, levels = shape
    random = np.random.default_rng(seed)
    rows = make_rows(random, samples, timesteps, positions, density, levels)
    sample, timestep, position, z = rows
    of_position = (np.arange(positions, dtype=np.int32) * most_cells // positions).astype(np.int32)
    cells = PositionMap(None, (1, int(of_position.max()) + 1), of_position)
    strata = Strata()
    if stratum_kind == "timestep":
        known = np.unique(timestep)
        strata = Strata("timestep", tuple(map(str, known)), timesteps=known)
    elif stratum_kind == "column":
        language = random.integers(-1, 2, 3 * samples).astype(np.int32)
        strata = Strata("language", ("de", "en"), of_sample=language)
    drawn = np.sort(random.choice(3 * samples, samples, replace=False))
    got = collected(rows, batch_size, cells, strata, drawn=drawn)
    ranked, of_strata, profiles = got.ranked()

    assert got.rows_read == len(z)
    assert got.samples_read == len(set(sample))
    maps = {pair: (sample == pair[0]) & (timestep == pair[1]) for pair in zip(sample, timestep, strict=True)}
    for f in range(LATENTS):
        fires = z[:, f] > 0
        assert got.rows_of[f].sum() == got.histogram[f].sum() == fires.sum()
        assert got.sum_of[f].sum() == pytest.approx(z[:, f].astype(np.float64).sum())
        assert got.samples[f] == len(set(sample[fires]))
        shares = [fires[of].mean() for of in maps.values() if fires[of].any()]
        assert got.maps_of[f].sum() == len(shares)
        assert got.spread_of[f].sum() / accumulator.WHOLE == pytest.approx(sum(shares))
        assert got.fires[f].tolist() == [bool(fires[sample == number].any()) for number in drawn]
        # The strongest, and their profiles.
        peaks = peaks_of(z, sample, f)
        assert ranked.sample[f].tolist() == [s for _, s, _ in peaks[:3]] + [-1] * (3 - len(peaks[:3]))
        for rank, (value, _, row) in enumerate(peaks[:3]):
            assert ranked.value[f, rank] == value
            assert (ranked.position[f, rank], ranked.timestep[f, rank]) == (position[row], timestep[row])
            profile = np.zeros(of_position.max() + 1)
            for other in np.flatnonzero(maps[sample[row], timestep[row]]):
                cell = of_position[position[other]]
                profile[cell] = max(profile[cell], np.ceil(255 * (z[other, f] / value)))
            assert profiles[f, rank].tolist() == profile.tolist()
            assert profiles[f, rank].max() == 255
        assert not profiles[f, len(peaks) :].any()
        # Strata.
        for i in range(len(strata.names)):
            inside = (
                timestep == int(strata.names[i]) if strata.timesteps is not None else (strata.of_sample[sample] == i)
            )
            here = np.flatnonzero(inside & fires)
            assert got.rows_of[f, i] == len(here)
            assert got.samples_of[f, i] == len(set(sample[here]))
            assert got.sum_of[f, i] == pytest.approx(z[here, f].astype(np.float64).sum())
            best = of_strata.sample.reshape(LATENTS, strata.counted, 3)[f, i]
            where = of_strata.position.reshape(LATENTS, strata.counted, 3)[f, i]
            wanted = peaks_of(z, sample, f, here)[:3]
            assert best.tolist() == [s for _, s, _ in wanted] + [-1] * (3 - len(wanted))
            assert where[: len(wanted)].tolist() == [position[row] for *_, row in wanted]
        # Every bin that contains peaks has a drawn sample, and the sample's peak lies in that bin.
        bins = {}
        for value, number, row in peaks:
            at = int(got.bins(np.array([value], np.float32))[0])
            bins.setdefault(at, {})[number] = (value, position[row], timestep[row])
        for at in range(BINS):
            key = int(got.weak_key[f, at])
            assert (key != 2**64 - 1) == (at in bins)
            if at in bins:
                found = got.weak_value[f, at], got.weak_position[f, at], got.weak_timestep[f, at]
                assert bins[at][key & 0xFFFFFFFF] == found


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 40), st.integers(1, 40))
def test_statistics_do_not_depend_on_the_batch_size(shape, size, other_size):
    seed, samples, timesteps, positions, density, levels = shape
    rows = make_rows(np.random.default_rng(seed), samples, timesteps, positions, density, levels)
    rows = *rows[:3], rows[3] * np.float32(0.1)  # floating-point sums depend on the order
    cells = PositionMap(None, (1, positions), np.arange(positions, dtype=np.int32))
    known = np.unique(rows[1])
    strata = Strata("timestep", tuple(map(str, known)), timesteps=known)
    one, two = (collected(rows, n, cells, strata) for n in (size, other_size))
    for name, array in vars(one).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, getattr(two, name), name)
    for a, b in zip(one.ranked(), two.ranked(), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(2.0**-126, 2.0**100, width=32))
def test_the_bin_table_agrees_with_the_edges(scale, value):
    edges, table = accumulator.histogram(scale)
    assert len(edges) == BINS + 1
    np.testing.assert_allclose(np.diff(edges), 0.25, atol=0.012)  # 8 significant bits
    found = table[np.array([value], np.float32).view(np.uint16)[1]]
    assert found == np.clip(np.searchsorted(edges, np.log2(value), "right") - 1, 0, BINS - 1)


def test_weaker_samples_are_drawn_uniformly():
    """Each of 50 samples of equal value is drawn by about the same share of 4,000 latents."""
    latents, samples = 4000, 50
    cells = PositionMap(None, (1, 1), np.zeros(1, np.int32))
    statistics = LatentAccumulator(latents, 1, 1, 1.0, cells, Strata(), np.zeros(0, np.int64))
    row = np.arange(samples, dtype=np.int32)
    everything = np.tile(np.arange(latents, dtype=np.int32), samples)
    fires, ones = np.full(samples, latents, np.int32), np.ones(len(everything), np.float32)
    statistics.add(stream.CodeBatch(row, 0 * row, 0 * row, fires, everything, ones))
    drawn = (statistics.weak_key.min(1) & np.uint64(0xFFFFFFFF)).astype(int)
    counts = np.bincount(drawn, minlength=samples)
    expected = latents / samples
    chi_square = (np.square(counts - expected) / expected).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)


def test_memory_equals_the_documented_formula():
    """Memory depends on the settings and not on the rows that were added."""
    latents, top, weaker, cells, strata, drawn = 100, 20, 10, 64, 5, 30
    places = top + 5
    per_latent = 28 * BINS + 28 + places * (18 + cells) + 40 * strata + drawn
    per_latent += strata * (16 + 16 * places)
    map_of = PositionMap((8, 8), (8, 8), np.arange(cells, dtype=np.int32))
    known = np.arange(strata, dtype=np.int32)
    stratum_kind = Strata("timestep", tuple(map(str, known)), timesteps=known)
    statistics = LatentAccumulator(latents, top, weaker, 1.0, map_of, stratum_kind, np.arange(drawn))
    fixed = drawn * 8 + (BINS + 1) * 8 + (1 << 15) + 4 * cells
    assert statistics.nbytes == latents * per_latent + fixed
    random = np.random.default_rng(0)
    for first in (0, 20):
        sample = np.repeat(np.arange(first, first + 20, dtype=np.int32), 64 * strata)
        timestep = np.tile(np.repeat(known, 64), 20)
        position = np.tile(np.arange(64, dtype=np.int32), 20 * strata)
        fires = np.full(len(sample), 8, np.int32)
        latent = random.integers(0, latents, 8 * len(sample)).astype(np.int32)
        value = random.random(len(latent), np.float32) + 0.1
        statistics.add(stream.CodeBatch(sample, position, timestep, fires, latent, value))
    assert statistics.nbytes == latents * per_latent + fixed


def test_ties_are_ranked_in_random_order():
    """Of 1,000 samples of equal value, the 20 top samples are not adjacent in number."""
    numbers = np.arange(1000, dtype=np.uint32)
    np.testing.assert_array_equal(unmix(mix(numbers)), numbers)
    many = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    np.testing.assert_array_equal(unmix(mix(many)), many)
    row = numbers.astype(np.int32)
    cells = PositionMap(None, (1, 1), np.zeros(1, np.int32))
    statistics = LatentAccumulator(1, 20, 0, 1.0, cells, Strata(), np.zeros(0, np.int64))
    for rows in np.split(row, 50):
        ones = np.ones(len(rows), np.float32)
        statistics.add(stream.CodeBatch(rows, 0 * rows, 0 * rows, 0 * rows + 1, 0 * rows, ones))
    kept = np.sort(statistics.ranked()[0].sample[0])
    assert len(set(kept)) == 20
    assert 200 < kept.mean() < 800
    assert (np.diff(kept) == 1).sum() < 5
