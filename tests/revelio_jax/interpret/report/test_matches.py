"""Best matches of two SAEs, compared with a direct computation."""

import types

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from revelio_jax.errors import InputError
from revelio_jax.interpret.report import matches

# Slow data generation is not a failure on a busy machine.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def with_decoder(folder, rows, dead=()):
    folder.mkdir()
    save_file({"W_dec": rows.astype(np.float32)}, folder / "sae_weights.safetensors")
    summary = {"d": rows.shape[1], "latents": len(rows), "sae": {"folder": str(folder)}}
    fired = np.ones(len(rows), np.int64)
    fired[list(dead)] = 0
    return types.SimpleNamespace(summary=summary, folder=folder, latents=pyarrow.table({"rows": fired}))


def with_samples(samples, store="one"):
    """Return results whose latents have these top samples."""
    pairs = [(latent, sample) for latent, of in enumerate(samples) for sample in of]
    table = pyarrow.table(
        {
            "latent": pyarrow.array([latent for latent, _ in pairs], pyarrow.int32()),
            "sample": pyarrow.array([sample for _, sample in pairs], pyarrow.int32()),
            "kind": pyarrow.array(["top"] * len(pairs), pyarrow.string()),
        }
    )
    summary = {"latents": len(samples), "store": {"fingerprint": store}}
    return types.SimpleNamespace(summary=summary, samples=table)


def test_by_decoder_in_blocks_equals_all_cosines(tmp_path, monkeypatch):
    monkeypatch.setattr(matches, "BLOCK", 7)
    random = np.random.default_rng(0)
    a, b = random.normal(size=(20, 6)), random.normal(size=(33, 6))
    b[31] = 5 * a[4]  # norms do not matter
    nearest, cosine = matches.by_decoder(with_decoder(tmp_path / "a", a), with_decoder(tmp_path / "b", b))
    every = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(nearest, every.argmax(1))
    np.testing.assert_allclose(cosine, every.max(1), rtol=1e-5)
    assert nearest[4] == 31


def test_dead_latents_are_not_matched(tmp_path, monkeypatch):
    monkeypatch.setattr(matches, "BLOCK", 2)
    rows = np.eye(5) + 0.1
    a, b = with_decoder(tmp_path / "a", rows), with_decoder(tmp_path / "b", rows, dead=(0, 3))
    nearest, cosine = matches.by_decoder(a, b)
    assert not {0, 3} & set(nearest.tolist())
    assert [nearest[i] for i in (1, 2, 4)] == [1, 2, 4]
    assert cosine[0] < 0.9
    assert matches.by_decoder(a, with_decoder(tmp_path / "none", rows, dead=range(5))) is None


def test_different_widths_and_neurons_have_no_decoder_matches(tmp_path):
    a = with_decoder(tmp_path / "a", np.ones((3, 4)))
    assert matches.by_decoder(a, with_decoder(tmp_path / "b", np.ones((3, 5)))) is None
    # Results of neurons have no SAE folder.
    neurons = types.SimpleNamespace(summary=a.summary | {"sae": {"folder": ""}}, folder=tmp_path)
    assert matches.by_decoder(a, neurons) is None


def test_a_missing_decoder_is_refused(tmp_path):
    a = with_decoder(tmp_path / "a", np.ones((3, 4)))
    (tmp_path / "a" / "sae_weights.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        matches.check(a)


LISTS = st.lists(st.frozensets(st.integers(0, 12), max_size=5), min_size=1, max_size=9)


@UNTIMED
@given(LISTS, LISTS, st.integers(1, 40))
def test_by_samples_equals_all_jaccard_indices(a, b, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matches, "PAIRS", room)
        match, score = matches.by_samples(with_samples(a), with_samples(b))
    for latent, ours in enumerate(a):
        every = [len(ours & theirs) / max(len(ours | theirs), 1) for theirs in b]
        assert score[latent] == pytest.approx(max(every))
        assert match[latent] == (np.argmax(every) if max(every) else -1)


def test_different_stores_have_no_sample_matches():
    assert matches.by_samples(with_samples([{1}], "one"), with_samples([{1}], "two")) is None
