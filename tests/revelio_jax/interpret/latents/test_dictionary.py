"""Codes of every architecture against plain formulas, and malformed SAE folders."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import dictionary

D, F, ROWS = 6, 200, 23


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    W = random.normal(size=(D, F)).astype(np.float32)
    b_enc = random.normal(size=F).astype(np.float32)
    return W, b_enc, W.T.copy(), random.normal(size=D).astype(np.float32)


def test_old_releases_are_refused_on_cuda(weights, write_sae, tmp_path, monkeypatch):
    cuda = types.SimpleNamespace(platform="gpu", client=types.SimpleNamespace(platform_version="cuda 13010"))
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    monkeypatch.setattr(jax, "local_devices", lambda: [cuda])
    with pytest.raises(InputError, match=r"^jax is 0\.10\.2; on CUDA devices it must be at least"):
        dictionary.make_encode(dictionary.load(write_sae(tmp_path / "sae", *weights, k=9)), ROWS)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "standard", "neurons"])
@pytest.mark.parametrize("batch_size", [ROWS, 64])
def test_codes_equal_the_formula(weights, write_sae, tmp_path, kind, batch_size):
    x = np.random.default_rng(1).normal(size=(ROWS, D)).astype(np.float32)
    W_enc, b_enc, _, b_dec = weights
    threshold = np.linspace(0, 3, F).astype(np.float32)
    z = np.maximum((x - b_dec) @ W_enc + b_enc, 0)
    if kind == "topk":
        wanted = np.where(np.argsort(np.argsort(-z, axis=1), axis=1) < 9, z, 0)
        latents = dictionary.load(write_sae(tmp_path / kind, *weights, k=9))
    elif kind == "jumprelu":
        wanted = np.where(z > threshold, z, 0)
        latents = dictionary.load(write_sae(tmp_path / kind, *weights, threshold=threshold))
    elif kind == "standard":
        wanted = z  # on most rows more latents fire than the first slots can hold
        latents = dictionary.load(write_sae(tmp_path / kind, *weights))
    else:
        wanted = np.maximum(x - b_dec, 0)
        latents = dictionary.Dictionary("neurons", None, b_dec, np.zeros(D, np.float32))
    values, indices = dictionary.make_encode(latents, batch_size)(x)()
    got = np.zeros_like(wanted)
    np.put_along_axis(got, indices, np.maximum(values, np.take_along_axis(got, indices, 1)), 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert latents.n_latents == wanted.shape[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "architecture is 'gated'; allowed: topk, jumprelu, standard"),
        ({"d_in": 7}, r"W_enc is F32 \[6, 200\]; cfg.json requires F64 or F32 or F16 or BF16 \[7, 200\]"),
        ({"d_sae": 0}, "d_sae is 0; it must be an integer from 1"),
        ({"k": 201}, "k is 201; it must be an integer between 1 and d_sae, 200"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"architecture": "jumprelu"}, "tensor threshold is missing"),
    ],
)
def test_a_folder_that_does_not_hold_together_is_refused(weights, write_sae, tmp_path, change, message):
    folder = pathlib.Path(write_sae(tmp_path / "sae", *weights, k=9))
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(InputError, match=message):
        dictionary.load(str(folder))


def test_nonfinite_weights_are_refused(weights, write_sae, tmp_path):
    W_enc, b_enc, W_dec, b_dec = weights
    folder = write_sae(tmp_path / "sae", W_enc, np.where(np.arange(F) == 3, np.nan, b_enc), W_dec, b_dec, k=9)
    with pytest.raises(InputError, match="b_enc has values that are not finite"):
        dictionary.load(folder)
