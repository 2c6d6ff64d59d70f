"""Variants of the autoencoder in short runs on planted rows: each has the effect it is meant to have."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import optax
import pytest

from revelio_jax.config import SaeConfig, TrainConfig
from revelio_jax.evaluate import evaluate
from revelio_jax.sae import initial, reference, sharding
from revelio_jax.train import train
from revelio_jax.training.optimizer import schedule
from revelio_jax.training.run import restore_run
from revelio_jax.training.step import annealed_k, initial_state, make_train_step

ROWS, WIDTH, LATENTS = 64, 16, 48
SAE = SaeConfig(k=3, k_aux=0)  # AuxK is tested elsewhere and takes most of the compile time
TRAIN = TrainConfig(batch_size=ROWS, learning_rate=1e-2)


def lines(config):
    text = (pathlib.Path(config.run) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def run(planted, steps, sae=SAE, options=TRAIN, mesh=(1, 1), each=lambda before, x, after: None):
    """Train on normalized rows; return the last state and the metrics of every step."""
    mesh = sharding.make_mesh(*mesh, ROWS, LATENTS)
    x = (planted - planted.mean(0)) / planted.std()
    params = initial.initial_params(sae, 0, LATENTS, np.zeros(WIDTH), x, mesh)
    state = initial_state(params, np.zeros(WIDTH), 1.0, sae, options, mesh)
    train_step = make_train_step(sae, options, mesh)
    random, metrics = np.random.default_rng(0), []
    for _ in range(steps):
        x_BD = x[random.choice(len(x), ROWS, replace=False)]
        before = jax.device_get(state)
        state, measured = train_step(state, sharding.put_batch(mesh, x_BD))
        metrics.append({name: float(value) for name, value in measured.items()})
        each(before, x_BD, state)
    return jax.device_get(state), metrics


# batch_topk


def test_batch_topk_keeps_k_a_row_on_average_and_tracks_the_smallest(planted):
    sae = dataclasses.replace(SAE, architecture="batch_topk")
    averages = []

    def each(before, x, after):
        smallest = np.sort(reference.positive(before.params, x), axis=None)[-sae.k * ROWS]
        averages.append(averages[-1] + 0.01 * (smallest - averages[-1]) if averages else smallest)
        np.testing.assert_allclose(after.threshold, averages[-1], rtol=1e-3)

    _, metrics = run(planted, 30, sae, each=each)
    assert [step["l0"] for step in metrics] == [sae.k] * 30
    assert np.ptp(averages) > 0.002 * averages[0]  # it moves, beyond the tolerance above


def test_batch_topk_keeps_the_same_latents_on_a_mesh(planted):
    sae = dataclasses.replace(SAE, architecture="batch_topk")
    one, _ = run(planted, 10, sae)
    split, metrics = run(planted, 10, sae, mesh=(2, 4))
    assert [step["l0"] for step in metrics] == [sae.k] * 10
    np.testing.assert_allclose(split.threshold, one.threshold, rtol=1e-3)


@pytest.mark.slow
def test_batch_topk_fires_as_often_with_its_inference_threshold(variant):
    config = variant("batch_topk")
    result = evaluate(config)
    assert result["l0"] == pytest.approx(config.sae.k, rel=0.15)
    assert result["fvu"] < 0.1


# jumprelu


@pytest.mark.slow
def test_jumprelu_converges_to_k(variant):
    config = variant("jumprelu")
    log = lines(config)
    assert log[0]["l0"] > 1.5 * config.sae.k
    assert log[-1]["l0"] == pytest.approx(config.sae.k, rel=0.15)
    assert evaluate(config)["l0"] == pytest.approx(config.sae.k, rel=0.15)
    assert log[-1]["fvu"] < 0.1
    _, _, state, _ = restore_run(config)
    assert np.ptp(state.params["log_threshold_F"]) > 0.1


# Matryoshka


@pytest.mark.slow
def test_the_first_latents_of_matryoshka_reconstruct_alone(variant, planted):
    config = variant("matryoshka")
    first = round(config.sae.prefixes[0] * LATENTS)

    def fvu(config):
        _, _, state, _ = restore_run(config)
        params, x = jax.device_get(state.params), (planted - state.mean_D) / state.scale
        z = reference.encode(params, x, config.sae.k).at[:, first:].set(0)
        return reference.fvu(x, reference.decode(params, z))

    assert fvu(config) < fvu(variant("topk")) - 0.1


# dense


def test_an_undercomplete_dense_autoencoder_trains(variant, planted):
    config = variant("dense")
    log, result = lines(config), evaluate(config)
    assert log[-1]["fvu"] < 0.7 * log[0]["fvu"]
    assert log[-1]["l0"] > SAE.k
    # Its reconstructions have 8 dimensions, so principal components are a bound.
    variances = np.linalg.eigvalsh(np.cov(planted.T))
    bound = variances[:-8].sum() / variances.sum()
    assert 0.95 * bound < result["fvu"] < 1.5 * bound  # the bound is over all rows, the FVU over held-out rows


def test_a_warning_names_a_dense_autoencoder_that_is_not_undercomplete(base, with_train, tmp_path, capsys):
    sae = dataclasses.replace(base.sae, architecture="dense", latents=16, k_aux=0)
    train(with_train(dataclasses.replace(base, sae=sae), run=str(tmp_path / "a"), steps=1))
    warning = "warning: config.sae.architecture is dense, which is meant to be undercomplete; 16 latents are not"
    assert warning in capsys.readouterr().out
    sae = dataclasses.replace(sae, latents=8)
    train(with_train(dataclasses.replace(base, sae=sae), run=str(tmp_path / "b"), steps=1))
    assert "undercomplete" not in capsys.readouterr().out


# Schedules: of k, of the learning rate, and their compilations


@pytest.mark.slow
def test_k_falls_without_recompilation(variant, compiled):
    config = variant("annealed")
    assert compiled.count("jit(train_step)") == 1
    l0 = {line["step"]: line["l0"] for line in lines(config)}
    assert l0[50] == pytest.approx(12 - 9 * 49 / 300, abs=1)
    falling = [l0[step] for step in range(50, 301, 50)]
    assert falling == sorted(falling, reverse=True)
    assert all(l0[step] <= config.sae.k for step in range(350, 601, 50))
    assert evaluate(config)["l0"] <= config.sae.k


def test_annealed_k_falls_linearly_to_k():
    sae = SaeConfig(k=3, k_start=12, k_anneal_steps=9)
    assert [int(annealed_k(sae, sae.k, step)) for step in (0, 1, 5, 9, 100)] == [12, 11, 7, 3, 3]
    assert annealed_k(SaeConfig(k=3), 3, 5) == 3


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu"])
def test_a_run_compiles_its_step_once(base, with_train, tmp_path, architecture, compiled):
    sae = dataclasses.replace(base.sae, architecture=architecture, k_aux=0)
    config = with_train(dataclasses.replace(base, sae=sae), run=str(tmp_path / "run"), steps=6, ema=0.9)
    config = with_train(config, checkpoint_every=3, every=2)
    train(config)
    assert compiled.count("jit(train_step)") == 1
    compiled.clear()
    train(with_train(config, steps=9, resume=True))
    assert compiled.count("jit(train_step)") == 1


def test_cosine_decay_follows_the_cosine():
    rate = schedule(TrainConfig(steps=100, learning_rate=2.0, decay="cosine", decay_share=0.5))
    for step in (0, 49, 50, 60, 75, 99):
        done = max(0, step - 50) / 50
        assert float(rate(step)) == pytest.approx(1 + np.cos(np.pi * done), abs=1e-6)
    whole = schedule(TrainConfig(steps=100, learning_rate=2.0, decay="cosine", decay_share=1.0))
    assert [float(whole(step)) for step in (0, 50)] == pytest.approx([2.0, 1.0])


# Parameters and products


def test_ema_is_the_moving_average(planted):
    averages = []

    def each(before, x, after):
        start = averages[-1] if averages else before.params
        of = {name: 0.9 * start[name] + 0.1 * np.asarray(after.params[name]) for name in start}
        averages.append(of)

    state, _ = run(planted, 6, options=dataclasses.replace(TRAIN, ema=0.9), each=each)
    for name, value in averages[-1].items():
        np.testing.assert_allclose(state.ema[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        assert not np.allclose(state.ema[name], state.params[name], atol=1e-4), name
    assert state.best_params is state.ema


def test_clip_norm_bounds_the_gradients_of_adam(planted):
    state, metrics = run(planted, 1, options=dataclasses.replace(TRAIN, clip_norm=0.01))
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")  # after one step 0.1 of the gradients
    norm = np.sqrt(sum(np.square(mu / 0.1).sum() for mu in moments.values()))
    assert metrics[0]["grad_norm"] > 0.05  # the metric is the norm before clipping
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_bfloat16_products_train_as_well(planted):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        _, metrics = run(planted, 100, dataclasses.replace(SAE, matmul_dtype=dtype))
        losses[dtype] = np.mean([step["loss"] for step in metrics[-10:]])
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_encode_chunk_and_products_do_not_change_the_result(planted):
    expected, _ = run(planted, 20)
    for fields in ({"encode_chunk": 16}, {"products": "dense"}):
        state, metrics = run(planted, 20, dataclasses.replace(SAE, **fields))
        assert metrics[-1]["fvu"] < metrics[0]["fvu"]
        for name, value in expected.params.items():
            np.testing.assert_allclose(state.params[name], value, atol=5e-4, err_msg=f"{fields} {name}")


@pytest.mark.slow
def test_multi_topk_improves_reconstruction_with_more_latents(planted):
    """The purpose of MultiTopK: evaluation may keep more than k latents."""
    error = {}
    for weight in (0.0, 0.125):
        state, _ = run(planted, 300, dataclasses.replace(SAE, multi_topk=weight))
        x = (planted - planted.mean(0)) / planted.std()
        z = reference.encode(state.params, x, 4 * SAE.k)
        error[weight] = reference.fvu(x, reference.decode(state.params, z))
    assert error[0.125] < 0.9 * error[0.0]
