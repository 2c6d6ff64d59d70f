"""Evaluation gives the numbers of the reference definition on the held-out rows."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from revelio_jax.errors import InputError
from revelio_jax.evaluate import describe, evaluate
from revelio_jax.evaluation.stability import stability
from revelio_jax.export import export
from revelio_jax.sae import reference
from revelio_jax.sae_folder import reader
from revelio_jax.sae_folder.card import cfg_json
from revelio_jax.training.run import make_order, open_run, restore_run


@pytest.fixture(scope="module")
def result(trained):
    return evaluate(trained)


def test_numbers_equal_the_reference(trained, result):
    _, mixture = open_run(trained)
    state = restore_run(trained).state
    options = trained.train
    order = make_order(trained, mixture)
    x = np.concatenate([mixture.sites[0].read(start, stop) for _, start, stop in order.held_out])
    mean, scale = np.asarray(state.mean_D), float(state.scale)
    z = np.asarray(reference.encode(state.params, (x - mean) / scale, trained.sae.k))
    x_hat = mean + scale * np.asarray(reference.decode(state.params, z), np.float64)
    fvu = np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum()
    cosine = (x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1)
    density = (z > trained.sae.dead_threshold).mean(0)
    assert result["rows"] == len(x)
    assert len(x) % options.batch_size  # the last batch is padded
    assert result["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert result["explained_variance"] == 1 - result["fvu"]
    assert result["cosine"] == pytest.approx(cosine.mean(), rel=1e-5)
    assert result["l0"] == pytest.approx((z > 0).sum(1).mean(), rel=1e-4)
    assert result["dead_fraction"] == pytest.approx((density == 0).mean())
    histogram = np.histogram(np.log10(density[density > 0]), result["density_histogram"]["log10_edges"])[0]
    assert result["density_histogram"]["latents"] == histogram.tolist()


def test_quality_on_planted_rows(result):
    assert result["fvu"] < 0.1
    assert result["cosine"] > 0.99
    assert result["dead_fraction"] <= 1 / 3  # 48 latents for 24 directions
    assert 0 <= result["dead_fraction_train"] <= 0.25


def test_evaluation_json_holds_the_result(trained, result):
    path = pathlib.Path(trained.run) / "evaluation.json"
    assert json.loads(path.read_text()) == result
    assert result["step"] == 600
    assert not list(path.parent.glob("*.part"))


def test_a_mesh_gives_the_same_numbers(trained, with_train, result):
    split = evaluate(with_train(trained, data=2, feature=4))
    assert split["fvu"] == pytest.approx(result["fvu"], rel=1e-4)
    assert split["density_histogram"] == result["density_histogram"]


def test_a_run_without_a_matching_checkpoint_is_refused(trained, base, with_train, tmp_path):
    with pytest.raises(InputError, match="has no checkpoint; run revelio train"):
        evaluate(with_train(base, run=str(tmp_path / "none")))
    with pytest.raises(InputError, match=r"config\.sae\.k is 2"):
        evaluate(dataclasses.replace(trained, sae=dataclasses.replace(trained.sae, k=2)))
    assert not list(tmp_path.iterdir())


def test_stability_compares_the_decoder_with_the_exports_of_other_runs(trained, tmp_path):
    export(trained)
    W_dec = reader.read_folder(pathlib.Path(trained.run, "export")).W_dec_FD
    other = tmp_path / "other" / "export"
    shutil.copytree(pathlib.Path(trained.run, "export"), other)
    tensors = load_file(other / reader.WEIGHTS)
    tensors["W_dec"] = tensors["W_dec"][::-1].copy()
    tensors["W_dec"][:12] *= -1
    save_file(tensors, other / reader.WEIGHTS)
    result = evaluate(trained, [trained.run, str(tmp_path / "other")])
    same = result["stability"][trained.run]
    assert same == {"latents": 48, "mean_cosine": pytest.approx(1, abs=1e-5), "shared": 1, "matching": "hungarian"}
    assert result["stability"][str(tmp_path / "other")] == stability(W_dec, tensors["W_dec"])
    assert f"{trained.run}: 100.0% of 48 matched latents have a cosine above 0.7" in describe(result)


def test_stability_refuses_runs_without_export_or_of_another_width(trained, tmp_path):
    with pytest.raises(InputError, match=r"cfg\.json is missing"):
        evaluate(trained, [str(tmp_path)])
    folder = tmp_path / "wide" / "export"
    folder.mkdir(parents=True)
    W_dec = np.ones((2, 3), np.float32)
    tensors = {
        "W_enc": W_dec.T.copy(),
        "b_enc": np.zeros(2, np.float32),
        "W_dec": W_dec,
        "b_dec": np.zeros(3, np.float32),
    }
    save_file(tensors, folder / reader.WEIGHTS)
    (folder / reader.CONFIG).write_text(json.dumps(cfg_json("topk", 3, 2, 1, {})))
    with pytest.raises(InputError, match=r"--compare is .* an SAE of width 3; it must have width 16"):
        evaluate(trained, [str(tmp_path / "wide")])
