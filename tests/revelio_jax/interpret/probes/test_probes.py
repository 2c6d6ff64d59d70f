"""Probes on stores whose labels are encoded in means, only in the layout, or not at all."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents import stream
from revelio_jax.interpret.probes import command, diff_c, experiment, features, linear

SAMPLES, TIMESTEPS, POSITIONS, D = 120, (1, 501), 16, 4


@pytest.fixture(scope="session")
def probed(tmp_path_factory, write_samples, write_sae) -> str:
    """A run whose store has three label columns; three samples have no rows.

    "mean" shifts the first coordinate, at timestep 501 only. "layout" makes the left or the right half bright and
    leaves the mean unchanged. "nothing" is random.
    """
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("probed")
    mean, layout, nothing = random.integers(0, (3, 2, 2), (SAMPLES, 3)).T
    x = random.normal(size=(SAMPLES, len(TIMESTEPS), 4, 4, D)).astype(np.float32)
    x[:, 1, ..., 0] += 4 * mean[:, None, None]
    x[layout == 0, :, :, :2, 1] += 3
    x[layout == 0, :, :, 2:, 1] -= 3
    x[layout == 1, :, :, :2, 1] -= 3
    x[layout == 1, :, :, 2:, 1] += 3
    skipped = [5, 17, 40]
    there = np.setdiff1d(np.arange(SAMPLES), skipped)
    samples = [
        {"prompt": f"{i}", "mean": "abc"[mean[i]], "layout": "lr"[layout[i]], "nothing": "xy"[nothing[i]],
         "thing": f"{i // 2}", "one": "same"}
        for i in range(SAMPLES)
    ]  # fmt: skip
    store = write_samples(
        folder / "store",
        "unet.mid_block",
        x[there].reshape(-1, D),
        np.repeat(there, 2 * POSITIONS),
        np.tile(np.arange(POSITIONS), 2 * len(there)),
        np.tile(np.repeat(TIMESTEPS, POSITIONS), len(there)),
        samples,
        skipped=skipped,
        extract={"mode": "generate", "height": 32, "width": 32},
        model={"id": "a/model", "family": "sd"},
    )
    W = np.concatenate([np.eye(D), -np.eye(D)], axis=1)
    write_sae(folder / "run" / "export", W, np.zeros(2 * D), W.T, np.zeros(D), k=2 * D, site="unet.mid_block")
    config = {"run": "elsewhere", "extract": {"store": store}, "data": {"site": "unet.mid_block"}}
    (folder / "run" / "config.json").write_text(json.dumps(config))
    return str(folder / "run")


def rows_of(run, tmp_path, *flags) -> dict:
    out = tmp_path / "probes.json"
    command.main([run, *flags, "--out", str(out)])
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(out.read_text())["rows"]
    return {(r["label"], r["timestep"], r["probe"], r["input"]): r for r in rows}


@pytest.mark.slow
def test_the_linear_probe_predicts_only_labels_encoded_in_the_means(probed, tmp_path):
    rows = rows_of(probed, tmp_path, "--probe=linear", "--label=mean", "--label=layout", "--label=nothing")
    assert len(rows) == 3 * 2 * 2
    for of in experiment.INPUTS:
        assert rows["mean", 501, "linear", of]["accuracy"] > 0.95
        assert rows["mean", 1, "linear", of]["low"] < 1 / 3
        for label in ("layout", "nothing"):
            for timestep in TIMESTEPS:
                row = rows[label, timestep, "linear", of]
                assert row["low"] < 0.5 < row["high"]
    row = rows["mean", 501, "linear", "activations"]
    assert row["parameters"] == (D + 1) * 3
    assert row["trained_on"] + row["tested_on"] == SAMPLES - 3
    assert row["low"] < row["accuracy"] <= row["high"] <= 1
    assert row["inference_ms"] > 0


@pytest.mark.slow
def test_diff_c_predicts_a_layout_that_does_not_change_the_means(probed, tmp_path):
    flags = "--probe=diff_c", "--label=layout", "--width=16", "--epochs=20", "--rate=0.01"
    rows = rows_of(probed, tmp_path, *flags)
    assert set(rows) == {("layout", t, "diff_c", of) for t in TIMESTEPS for of in experiment.INPUTS}
    assert min(row["accuracy"] for row in rows.values()) > 0.9


@pytest.mark.slow
def test_existing_results_are_not_trained_again(probed, tmp_path, monkeypatch):
    flags = "--probe=linear", "--label=mean", "--apart=thing"
    rows = rows_of(probed, tmp_path, *flags)
    kept = dict(list(rows.items())[:-1])
    out = tmp_path / "probes.json"
    out.write_text(json.dumps({"rows": list(kept.values())}))
    trained = []
    fit = linear.train
    monkeypatch.setattr(linear, "train", lambda *arguments: trained.append(arguments) or fit(*arguments))
    again = rows_of(probed, tmp_path, *flags)
    assert len(trained) == 1
    assert {key: again[key] for key in kept} == kept
    assert again.keys() == rows.keys()
    rows_of(probed, tmp_path, *flags, "--width=7")  # only those of Diff-C
    assert len(trained) == 1
    command.main([probed, *flags, "--seed=1", "--out", str(out)])
    assert len(trained) == 1 + len(rows)
    assert len(json.loads(out.read_text())["rows"]) == 2 * len(rows)  # rows of the other seed are kept


def test_apart_never_splits_the_samples_of_a_value(probed):
    probed_run = experiment.open_run(probed, ("mean",), experiment.ProbeSettings("thing", 0, 8, 1, 0.1))
    parts = probed_run.labels["mean"][1]
    thing = np.arange(SAMPLES) // 2
    assert not set(thing[parts.test]) & set(thing[np.concatenate([parts.train, parts.validation])])
    assert not {5, 17, 40} & set(parts.all)


@pytest.mark.slow
def test_features_equal_plain_loops(probed):
    probed_run = experiment.open_run(probed, ("mean",), experiment.ProbeSettings("", 0, 8, 1, 0.1))
    rows = [(batch.x_ND.copy(), *batch[1:]) for batch in stream.batches(probed_run.site, 8)]
    x, sample, position, timestep = (np.concatenate(part) for part in zip(*rows, strict=True))
    dense = np.maximum(x @ probed_run.latents.W_enc_DF, 0)
    for batch_size in (24, 4096):  # 24 cuts maps of 16 positions in two
        means = features.means(probed_run.site, probed_run.latents, SAMPLES, list(TIMESTEPS), batch_size)
        numbers = np.array([0, 7, 119])
        maps = features.maps(probed_run.site, None, 501, (4, 4), numbers, batch_size)
        of_latents = features.maps(probed_run.site, probed_run.latents, 501, (4, 4), numbers, batch_size)
        for i, number in enumerate(numbers):
            here = (sample == number) & (timestep == 501)
            np.testing.assert_allclose(means.at(501, numbers, False)[i], x[here].mean(0), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(means.at(501, numbers, True)[i], dense[here].mean(0), rtol=1e-5, atol=1e-6)
            order = np.argsort(position[here])
            np.testing.assert_array_equal(maps[i].reshape(16, D), x[here][order])
            np.testing.assert_allclose(of_latents[i].reshape(16, 2 * D), dense[here][order], rtol=1e-5, atol=1e-6)
    assert (means.rows[5] == 0).all()


def test_the_linear_probe_minimizes_its_loss():
    random = np.random.default_rng(0)
    x, wanted = random.normal(size=(60, 5)).astype(np.float32), random.integers(0, 3, 60).astype(np.int32)
    strengths = np.float32([0.01, 1.0])
    W, b = linear.fit(x, wanted, strengths, 3)
    for i, strength in enumerate(strengths.astype(np.float64)):

        def loss(params, strength=strength):
            W, b = params[:15].reshape(5, 3), params[15:]
            logits = x.astype(np.float64) @ W + b
            each = np.log(np.exp(logits).sum(1)) - logits[np.arange(60), wanted]
            return each.mean() + 0.5 * strength * (W**2).sum()

        best = scipy.optimize.minimize(loss, np.zeros(18), tol=1e-10)
        assert loss(np.concatenate([np.ravel(W[i]), b[i]]).astype(np.float64)) == pytest.approx(best.fun, abs=1e-5)


@pytest.mark.slow
def test_diff_c_has_the_layers_of_the_paper_and_is_deterministic():
    maps, wanted = np.random.default_rng(0).normal(size=(20, 9, 9, 3)).astype(np.float32), np.arange(20) % 2
    model, again = (diff_c.train(maps, wanted, 2, 8, 1, 1e-3, seed=0) for _ in range(2))
    kernels = 9 * (3 * 8 + 3 * 8 * 8) + 4 * 8
    norms = 4 * 2 * 8
    assert diff_c.parameters(model) == kernels + norms + 8 * 2 + 2
    np.testing.assert_array_equal(diff_c.logits(model, maps), diff_c.logits(again, maps))
    np.testing.assert_array_equal(diff_c.logits(model, maps), diff_c.logits(model, maps))  # no dropout


@pytest.mark.slow
def test_a_hook_point_without_a_map_gets_no_diff_c(write_samples, write_sae, tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    samples = [{"prompt": str(i), "sign": "np"[int(x[i, 0] > 0)]} for i in range(40)]
    none = np.full(40, -1)
    store = write_samples(tmp_path / "store", "clip.layer.1", x, np.arange(40), 0 * none, none, samples)
    run = tmp_path / "run"
    write_sae(run / "export", np.eye(4), np.zeros(4), np.eye(4), np.zeros(4), k=4)
    (run / "config.json").write_text(json.dumps({"extract": {"store": store}}))
    rows = rows_of(str(run), tmp_path)
    expected = {("sign", -1, probe, of) for probe in ("linear", "sparse") for of in experiment.INPUTS}
    assert set(rows) == expected | {("sign", -1, "absorption", "latents")}
    assert 0 <= rows["sign", -1, "absorption", "latents"]["full_absorption"] <= 1
    printed = capsys.readouterr()
    assert "clip.layer.1 do not form a map; diff_c is left out" in printed.err
    row = rows["sign", -1, "sparse", "latents"]
    assert row["auroc"]["1"] == 1.0  # the first coordinate alone separates the classes
    assert [best["feature"] for best in row["best_features"].values()] == [0, 0]
    assert "clip.layer.1, sign: sparse on latents: AUROC k 1 1.000, k 2 " in printed.out


@pytest.mark.slow
def test_maps_beyond_the_memory_limit_are_left_out(probed, tmp_path, capsys):
    rows = rows_of(probed, tmp_path, "--probe=diff_c", "--label=mean", "--width=4", "--epochs=1",
                    f"--memory={10 * SAMPLES * 16 * D / 2**30}")  # fmt: skip
    assert {key[3] for key in rows} == {"activations"}
    assert "maps of latents take" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--label=shade",), "--label is 'shade'; it must be a sample column of"),
        (("--label=one",), "--label is 'one'"),
        (("--apart=shade",), "--apart is 'shade'; it must be a sample column of"),
        (("--out=no/such/probes.json",), "--out is no/such/probes.json"),
        (("--out=probes.png",), "it must end in .json"),
        (("--width=0",), "0 is not a positive integer"),
        (("--rate=nan",), "nan is not a number above 0"),
        (("--memory=-1",), "-1 is not a number above 0"),
        (("--seed=-1",), "-1 is not an integer from 0"),
        (("--probe=deep",), "invalid choice: 'deep'"),
    ],
)
def test_bad_input_is_one_line(probed, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        command.main([probed, *flags])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json; it must be a run folder"):
        command.main([str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_exits_with_status_2_on_bad_input(tmp_path):
    command = [sys.executable, "-m", "revelio_jax.interpret.probes", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
