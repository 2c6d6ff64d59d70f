"""SAE folders: valid ones are read exactly, all others are refused in one line."""

import json
import os
import pathlib
import shutil
import subprocess

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from revelio_jax.errors import InputError
from revelio_jax.steering import Steerer
from revelio_jax.steering.sae import load_sae
from tests.helpers import ROOT

SAES = pathlib.Path(__file__).parent / "saes"  # written by the libraries
PEERS = ROOT / ".venv-peers" / "bin" / "python"
FOLDERS = sorted(str(file.parent.relative_to(SAES)) for file in SAES.rglob("cfg.json"))


def refused(folder, site=None) -> str:
    """Return the message that a folder is refused with."""
    with pytest.raises(InputError) as error:
        load_sae(folder, site)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


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


def assert_computes_the_same(folder: pathlib.Path) -> None:
    theirs = load_file(folder / "theirs.safetensors")
    sae = load_sae(folder, "clip.layer.2")
    torch.testing.assert_close(sae.codes(theirs["x"]), theirs["codes"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(theirs["x"]), theirs["reconstruction"], atol=1e-4, rtol=1e-4)
    assert (sae.codes(theirs["x"]) > 0).any()
    assert sae.metadata["site"] == "clip.layer.2"


@pytest.mark.parametrize("name", FOLDERS)
def test_sample_folders_of_other_libraries_compute_what_those_compute(name):
    assert_computes_the_same(SAES / name)


@pytest.mark.peers
def test_folders_of_the_installed_libraries_compute_what_those_compute(tmp_path):
    if not PEERS.exists():
        pytest.skip("SAELens and sparsify are not installed: bash tests/benchmarks/peers.sh")
    script = ROOT / "tests" / "benchmarks" / "peer_saes.py"
    done = subprocess.run([PEERS, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = sorted(file.parent for file in tmp_path.rglob("cfg.json"))
    assert [str(folder.relative_to(tmp_path)) for folder in made] == FOLDERS
    for folder in made:
        assert_computes_the_same(folder)


def test_a_folder_without_a_hook_point_needs_site():
    assert "site='clip.layer.9'" in refused(SAES / "sae_lens_topk")
    with pytest.raises(InputError, match=r"pass one of them as subfolder=: layers\.1, layers\.2"):
        Steerer.from_pretrained(SAES / "sparsify", site="clip.layer.2")
    steerer = Steerer.from_pretrained(SAES / "sparsify", subfolder="layers.2", site="clip.layer.2")
    assert steerer.site == "clip.layer.2"
    with pytest.raises(InputError, match="inside "):
        Steerer.from_pretrained(SAES / "sparsify" / "layers.1", subfolder="../layers.2", site="clip.layer.2")


def test_a_site_other_than_the_folders_is_refused(sae_folder):
    assert "the SAE was trained on 'clip.layer.2'" in refused(sae_folder, "clip.layer.1")
    assert load_sae(sae_folder, "clip.layer.2").metadata["site"] == "clip.layer.2"


def _without(key):
    return lambda config, tensors: config.pop(key)


def _set(key, value):
    return lambda config, tensors: config.__setitem__(key, value)


def _tensor(name, value):
    return lambda config, tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("d_in"), "d_in"),
        (_without("metadata"), "metadata"),
        (_set("metadata", {}), "metadata.site"),
        (_set("metadata", {"site": ["clip"]}), "metadata.site is ['clip']"),
        (_set("metadata", {"site": "clip", "model_id": 7}), "metadata.model_id is 7"),
        (_set("metadata", {"site": "clip\nlayer"}), "metadata.site"),
        (_set("k", 0), "k is 0"),
        (_set("k", 65), "between 1 and d_sae"),
        (_set("k", 10**12), "between 1 and d_sae"),
        (_set("k", True), "k is True"),
        (_set("k", 8.0), "k is 8.0"),
        (_set("d_sae", "many"), "many"),
        (_set("d_sae", 10**12), "W_enc is F32 [128, 64]"),
        (_set("d_in", True), "d_in is True"),
        (_set("d_in", 128.0), "d_in is 128.0"),
        (_set("d_in", -128), "d_in is -128"),
        (_set("architecture", "gated"), "allowed: topk, jumprelu, standard"),
        (_set("architecture", ["topk"]), "allowed: topk, jumprelu, standard"),
        (_set("architecture", "jumprelu"), "threshold is missing"),
        (_set("normalize_activations", "layer_norm"), "allowed: 'none'"),
        (_set("apply_b_dec_to_input", 1), "allowed: true, false"),
        (_tensor("W_dec", torch.zeros(3, 4)), "W_dec is F32 [3, 4]"),
        (_tensor("W_dec", torch.zeros(64, 128, 1)), "W_dec is F32 [64, 128, 1]"),
        (_tensor("b_enc", torch.zeros(64, dtype=torch.int64)), "b_enc is I64"),
        (_tensor("b_enc", torch.zeros(64, dtype=torch.bool)), "b_enc is BOOL"),
        (_tensor("b_dec", torch.full((128,), torch.nan)), "not finite"),
        (_tensor("b_dec", torch.full((128,), 1e300, dtype=torch.float64)), "not finite"),
        (lambda config, tensors: tensors.pop("W_enc"), "W_enc is missing"),
    ],
)
def test_a_malformed_folder_is_refused(tmp_path, tensors, config, spoil, message):
    config, tensors = dict(config), dict(tensors)
    spoil(config, tensors)
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert message in refused(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activation", "groupmax", "allowed: 'topk'"),
        ("transcode", True, "transcode is true"),
        ("input_unit_norm", True, "input_unit_norm is true"),
        ("skip_connection", True, "skip_connection is true"),
        ("num_latents", 0, "encoder.weight is F32 [16, 6]"),  # the default expansion factor is 32
        ("k", None, "k is None"),
    ],
)
def test_an_unsupported_coder_of_sparsify_is_refused(tmp_path, field, value, message):
    folder = shutil.copytree(SAES / "sparsify" / "layers.1", tmp_path / "coder")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {field: value}))
    assert message in refused(folder, "clip.layer.2")


