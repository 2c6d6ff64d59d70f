"""The measures of latents agree with those of SAEBench and overcomplete on the same small arrays."""

import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

from revelio_jax.evaluation.redundancy import redundancy
from revelio_jax.evaluation.stability import stability
from revelio_jax.interpret.measures.absorption import absorption
from revelio_jax.interpret.probes import sparse
from tests.helpers import ROOT

PEERS = ROOT / ".venv-peers" / "bin" / "python"
N, D, F = 400, 12, 30


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    W_dec, W_other = unit(random.normal(size=(F, D))), unit(random.normal(size=(F, D)))
    is_class = random.permutation(np.repeat([0, 1], N // 2))
    half = N // 2  # both halves have as many rows of the class as others
    is_class[:half], is_class[half:] = (random.permutation(np.repeat([0, 1], N // 4)) for _ in range(2))
    z = random.exponential(size=(N, F)) * (random.random((N, F)) < 0.2)
    z[:, :3] += 0.5 * is_class[:, None] * random.exponential(size=(N, 3))
    probe = W_dec[:3].mean(0)
    x = z @ W_dec + 0.3 * random.normal(size=(N, D))
    found = {"x": x, "z": z, "W_dec": W_dec, "W_other": W_other, "x_hat": z @ W_dec, "probe": probe}
    found = {name: array.astype(np.float32) for name, array in found.items()}
    return found | {"main": np.array([0, 4]), "is_class": is_class}


@pytest.fixture(scope="module")
def theirs(arrays, tmp_path_factory) -> dict:
    if not PEERS.exists():
        pytest.skip("SAEBench and overcomplete are not installed: bash tests/benchmarks/peers.sh")
    file = tmp_path_factory.mktemp("peers") / "arrays.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, file)
    subprocess.run([PEERS, ROOT / "tests" / "benchmarks" / "peer_measures.py", file], check=True)
    return json.loads(file.with_suffix(".json").read_text())


@pytest.mark.peers
def test_absorption_agrees_with_saebench(arrays, theirs):
    probe = arrays["probe"] / np.linalg.norm(arrays["probe"])
    ours = absorption(arrays["z"], arrays["x"] @ probe, arrays["W_dec"], probe, arrays["main"])
    np.testing.assert_allclose(ours.fraction, theirs["absorption"]["fraction"], atol=1e-5)
    np.testing.assert_array_equal(ours.is_full, theirs["absorption"]["is_full"])
    assert 0 < ours.is_full.sum() < N
    assert 0 < ours.fraction.mean() < 1


@pytest.mark.peers
def test_sparse_probes_agree_with_saebench(arrays, theirs):
    """The features are the same. Accuracies differ a little, because penalty and scaling of the features differ."""
    half, classes = N // 2, arrays["is_class"].astype(np.int32)
    difference = sparse.difference(arrays["z"][:half], classes[:half], 1)
    result = sparse.measure((arrays["z"][:half], classes[:half]), (arrays["z"][half:], classes[half:]))
    accuracy = dict(zip(sparse.KS, result.balanced_accuracy[1], strict=True))
    for k in (1, 2, 5):
        of_k = theirs["sparse_probe"][str(k)]
        assert sorted(np.argsort(-np.abs(difference), kind="stable")[:k]) == of_k["features"]
        assert accuracy[k] == pytest.approx(of_k["accuracy"], abs=0.02)


@pytest.mark.peers
def test_stability_agrees_with_overcomplete(arrays, theirs):
    ours = stability(arrays["W_dec"], arrays["W_other"])
    loss = theirs["overcomplete"]["cosine_hungarian_loss"]  # the sum of 1 - cosine
    assert ours["mean_cosine"] == pytest.approx(1 - loss / F, abs=1e-5)


@pytest.mark.peers
def test_quality_agrees_with_overcomplete(arrays, theirs):
    of_theirs, x = theirs["overcomplete"], arrays["x"]
    assert F * of_theirs["l0"] == pytest.approx((arrays["z"] > 0).sum(1).mean(), rel=1e-5)
    assert of_theirs["dead"] == (arrays["z"] == 0).all(0).astype(float).tolist()
    # overcomplete's R2 takes one mean over all numbers, this project's FVU one mean per coordinate.
    error = np.square(x - arrays["x_hat"]).mean()
    assert of_theirs["r2"] == pytest.approx(1 - error / np.square(x - x.mean()).mean(), abs=1e-4)
    # overcomplete reports the largest absolute cosine of any pair, redundancy() quartiles over latents without abs.
    cosine = unit(arrays["W_dec"]) @ unit(arrays["W_dec"]).T
    np.fill_diagonal(cosine, -1)
    quartiles = redundancy(arrays["W_dec"], np.ones(F, bool))["quartiles"]
    assert quartiles[1] == pytest.approx(np.median(cosine.max(1)), abs=1e-5)
    np.fill_diagonal(cosine, 0)
    assert of_theirs["collinearity"] == pytest.approx(np.abs(cosine).max(), abs=1e-4)
