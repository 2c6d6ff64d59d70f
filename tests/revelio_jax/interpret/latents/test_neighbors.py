"""Co-active and nearest latents against brute force."""

import numpy as np
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.interpret.latents import neighbors, stream


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 9), st.integers(0, 6))
def test_coactive_has_the_largest_jaccard_indices(seed, rows, latents, most):
    fires = np.random.default_rng(seed).random((rows, latents)) < 0.3
    indices, scores = neighbors.coactive(scipy.sparse.csr_array(fires.astype(np.int32)), most)
    assert indices.shape == scores.shape == (latents, most)
    for f in range(latents):
        both = (fires & fires[:, f, None]).sum(0)
        index = both / np.maximum((fires | fires[:, f, None]).sum(0), 1)
        index[f] = 0
        order = [i for i in np.lexsort((np.arange(latents), -index)) if index[i] > 0][:most]
        assert indices[f].tolist() == order + [-1] * (most - len(order))
        np.testing.assert_allclose(scores[f], np.append(index[order], np.zeros(most - len(order))), rtol=1e-6)


def test_nearest_has_the_largest_cosines(monkeypatch):
    monkeypatch.setattr(neighbors, "BLOCK", 8)  # several blocks, the last of which overlaps the previous one
    W = np.random.default_rng(0).normal(size=(21, 5)).astype(np.float32)
    W[3] = 0
    W[7] = 2 * W[8]
    indices, cosines = neighbors.nearest(W, 4)
    norm = np.linalg.norm(W, axis=1, keepdims=True)
    cosine = (W / np.where(norm > 0, norm, 1)) @ (W / np.where(norm > 0, norm, 1)).T
    np.fill_diagonal(cosine, -np.inf)
    for f in set(range(21)) - {3}:
        best = np.argsort(-cosine[f], kind="stable")[:4]
        np.testing.assert_allclose(cosines[f], cosine[f][best], atol=1e-5)
        np.testing.assert_allclose(cosine[f][indices[f]], cosine[f][best], atol=1e-5)
    assert indices[7, 0] == 8
    assert (indices[3] == -1).all()
    assert neighbors.nearest(W[:1], 4)[0].tolist() == [[-1] * 4]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 80))
def test_coactivation_rows_do_not_depend_on_batch_boundaries(seed, rows, wanted):
    random = np.random.default_rng(seed)
    fires_N = random.integers(0, 4, rows).astype(np.int32)
    latent_E = random.integers(0, 9, fires_N.sum()).astype(np.int32)
    codes = []
    for cut in (0, int(random.integers(0, rows + 1))):
        sampled = neighbors.CoactivationRows(wanted, rows)
        starts = np.concatenate([[0], np.cumsum(fires_N)])
        for first, last in ((0, cut), (cut, rows)):
            if first < last:
                none = np.zeros(last - first, np.int32)
                entries = latent_E[starts[first] : starts[last]]
                values = np.ones(len(entries), np.float32)
                sampled.add(stream.CodeBatch(none, none, none, fires_N[first:last], entries, values))
        codes.append(sampled.codes(9).toarray())
    np.testing.assert_array_equal(*codes)
    assert len(codes[0]) <= min(wanted, rows)
    if wanted >= rows and fires_N.max() < neighbors.ENTRIES_PER_ROW:
        assert len(codes[0]) == rows
