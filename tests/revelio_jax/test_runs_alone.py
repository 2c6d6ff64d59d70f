"""Export needs the run folder alone, reads no state of Adam, and works while the run goes on."""

import dataclasses
import json
import multiprocessing
import pathlib
import shutil

import jax
import pytest
import tensorstore as ts

import revelio_jax.train as train_module
from revelio_jax.errors import InputError
from revelio_jax.evaluate import evaluate
from revelio_jax.export import export
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints
from revelio_jax.training.run import restore_run


@pytest.fixture
def moved(trained, with_train, tmp_path):
    """The config of a run whose store is gone."""
    shutil.copytree(trained.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/export", ignore_errors=True)
    config = with_train(trained, run=str(tmp_path / "run"))
    return dataclasses.replace(config, extract=dataclasses.replace(config.extract, store=str(tmp_path / "gone")))


def test_an_export_without_the_store_has_the_same_files(trained, moved):
    theirs, ours = export(trained), export(moved)
    names = sorted(path.name for path in theirs.iterdir())
    assert sorted(path.name for path in ours.iterdir()) == names
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_an_evaluation_names_the_missing_store(moved):
    with pytest.raises(InputError, match=r"store .*gone: it does not exist"):
        evaluate(moved)


@pytest.fixture
def with_moved_store(trained, moved, tmp_path):
    """The config of a copy of the run, with the store at another place."""
    shutil.copytree(trained.extract.store, tmp_path / "elsewhere" / "renamed")
    store = str(tmp_path / "elsewhere" / "renamed")
    return dataclasses.replace(moved, extract=dataclasses.replace(moved.extract, store=store))


def test_a_run_is_evaluated_and_continued_with_a_moved_store(trained, with_moved_store, with_train, tmp_path):
    here, there = evaluate(trained), evaluate(with_moved_store)
    assert {**there, "seconds": 0} == {**here, "seconds": 0}
    train(with_train(with_moved_store, steps=601, resume=True))
    assert checkpoints.newest_step(tmp_path / "run") == 601


def test_an_export_still_checks_the_configuration(moved, with_train):
    with pytest.raises(InputError, match=r"config\.sae\.k is 2, but run .* was trained with 3"):
        export(dataclasses.replace(moved, sae=dataclasses.replace(moved.sae, k=2)))
    with pytest.raises(InputError, match=r"config\.data\.site is 'other', but run .* was trained with 'clip"):
        export(with_train(moved, site="other"))


def test_a_run_of_an_earlier_version_is_exported_with_its_store(trained, moved, capsys):
    path = pathlib.Path(moved.run, "checkpoints/600/meta/metadata")
    meta = json.loads(path.read_text())
    del meta["rows"]
    path.write_text(json.dumps(meta))
    pathlib.Path(moved.run, "checkpoints/600/sha256.json").unlink()
    with pytest.raises(InputError, match=r"store .*gone: it does not exist"):
        export(moved)
    folder = export(dataclasses.replace(moved, extract=trained.extract))
    assert (folder / "cfg.json").read_bytes() == (export(trained) / "cfg.json").read_bytes()


def bytes_read() -> int:
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


@pytest.mark.slow
def test_the_state_of_adam_is_not_read(base, with_train, tmp_path):
    """A second restore, of the whole state, still has to read both moments; TensorStore caches the parameters."""
    config = with_train(base, run=str(tmp_path / "run"), steps=2)
    config = dataclasses.replace(config, sae=dataclasses.replace(config.sae, expansion=64))
    train(config)
    latents, folder = 16 * 64, tmp_path / "run"
    begun = bytes_read()
    run = restore_run(config)
    parameters = bytes_read() - begun
    assert run.state.opt_state is None
    mesh = sharding.make_mesh(1, 1, 64, latents)
    state = checkpoints.restore(folder, 2, latents, 16, config.sae, config.train, mesh)
    assert bytes_read() - begun - parameters > 0.5 * parameters > 50_000
    for name, value in jax.device_get(state.params).items():
        assert (run.state.params[name] == value).all()


@pytest.mark.slow
def test_a_run_is_evaluated_and_exported_while_it_goes_on(base, with_train, config_file, tmp_path, capsys):
    """Every checkpoint is removed soon after it was written."""
    config = with_train(base, run=str(tmp_path / "run"), steps=10**6, checkpoint_every=5, keep=1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_module.__name__])
    path = config_file(tmp_path / "config.py", config)
    process = context.Process(target=train_module.main, args=[["--config", path]])
    process.start()
    try:
        while checkpoints.newest_step(tmp_path / "run") < 5 and process.is_alive():
            process.join(0.01)
        steps = [json.loads((export(config) / "cfg.json").read_text())["metadata"]["training"]["steps"]]
        while len(steps) < 12:
            steps.append(evaluate(config)["step"])
            steps.append(json.loads((export(config) / "cfg.json").read_text())["metadata"]["training"]["steps"])
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]
