"""An SAE folder has the same quality as the run that it was exported from."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from revelio_jax.errors import InputError
from revelio_jax.evaluate import describe, evaluate
from revelio_jax.export import export
from revelio_jax.sae_folder.card import cfg_json


@pytest.fixture
def folder_of(tmp_path):
    """A function that exports a run and returns its SAE folder, and its config with another run."""

    def exported(config):
        shutil.copytree(export(config), tmp_path / "sae")
        return str(tmp_path / "sae"), dataclasses.replace(config, run=str(tmp_path / "imported"))

    return exported


@pytest.mark.parametrize(
    "name", ["topk", pytest.param("jumprelu", marks=pytest.mark.slow), pytest.param("dense", marks=pytest.mark.slow)]
)
def test_an_export_has_the_quality_of_its_run(variant, folder_of, name):
    config = variant(name)
    expected = evaluate(config)
    folder, other = folder_of(config)
    found = evaluate(other, sae=folder)
    for field in ("fvu", "cosine", "l0", "dead_fraction"):
        assert found[field] == pytest.approx(expected[field], rel=1e-4, abs=1e-6)
    assert (found["rows"], found["stores"]) == (expected["rows"], expected["stores"])
    assert found["autoencoder"] == expected["autoencoder"] | {
        "imported": folder,
        "k": expected["autoencoder"]["k"] if name == "topk" else None,
    }
    assert found["step"] is None
    assert json.loads(pathlib.Path(other.run, "evaluation.json").read_text()) == found
    assert "in training" not in describe(found)


def test_a_run_with_checkpoints_is_not_overwritten(trained, folder_of):
    folder, _ = folder_of(trained)
    with pytest.raises(InputError, match="which has checkpoints; with --sae it must be another folder"):
        evaluate(trained, sae=folder)


@pytest.mark.parametrize(
    ("d", "metadata", "message"),
    [
        (8, {}, "an SAE of width 8; it must have width 16"),
        (16, {"site": "clip.layer.9"}, r"an SAE with hook point 'clip\.layer\.9'; the store has 'clip\.layer\.1'"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(trained, with_train, tmp_path, d, metadata, message):
    shapes = {"W_enc": (d, 12), "b_enc": (12,), "W_dec": (12, d), "b_dec": (d,)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(cfg_json("topk", d, 12, 3, metadata)))
    with pytest.raises(InputError, match=message):
        evaluate(with_train(trained, run=str(tmp_path / "imported")), sae=str(tmp_path))
    assert not (tmp_path / "imported").exists()
