"""Export: the folded tensors give the same latents and reconstructions on rows of the pipeline."""

import dataclasses
import json
import pathlib
import subprocess

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from revelio_jax.config import Config
from revelio_jax.evaluate import evaluate
from revelio_jax.evaluation.quality import make_reconstruct
from revelio_jax.export import export
from revelio_jax.sae import SparseAutoencoder, forms, sharding
from revelio_jax.sae.module import BATCH_SLOTS
from revelio_jax.training import checkpoints
from revelio_jax.training.run import restore_run
from tests.helpers import ROOT


def encode_decode(tensors, k, x):
    """Return latents and reconstruction, computed as in SAELens for topk with apply_b_dec_to_input."""
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    top = np.argsort(-pre, 1, kind="stable")[:, :k]
    z = np.zeros_like(pre)
    np.put_along_axis(z, top, np.maximum(np.take_along_axis(pre, top, 1), 0), 1)
    return z, z @ tensors["W_dec"] + tensors["b_dec"]


@pytest.fixture(scope="module")
def folder(trained):
    evaluate(trained)
    return export(trained)


def test_the_fold_is_exact(trained, folder, planted):
    _, _, state, _ = restore_run(trained)
    mesh = sharding.make_mesh(1, 1, 64, 48)
    x = planted[:64]
    x_hat, _, _ = make_reconstruct(trained.sae, 1, mesh)(state, x, np.zeros((64, 1), np.int32))
    mean, scale = np.asarray(state.mean_D), float(state.scale)
    latents, reconstruction = encode_decode(load_file(folder / "sae_weights.safetensors"), trained.sae.k, x)

    params = {name: np.asarray(value, np.float64) for name, value in state.params.items()}
    unfolded = {"W_enc": params["W_enc_FD"].T, "b_enc": params["b_enc_F"]}
    unfolded |= {"W_dec": params["W_dec_FD"], "b_dec": params["b_dec_D"]}
    trained_latents, _ = encode_decode(unfolded, trained.sae.k, (x - mean) / scale)

    size = np.abs(x).max()
    np.testing.assert_allclose(reconstruction, mean + scale * np.asarray(x_hat), atol=1e-5 * size)
    np.testing.assert_allclose(latents, scale * trained_latents, atol=1e-5 * size)
    assert scale != pytest.approx(1, abs=0.1)  # with a scale of 1 the test would check nothing


ARCHITECTURES = {
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "dense": "standard",
    "ema": "topk",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def exported(request, variant):
    """The name, config and SAE folder of every architecture, and of a run with a moving average."""
    config = variant(request.param)
    return request.param, config, export(config)


@pytest.fixture(scope="module")
def expected(exported, planted):
    """The latents and reconstructions of 256 rows by the trained model, in the units of the stored rows."""
    _, config, _ = exported
    _, _, state, mesh = restore_run(config)
    latents = len(state.params["b_enc_F"])
    sae = forms.resolved(config.sae, latents, mesh)

    def local(params, threshold, x_BD):
        model = SparseAutoencoder(params, sae)
        code = model.infer(x_BD, threshold)
        if code.indices is None:
            return code.values, model.decode(code)
        rows_B1 = np.arange(len(x_BD))[:, None]
        z_BF = jax.numpy.zeros((len(x_BD), latents)).at[rows_B1, code.indices].add(code.values)
        return z_BF, model.decode(code)

    mean, scale = np.asarray(state.mean_D), float(state.scale)
    specs = (sharding.params(config.sae.architecture), sharding.REPLICATED, sharding.BATCH)
    outs = (P("data", "feature"), sharding.BATCH)
    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs))
    z, x_hat = run(state.best_params, state.threshold, (planted[:256] - mean) / scale)
    return scale * np.asarray(z), mean + scale * np.asarray(x_hat)


def assert_equals(latents, reconstruction, expected, config):
    z, x_hat = expected
    if config.sae.architecture == "batch_topk":  # only rows with fewer latents than slots
        free = (z > 0).sum(1) < BATCH_SLOTS * config.sae.k
        assert free.mean() > 0.9
        latents, reconstruction, z, x_hat = latents[free], reconstruction[free], z[free], x_hat[free]
    size = np.abs(x_hat).max()
    np.testing.assert_allclose(latents, z, atol=1e-5 * size)
    np.testing.assert_allclose(reconstruction, x_hat, atol=1e-5 * size)


