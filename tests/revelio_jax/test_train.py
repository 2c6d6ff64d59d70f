"""The train command: its files, exact resume, and refused input."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate
from revelio_jax.export import export
from revelio_jax.sae import sharding
from revelio_jax.store import open_store
from revelio_jax.train import train
from revelio_jax.training import checkpoints
from revelio_jax.training.metrics import FIELDS, truncate


def command(path, *arguments):
    return [sys.executable, "-m", "revelio_jax.train", "--config", path, *arguments]


def final_state(config, step=None, data=1, feature=1):
    """Return the state of a checkpoint as numpy arrays."""
    run, d = pathlib.Path(config.run), 16
    latents = d * config.sae.expansion
    mesh = sharding.make_mesh(data, feature, config.train.batch_size, latents)
    step = step or checkpoints.newest_step(run)
    return jax.device_get(checkpoints.restore(run, step, latents, d, config.sae, config.train, mesh))


def lines(config):
    path = pathlib.Path(config.run) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, left), right in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(path))


def test_a_run_learns_and_writes_config_metrics_and_checkpoints(trained):
    run = pathlib.Path(trained.run)
    assert json.loads((run / "config.json").read_text()) == json.loads(trained.to_json())
    log = lines(trained)
    assert [line["step"] for line in log] == list(range(50, 601, 50))
    assert all(tuple(line) == FIELDS for line in log)
    # 24 chunks hold 48 samples; expected samples in 64 rows, relative to 256 samples.
    coverage = 48 * (1 - (47 / 48) ** 64) / (256 * (1 - (255 / 256) ** 64))
    assert np.mean([line["coverage"] for line in log]) == pytest.approx(coverage, abs=0.1)
    assert all(0.5 < line["entropy"] < 1 for line in log)
    assert log[-1]["fvu"] < 0.1 < 0.2 < log[0]["fvu"]
    assert log[-1]["l0"] <= trained.sae.k
    assert checkpoints.newest_step(run) == 600


def test_the_decoder_recovers_the_planted_directions(trained, directions):
    W_dec_FD = final_state(trained).params["W_dec_FD"]
    assert (directions @ W_dec_FD.T).max(1).mean() > 0.95


def test_normalization_uses_the_statistics_of_the_store(trained, planted):
    state = final_state(trained)
    np.testing.assert_allclose(state.mean_D, planted.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.scale, np.sqrt(planted.var(0).mean()), rtol=1e-5)


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(trained, with_train, config_file, tmp_path, monkeypatch):
    config = with_train(trained, run=str(tmp_path / "run"), checkpoint_every=20)
    path = config_file(tmp_path / "config.py", config)
    process = subprocess.Popen(command(path), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while checkpoints.newest_step(tmp_path / "run") < 20 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 20 <= checkpoints.newest_step(tmp_path / "run") < 600
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 590, "loss": 1}\n{"step": 59')  # lines after the checkpoint, the last one incomplete
    # Statistics and initial parameters come from the checkpoint, so these are not called.
    monkeypatch.setattr("revelio_jax.training.run.normalization", None)
    monkeypatch.setattr("revelio_jax.training.loader.first_rows", None)
    resumed = with_train(config, resume=True)
    train(resumed)
    steps = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir())
    assert steps == [560, 580, 600]
    # Parameters, optimizer, dead counters, normalization and step.
    assert_same_bits(final_state(resumed), final_state(trained))
    timings = {"rows_per_s", "step_s", "data_wait_s", "rss_gib"}
    untimed = [[{k: v for k, v in line.items() if k not in timings} for line in lines(c)] for c in (resumed, trained)]
    assert untimed[0] == untimed[1]


@pytest.mark.slow
def test_asynchronous_checkpoints_hold_the_state_of_their_step(trained, with_train, tmp_path, monkeypatch):
    states, save = {}, checkpoints.save

    def copy_and_save(manager, step, state, *others):
        states[step] = jax.device_get(state)
        save(manager, step, state, *others)

    monkeypatch.setattr(checkpoints, "save", copy_and_save)
    config = with_train(trained, run=str(tmp_path / "run"))
    train(config)
    kept = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir())
    assert len(kept) > 1
    for step in kept:
        assert_same_bits(final_state(config, step), states[step])


def test_a_checkpoint_restores_on_another_mesh(trained):
    assert_same_bits(final_state(trained), final_state(trained, data=2, feature=4))


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh(trained, with_train, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    config = with_train(trained, run=str(tmp_path / "run"), steps=620, resume=True)
    train(with_train(config, data=2, feature=4))
    assert lines(config)[-1]["step"] == 620
    assert lines(config)[-1]["fvu"] < 0.1


@pytest.fixture(scope="module")
def two_stores(planted, write_store, tmp_path_factory):
    """Entries of two stores with different means: 3/4 of the rows of a batch come from the smaller one."""
    folder = tmp_path_factory.mktemp("two")
    few = write_store(folder / "few", planted[:1024])
    return f"3:{few}", write_store(folder / "many", planted[1024:] + 1, test="another")


@pytest.mark.slow
def test_a_mixture_on_lanes_resumes_with_the_same_bits(base, with_train, two_stores, planted, tmp_path):
    fields = {"stores": two_stores, "lanes": 4, "steps": 60, "checkpoint_every": 30, "decay_share": 0.0}
    whole = with_train(base, run=str(tmp_path / "whole"), **fields)
    train(whole)
    parts = with_train(whole, run=str(tmp_path / "parts"), steps=30)
    train(parts)
    parts = with_train(parts, steps=60, resume=True)
    train(parts)
    assert_same_bits(final_state(parts), final_state(whole))
    assert lines(parts)[-1]["coverage"] == lines(whole)[-1]["coverage"]
    other = with_train(whole, steps=61, resume=True, stores=(two_stores[0].removeprefix("3:"), two_stores[1]))
    assert_refused(other, "store fingerprint is '1/2 of .*; 1/2 of .*was trained with '3/4 of", tmp_path)
    assert_refused(with_train(whole, steps=61, resume=True, lanes=2), r"data\.lanes is 2, but", tmp_path)

    state, few, many = final_state(whole), planted[:1024].astype(float), planted[1024:] + 1.0
    mean = 0.75 * few.mean(0) + 0.25 * many.mean(0)
    variance = 0.75 * np.square(few - mean).mean(0) + 0.25 * np.square(many - mean).mean(0)
    np.testing.assert_allclose(state.mean_D, mean, rtol=1e-5)
    np.testing.assert_allclose(state.scale, np.sqrt(variance.mean()), rtol=1e-5)

    assert evaluate(whole)["rows"] == pytest.approx(0.1 * 4096, abs=64)
    cfg = json.loads((export(whole) / "cfg.json").read_text())
    shares = {store["fingerprint"]: store["share"] for store in cfg["metadata"]["stores"]}
    assert sorted(shares.values()) == [0.25, 0.75]
    assert cfg["metadata"]["activations"]["count"] == 4096


def test_resuming_a_finished_run_changes_nothing(trained, with_train, capsys):
    before = (pathlib.Path(trained.run) / "metrics.jsonl").read_bytes()
    train(with_train(trained, resume=True))
    assert "is finished: it has 600 of 600 steps" in capsys.readouterr().out
    assert (pathlib.Path(trained.run) / "metrics.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_starts_a_new_run(base, with_train, tmp_path, capsys):
    config = with_train(base, run=str(tmp_path / "run"), steps=2, resume=True)
    train(dataclasses.replace(config, sae=dataclasses.replace(config.sae, dead_after_rows=10**7)))
    output = capsys.readouterr().out
    assert "||mean|| / ||std||" in output
    assert "dead_after_rows is 10,000,000" in output


def test_a_nonfinite_loss_stops_the_run(trained, with_train, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    worse = with_train(trained, run=str(tmp_path / "run"), steps=799, resume=True, learning_rate=1e30)
    with pytest.raises(SystemExit) as stopped:
        train(worse)
    assert "loss is" in stopped.value.code  # a text, which Python prints to stderr before it exits with status 1
    assert "step 60" in stopped.value.code
    assert checkpoints.newest_step(tmp_path / "run") == 600


def test_truncate_keeps_complete_lines_up_to_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def assert_refused(config, match, tmp_path):
    """Assert that training raises InputError and writes no file."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=match):
        train(config)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("section", "fields", "match"),
    [
        ("", {"run": None}, "config.run is not set"),
        ("extract", {"store": None}, "config.extract.store is not set"),
        ("extract", {"store": "no/such/store"}, "it does not exist"),
        ("extract", {"store": "ftp://host/store"}, "unknown scheme ftp"),
        ("data", {"site": "clip.layer.7"}, "config.data.site is 'clip.layer.7'; .* has clip.layer.1"),
        ("train", {"batch_size": 4096}, "config.train.batch_size is 4096, but"),
        ("", {"batch_size": 63, "data": 8}, "config.train.batch_size is 63; .* multiple of the 8"),
        ("mesh", {"feature": 5, "data": 1}, "config.mesh.feature is 5; it must divide the 48"),
        ("mesh", {"feature": 3, "data": None}, "config.mesh.feature is 3; it must divide the 8"),
        ("mesh", {"feature": 4, "data": 4}, "is 4 x 4; there are 8 devices"),
        ("data", {"lanes": 3}, "config.data.lanes is 3; it must divide config.train.batch_size 64"),
        ("data", {"stores": ("nowhere_*",)}, r"config.data.stores has the pattern 'nowhere_\*', which matches"),
        ("mesh", {"data": 0}, "config.mesh.data is 0"),
        ("sae", {"k": 49}, "config.sae.k is 49; it must be at most 48"),
        ("sae", {"k_start": 49, "k_anneal_steps": 9}, "config.sae.k_start is 49; it must be at most 48"),
        ("sae", {"encode_chunk": 2}, "config.sae.encode_chunk is 2; it must be None or at least 3"),
        (
            "sae",
            {"encode_chunk": 11, "architecture": "batch_topk"},
            "config.sae.encode_chunk is 11; it must be None or at least 12",
        ),
        ("sae", {"encode_chunk": 11, "multi_topk": 0.125}, "is 11; it must be None or at least 12"),
        (
            "sae",
            {"encode_chunk": 47, "architecture": "batch_topk", "multi_topk": 0.125},
            "is 47; it must be None or at least 48",
        ),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(base, with_train, tmp_path, section, fields, match):
    config = with_train(base, run=str(tmp_path / "run"))
    if not section:  # fields of several sections
        assert_refused(with_train(config, **fields), match, tmp_path)
        return
    changed = dataclasses.replace(getattr(config, section), **fields)
    assert_refused(dataclasses.replace(config, **{section: changed}), match, tmp_path)


def test_an_existing_run_needs_resume(trained, tmp_path):
    assert_refused(trained, r"pass --config.train.resume=yes", tmp_path)


def test_a_run_that_is_a_file_is_refused(base, with_train, tmp_path):
    (tmp_path / "run").write_text("")
    assert_refused(with_train(base, run=str(tmp_path / "run")), "it must be a folder", tmp_path)


@pytest.mark.parametrize(
    ("section", "fields", "match"),
    [
        ("sae", {"k": 4}, "config.sae.k is 4, but run .* was trained with 3"),
        ("sae", {"aux_alpha": 0.5}, "config.sae.aux_alpha is 0.5"),
        ("train", {"seed": 1}, "config.train.seed is 1"),
        ("train", {"batch_size": 128}, "config.train.batch_size is 128"),
    ],
)
def test_resume_with_other_settings_is_refused(trained, with_train, tmp_path, section, fields, match):
    config = with_train(trained, resume=True, steps=700)
    changed = dataclasses.replace(getattr(config, section), **fields)
    assert_refused(dataclasses.replace(config, **{section: changed}), match, tmp_path)


def test_resume_on_another_store_is_refused(trained, with_train, planted, write_store, tmp_path):
    other = write_store(tmp_path / "other", planted, test="another model")
    assert open_store(other).fingerprint != open_store(trained.extract.store).fingerprint
    config = with_train(trained, resume=True, steps=700)
    config = dataclasses.replace(config, extract=dataclasses.replace(config.extract, store=other))
    assert_refused(config, "store fingerprint is", tmp_path)


def test_an_unfinished_store_is_refused(base, with_train, planted, write_store, tmp_path):
    half = write_store(tmp_path / "half", planted[:512], finish=False)
    config = with_train(base, run=str(tmp_path / "run"))
    assert_refused(
        dataclasses.replace(config, extract=dataclasses.replace(config.extract, store=half)),
        "unfinished",
        tmp_path,
    )


def test_a_store_with_an_unknown_dtype_is_refused(base, with_train, planted, write_store, tmp_path):
    location = write_store(tmp_path / "ints", planted[:512])
    array = tmp_path / "ints/clip.layer.1/activations/zarr.json"
    array.write_text(array.read_text().replace('"float32"', '"int32"').replace("0.0", "0"))
    config = with_train(base, run=str(tmp_path / "run"))
    config = dataclasses.replace(config, extract=dataclasses.replace(config.extract, store=location))
    assert_refused(config, "activations is int32", tmp_path)


def test_a_store_with_equal_rows_is_refused(base, with_train, write_store, tmp_path):
    location = write_store(tmp_path / "equal", np.ones((512, 4), np.float32))
    config = with_train(base, run=str(tmp_path / "run"))
    config = dataclasses.replace(config, extract=dataclasses.replace(config.extract, store=location))
    assert_refused(config, "all rows are equal", tmp_path)


def test_rows_with_nan_are_not_trained_on(base, with_train, planted, write_store, tmp_path):
    rows = planted.copy()
    rows[::50, 3] = np.nan
    location = write_store(tmp_path / "nan", rows)
    config = with_train(base, run=str(tmp_path / "run"), steps=130, decay_share=0.0)  # two epochs
    train(dataclasses.replace(config, extract=dataclasses.replace(config.extract, store=location)))
    assert np.isfinite(lines(config)[-1]["loss"])


@pytest.mark.slow
def test_a_wrong_argument_ends_with_one_line_and_status_2(base, with_train, config_file, tmp_path):
    config = with_train(base, run=str(tmp_path / "run"))
    path = config_file(tmp_path / "config.py", config)
    before = sorted(tmp_path.rglob("*"))
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    wrong = {
        "--config.sae.kk=3": "unknown field config.sae.kk",
        "--config.extract.store=nowhere": "it does not exist",
    }
    for argument, message in wrong.items():
        result = subprocess.run(command(path, argument), capture_output=True, text=True, env=environment)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
