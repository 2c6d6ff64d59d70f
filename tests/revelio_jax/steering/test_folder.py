"""Reading an SAE folder: what fits is read exactly, all else is refused in one line."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from revelio_jax.errors import InputError
from revelio_jax.steering.folder import load_sae


def test_codes_and_reconstruction_follow_the_definition(sae_folder, tensors, config):
    sae = load_sae(sae_folder)
    x = 3 * torch.randn(5, 7, config["d_in"], generator=torch.Generator().manual_seed(1))
    W_enc, b_enc, W_dec, b_dec = (tensors[n].double().numpy() for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre = np.maximum((x.double().numpy() - b_dec) @ W_enc + b_enc, 0)
    kth = np.sort(pre, -1)[..., -config["k"], None]
    z = np.where(pre >= kth, pre, 0)
    np.testing.assert_allclose(sae.pre_codes(x), pre, atol=1e-4)
    np.testing.assert_allclose(sae.codes(x), z, atol=1e-4)
    np.testing.assert_allclose(sae.reconstruct(x), z @ W_dec + b_dec, atol=1e-4)


def _without(key):
    return lambda config, tensors: config.pop(key)


def _set(key, value):
    return lambda config, tensors: config.__setitem__(key, value)


def _tensor(name, value):
    return lambda config, tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_without("d_in"), "d_in"),
        (_without("metadata"), "metadata"),
        (_set("metadata", {}), "metadata.site"),
        (_set("k", 0), "k is 0"),
        (_set("k", 65), "between 1 and d_sae"),
        (_set("d_sae", "many"), "many"),
        (_set("architecture", "jumprelu"), "allowed: topk"),
        (_tensor("W_dec", torch.zeros(3, 4)), "W_dec is torch.float32 [3, 4]"),
        (_tensor("b_enc", torch.zeros(64, dtype=torch.int64)), "b_enc is torch.int64"),
        (_tensor("b_dec", torch.full((128,), torch.nan)), "not finite"),
        (lambda config, tensors: tensors.pop("W_enc"), "W_enc is missing"),
    ],
)
def test_a_folder_that_does_not_hold_together_is_refused(tmp_path, tensors, config, spoil, says):
    config, tensors = dict(config), dict(tensors)
    spoil(config, tensors)
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        load_sae(tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_file_that_is_missing_or_cut_short_is_named(sae_folder, file):
    whole = (sae_folder / file).read_bytes()
    (sae_folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=file):
        load_sae(sae_folder)
    (sae_folder / file).unlink()
    with pytest.raises(InputError, match=f"{file} is missing"):
        load_sae(sae_folder)