def test_a_folder_of_an_old_version_of_sae_lens_is_refused(tmp_path):
    folder = shutil.copytree(SAES / "sae_lens_standard", tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["sae_lens_version"] = "5.9.1"
    (folder / "cfg.json").write_text(json.dumps(config))
    assert "SAELens 6 or later" in refused(folder, "clip.layer.2")
    # Version 5 kept k and the activation elsewhere, so this folder would be read as a dense SAE.
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if k != "metadata"}))
    assert "SAELens 6 or later" in refused(folder, "clip.layer.2")


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_or_truncated_file_is_named(sae_folder, file):
    whole = (sae_folder / file).read_bytes()
    for part in (whole[: len(whole) // 2], whole[:4], b""):
        (sae_folder / file).write_bytes(part)
        assert file in refused(sae_folder)
    (sae_folder / file).unlink()
    assert f"{file} is missing" in refused(sae_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ('{"k": ' * 5000 + "1" + "}" * 5000, "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        ('{"k": NaN}', "NaN is not a JSON number"),
        ('{"k": ' + "9" * 5000 + "}", "is not valid JSON"),
        ('{"k": 1, "k": 2}', "an object repeats a name"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "bytes of JSON"),
        ("\ud800".encode("utf-16-le", "surrogatepass").decode("latin1"), "is not valid JSON"),
    ],
)
def test_malformed_or_large_json_is_refused(sae_folder, text, message):
    (sae_folder / "cfg.json").write_text(text)
    assert message in refused(sae_folder)


def _weights(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_weights_larger_than_their_file_are_refused_before_allocation(sae_folder):
    file = sae_folder / "sae_weights.safetensors"
    huge = {"dtype": "F32", "shape": [128, 10**12], "data_offsets": [0, 512 * 10**12]}
    for content in (
        _weights({"W_enc": huge}),
        _weights({"W_enc": huge | {"data_offsets": [0, 4]}}, bytes(4)),
        _weights({"W_enc": huge | {"shape": [2**40, 2**40]}}, bytes(4)),
        _weights({"W_enc": huge | {"shape": [-1, 4]}}, bytes(4)),
        (1 << 62).to_bytes(8, "little") + b"{}",
        (90 << 20).to_bytes(8, "little") + b"{}",
        _weights(b"{" + b'"a":' * 50_000),
        _weights(b'{"W_enc":' + b"[" * 50_000),
        _weights([1]),
    ):
        file.write_bytes(content)
        assert "sae_weights.safetensors" in refused(sae_folder)


def test_weights_larger_than_cfg_json_says_are_refused_before_allocation(sae_folder):
    file = sae_folder / "sae_weights.safetensors"
    n = 2**34  # 64 GiB in a sparse file
    whole = _weights({"W_enc": {"dtype": "F32", "shape": [128, n // 128], "data_offsets": [0, 4 * n]}})
    file.write_bytes(whole)
    os.truncate(file, len(whole) + 4 * n)
    assert f"W_enc is F32 [128, {n // 128}]; cfg.json requires" in refused(sae_folder)


def test_only_json_and_safetensors_files_with_fixed_names_are_opened(sae_folder):
    for name in ("pytorch_model.bin", "sae_weights.pt", "sae.pkl", "modeling.py"):
        (sae_folder / name).mkdir()  # opening it would fail
    config = json.loads((sae_folder / "cfg.json").read_text())
    paths = {"weights": "../../secret.safetensors", "_class_name": "os.system", "auto_map": {"a": "/b"}}
    config["metadata"] |= paths
    (sae_folder / "cfg.json").write_text(json.dumps(config))
    assert load_sae(sae_folder).n_latents == 64
    for name, path in paths.items():
        (sae_folder / "cfg.json").write_text(json.dumps(config | {name: path}))
        assert f"{name} is " in refused(sae_folder)
    (sae_folder / "sae_weights.safetensors").unlink()
    assert "is missing" in refused(sae_folder)


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_link_out_of_the_folder_is_refused(sae_folder, tmp_path_factory, file):
    outside = tmp_path_factory.mktemp("outside") / file
    (sae_folder / file).rename(outside)
    (sae_folder / file).symlink_to(outside)
    assert "link" in refused(sae_folder)
    (sae_folder / file).unlink()
    (sae_folder / "inner").mkdir()
    outside.rename(sae_folder / "inner" / file)
    (sae_folder / file).symlink_to(f"inner/{file}")
    assert load_sae(sae_folder).n_latents == 64


def test_weights_of_any_float_dtype_are_read_as_float32(tmp_path, tensors, config):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        save_file({k: t.to(dtype) for k, t in tensors.items()}, tmp_path / "sae_weights.safetensors")
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        sae = load_sae(tmp_path)
        assert sae.W_dec_FD.dtype == torch.float32
        torch.testing.assert_close(sae.W_dec_FD, tensors["W_dec"].to(dtype).float())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["architecture", "d_in", "d_sae", "k", "metadata", "apply_b_dec_to_input", "num_latents", "activation"]
KEYS += ["rescale_acts_by_decoder_norm", "normalize_activations", "expansion_factor", "transcode"]


@hypothesis.settings(
    max_examples=300, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_only_input_errors_come_out_of_mutated_folders(tmp_path, data):
    """Replace or cut bytes of any file, or replace a field of cfg.json or of the header."""
    name = data.draw(st.sampled_from(FOLDERS))
    folder = tmp_path / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SAES / name, folder)
    weights = next(folder.glob("sae*.safetensors"))
    kind = data.draw(st.sampled_from(["field", "header", "bytes"]))
    if kind == "field":
        config = json.loads((folder / "cfg.json").read_text())
        config[data.draw(st.sampled_from(KEYS))] = data.draw(JSON)
        (folder / "cfg.json").write_text(json.dumps(config))
    elif kind == "header":
        whole = weights.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:end])
        entry = header[data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))]
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(
            JSON | st.sampled_from(["F64", "I8", "BOOL", "F8_E4M3"]) | st.lists(st.integers(), max_size=3)
        )
        weights.write_bytes(_weights(header, whole[end:]))
    else:
        file = data.draw(st.sampled_from([folder / "cfg.json", weights]))
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content)))
            content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        file.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    message = ""
    try:
        sae = load_sae(folder, data.draw(st.sampled_from([None, "clip.layer.2"])))
        assert sae.reconstruct(torch.zeros(2, sae.d)).shape == (2, sae.d)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