def test_the_folder_of_every_architecture_gives_the_same_latents(exported, expected, planted):
    name, config, folder = exported
    cfg, tensors = (
        json.loads((folder / "cfg.json").read_text()),
        load_file(folder / "sae_weights.safetensors"),
    )
    assert cfg["architecture"] == ARCHITECTURES[name]
    assert cfg["metadata"]["architecture"] == config.sae.architecture
    pre = (planted[:256] - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    if cfg["architecture"] == "topk":
        z = encode_decode(tensors, cfg["k"], planted[:256])[0]
    elif cfg["architecture"] == "jumprelu":
        assert tensors["threshold"].shape == tensors["b_enc"].shape
        z = np.maximum(pre, 0) * (pre > tensors["threshold"])
    else:
        z = np.maximum(pre, 0)
    assert ("threshold" in tensors) == (cfg["architecture"] == "jumprelu")
    assert_equals(z, z @ tensors["W_dec"] + tensors["b_dec"], expected, config)


PEERS = ROOT / ".venv-peers" / "bin" / "python"


@pytest.fixture(scope="module")
def in_sae_lens(variant, planted, tmp_path_factory):
    """The latents and reconstructions of the same rows by SAELens, for every folder."""
    if not PEERS.exists():
        pytest.skip("SAELens is not installed: bash tests/benchmarks/peers.sh")
    folders = [export(variant(name)) for name in ARCHITECTURES]
    rows, out = (tmp_path_factory.mktemp("sae_lens") / name for name in ("rows.npy", "out.npz"))
    np.save(rows, planted[:256])
    script = ROOT / "tests" / "benchmarks" / "in_sae_lens.py"
    done = subprocess.run([PEERS, script, rows, out, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = np.load(out)
    return {
        name: (theirs[f"latents{index}"], theirs[f"reconstruction{index}"]) for index, name in enumerate(ARCHITECTURES)
    }


@pytest.mark.peers
def test_sae_lens_reads_the_folder_and_gives_the_same(exported, expected, in_sae_lens):
    name, config, _ = exported
    assert_equals(*in_sae_lens[name], expected, config)


def test_the_moving_average_is_exported(variant):
    config = variant("ema")
    mesh = sharding.make_mesh(1, 1, 64, 48)
    state = checkpoints.restore(pathlib.Path(config.run), 600, 48, 16, config.sae, config.train, mesh)
    tensors = load_file(export(config) / "sae_weights.safetensors")
    np.testing.assert_array_equal(tensors["W_dec"], state.ema["W_dec_FD"])
    assert np.abs(tensors["W_dec"] - state.params["W_dec_FD"]).max() > 1e-4


def test_the_card_states_the_number_of_active_latents(variant):
    card = {name: (export(variant(name)) / "README.md").read_text() for name in ARCHITECTURES}
    assert "at most 3 active on a row" in card["topk"]
    assert "about 3 active on a row" in card["jumprelu"]
    assert "JumpReLU(" in card["batch_topk"]
    assert "# Dense autoencoder" in card["dense"]
    assert "base_model" not in card["topk"]  # a folder is not a model id of the hub


def test_steering_computes_the_same_for_every_architecture(exported, expected, planted):
    torch = pytest.importorskip("torch")
    from revelio_jax.steering.sae import load_sae

    _, config, folder = exported
    sae, x = load_sae(folder), torch.from_numpy(planted[:256])
    assert_equals(sae.codes(x).numpy(), sae.reconstruct(x).numpy(), expected, config)


def test_all_files_have_the_same_permissions(folder):
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_tensors_are_float32_with_unit_decoder_rows(trained, folder):
    tensors = load_file(folder / "sae_weights.safetensors")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == {"W_enc": (16, 48), "b_enc": (48,), "W_dec": (48, 16), "b_dec": (16,)}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(np.linalg.norm(tensors["W_dec"], axis=1), np.ones(48), rtol=1e-5)


def test_cfg_has_the_fields_of_saelens_and_steering(trained, folder):
    cfg = json.loads((folder / "cfg.json").read_text())
    metadata = cfg.pop("metadata")
    assert cfg == {
        "architecture": "topk",
        "d_in": 16,
        "d_sae": 48,
        "k": 3,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    assert metadata["site"] == "clip.layer.1"
    assert metadata["sites"] == [{"name": "clip.layer.1", "width": 16}]
    assert metadata["model_id"] == "planted"
    assert metadata["family"] == "sd"
    assert metadata["value"] == "output"
    assert metadata["training"]["steps"] == 600
    assert metadata["evaluation"]["fvu"] < 0.1
    assert metadata["activations"]["count"] == 4096


def test_a_second_export_replaces_the_first(trained, folder):
    (folder / "left.txt").write_text("")
    assert export(trained) == folder
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "cfg.json", "sae_weights.safetensors"]
    assert not list(pathlib.Path(trained.run).glob("export.*"))
    assert "FVU" in (folder / "README.md").read_text()


def test_the_evaluation_of_another_step_is_left_out(trained, folder):
    path = pathlib.Path(trained.run) / "evaluation.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"step": 7}))
    cfg = json.loads((export(trained) / "cfg.json").read_text())
    path.write_text(before)
    assert cfg["metadata"]["evaluation"] is None


def test_without_normalization_nothing_is_folded(base, with_train, tmp_path):
    from revelio_jax.train import train

    config: Config = with_train(base, run=str(tmp_path / "run"), steps=5)
    config = dataclasses.replace(config, sae=dataclasses.replace(config.sae, normalize="none"))
    train(config)
    tensors = load_file(export(config) / "sae_weights.safetensors")
    _, _, state, _ = restore_run(config)
    np.testing.assert_array_equal(tensors["b_dec"], state.params["b_dec_D"])
    np.testing.assert_array_equal(tensors["b_enc"], state.params["b_enc_F"])
