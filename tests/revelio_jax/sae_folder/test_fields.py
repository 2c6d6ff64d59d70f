"""Fields and tensors of other libraries: supported exactly, ignored because harmless, or refused by name."""

import json
import pathlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from revelio_jax.errors import InputError
from revelio_jax.steering.sae import load_sae
from tests.helpers import ROOT

SAES = ROOT / "tests" / "revelio_jax" / "steering" / "saes"  # written by the libraries


def refused(folder: pathlib.Path, site: str | None = None) -> str:
    """Return the message that a folder is refused with, one line."""
    with pytest.raises(InputError) as error:
        load_sae(folder, site)
    assert "\n" not in str(error.value)
    return str(error.value)


def theirs_of_saeuron(folder: pathlib.Path, x_ND: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and reconstruction as SAeUron's scripts for images compute them (SAE/sae.py, scripts/).

    The scripts set batch_topk and sample_topk to false after loading: pre_acts, then topk(k) of each position, then
    decode.
    """
    t = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    pre_NF = torch.nn.functional.relu((x_ND.double() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    values, indices = pre_NF.topk(k, sorted=False)
    codes_NF = torch.zeros_like(pre_NF).scatter(-1, indices, values)
    return codes_NF, codes_NF @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("training", [{}, {"batch_topk": True}, {"sample_topk": True, "input_unit_norm": False}])
def test_saes_of_saeuron_compute_what_its_scripts_compute(tmp_path, training):
    folder = shutil.copytree(SAES / "sparsify" / "layers.1", tmp_path / "unet.up_blocks.1.attentions.1")
    fields = {"expansion_factor": 16, "normalize_decoder": True, "num_latents": 16, "k": 3, "d_in": 6}
    fields |= {"batch_topk": False, "sample_topk": False, "input_unit_norm": False, "multi_topk": False}
    (folder / "cfg.json").write_text(json.dumps(fields | training))
    sae = load_sae(folder, "unet.up_blocks.1.attentions.1")
    x_ND = 3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    codes_NF, reconstruction_ND = theirs_of_saeuron(folder, x_ND, 3)
    torch.testing.assert_close(sae.codes(x_ND).double(), codes_NF, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x_ND).double(), reconstruction_ND, atol=1e-4, rtol=1e-4)


def test_a_folder_of_a_future_version_is_refused(tmp_path):
    folder = shutil.copytree(SAES / "sae_lens_topk", tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    for version in (2, "2.0"):
        config["metadata"]["format_version"] = version
        (folder / "cfg.json").write_text(json.dumps(config))
        line = refused(folder, "clip.layer.2")
        assert f"metadata.format_version is {version!r}; this version of revelio_jax reads 1" in line
    config["metadata"]["format_version"] = 1
    (folder / "cfg.json").write_text(json.dumps(config))
    load_sae(folder, "clip.layer.2")


@pytest.mark.parametrize("name", ["sparsify/layers.1", "sae_lens_topk"])
def test_unknown_fields_and_tensors_are_refused_by_name(tmp_path, name):
    folder = shutil.copytree(SAES / name, tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    for value in (True, 1, 2.5, "layer_norm", ["a"], {"a": 1}):
        (folder / "cfg.json").write_text(json.dumps(config | {"an_unknown_option": value}))
        assert f"an_unknown_option is {value!r}; this field is unknown" in refused(folder, "clip.layer.2")
    off = dict.fromkeys("abcdefg", False) | {"b": None, "c": 0, "d": "", "e": "none", "f": [], "g": {}}
    (folder / "cfg.json").write_text(json.dumps(config | off))
    load_sae(folder, "clip.layer.2")
    weights = next(folder.glob("sae*.safetensors"))
    save_file(load_file(weights) | {"r_mag": torch.ones(16)}, weights)
    assert "tensor r_mag is unknown" in refused(folder, "clip.layer.2")


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm", "expected_average_only_in", "new"])
def test_normalization_at_run_time_is_refused_by_name(tmp_path, normalization):
    folder = shutil.copytree(SAES / "sae_lens_topk", tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"normalize_activations": normalization}))
    assert f"normalize_activations is '{normalization}'; allowed: 'none'" in refused(folder, "clip.layer.2")


def test_fields_of_training_are_ignored(tmp_path):
    """SAELens writes them into checkpoints of its trainer."""
    folder = shutil.copytree(SAES / "sae_lens_topk", tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    trained = {"decoder_init_norm": 0.1, "use_sparse_activations": True, "aux_loss_coefficient": 1.0}
    (folder / "cfg.json").write_text(json.dumps(config | trained))
    theirs = load_file(folder / "theirs.safetensors")
    codes_NF = load_sae(folder, "clip.layer.2").codes(theirs["x"])
    torch.testing.assert_close(codes_NF, theirs["codes"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparsify_weights_of_half_precision_are_read_exactly(tmp_path, dtype):
    folder = shutil.copytree(SAES / "sparsify" / "layers.1", tmp_path / "coder")
    weights = folder / "sae.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights)
    sae = load_sae(folder, "clip.layer.2")
    assert torch.equal(sae.W_enc_DF, load_file(weights)["encoder.weight"].float().T)
    x_ND = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    codes_NF, reconstruction_ND = theirs_of_saeuron(folder, x_ND, 3)
    torch.testing.assert_close(sae.codes(x_ND).double(), codes_NF, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x_ND).double(), reconstruction_ND, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["state_dict.pth", "ae.pt", "pytorch_model.bin", "sae.pkl", "last.ckpt"])
def test_a_folder_of_pickles_says_how_to_convert_them(tmp_path, name, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    torch.save({"W_enc": torch.zeros(2, 3)}, tmp_path / name)
    message = refused(tmp_path)
    assert f"{name} is not opened" in message
    code = message.partition("convert it with ")[2].partition(" and write cfg.json")[0]
    monkeypatch.chdir(tmp_path)
    exec(f"import safetensors.torch, torch\n{code}")
    assert load_file(tmp_path / "sae_weights.safetensors")["W_enc"].shape == (2, 3)
