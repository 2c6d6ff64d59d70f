"""A broken or missing shard ends reading in one line that names the shard and --verify; zeros are no fault."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from revelio_jax.errors import EnvironmentFailure, InputError, report_errors
from revelio_jax.export import export
from revelio_jax.interpret.command import main as interpret_main
from revelio_jax.store import open_store
from revelio_jax.train import main as train_main

SITE = "clip.layer.1"
ROWS = np.random.default_rng(0).normal(size=(96, 16)).astype(np.float32)  # 16 per sample, 32 per shard and chunk


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


DAMAGES = flip, halve, empty, pathlib.Path.unlink


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("array", ["activations/c/1/0", "sample/c/1"])
def test_a_broken_shard_is_named(write_store, tmp_path, damage, array):
    store = pathlib.Path(write_store(tmp_path / "store", ROWS, shard_samples=2))
    damage(store / SITE / array)
    site = open_store(str(store)).site()

    def read(start, stop):
        if array.startswith("sample"):
            return site.read_index("sample", start, stop)
        return site.read(start, stop)

    assert len(read(0, 32)) == len(read(64, 96)) == 32
    for start, stop in ((32, 64), (40, 41)):
        with pytest.raises(InputError) as caught:
            read(start, stop)
        line = str(caught.value)
        assert line.startswith(f"store {store}: shard 1 of {SITE} is broken; revelio extract --verify names all ")
        assert f"; {array.partition('/')[0]}: " in line


def test_chunks_and_shards_of_zeros_have_no_data_and_are_read(write_store, tmp_path):
    rows = ROWS.copy()
    rows[32:64] = 0  # a shard
    store = pathlib.Path(write_store(tmp_path / "store", rows, shard_samples=2))
    assert not (store / SITE / "activations/c/1/0").exists()
    np.testing.assert_array_equal(open_store(str(store)).site().read(0, 96), rows)
    store = pathlib.Path(write_store(tmp_path / "chunk", rows, shard_samples=6))  # one chunk of a shard
    np.testing.assert_array_equal(open_store(str(store)).site().read(0, 96), rows)
    (store / SITE / "activations/c/0/0").unlink()
    with pytest.raises(InputError, match=r"shard 0 of .* is broken"):
        open_store(str(store)).site().read(32, 64)


def test_a_failure_of_the_network_is_not_a_broken_shard(write_store, tmp_path):
    site = open_store(write_store(tmp_path / "store", ROWS)).site()
    fault = site._fault("activations", 0, ValueError("UNAVAILABLE: no connection"))
    assert type(fault) is EnvironmentFailure
    assert str(fault).endswith("cannot be read; activations: UNAVAILABLE: no connection")


def test_a_json_file_of_another_kind_or_version_is_one_line(write_store, tmp_path):
    store = pathlib.Path(write_store(tmp_path / "store", ROWS))
    (store / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match=r"manifest\.json is not a JSON object"):
        open_store(str(store))
    (store / "manifest.json").write_text('{"format_version": 2, "layers": []}')
    with pytest.raises(InputError, match="has format version 2; this version reads 1"):
        open_store(str(store))


@pytest.mark.slow
@pytest.mark.parametrize("array", ["activations", "sample"])
def test_training_and_interpretation_end_with_one_line(trained, with_train, config_file, tmp_path, array, capsys):
    store = tmp_path / "store"
    shutil.copytree(trained.extract.store, store)
    shutil.copytree(export(trained), tmp_path / "run" / "export")
    config = dataclasses.replace(trained, extract=dataclasses.replace(trained.extract, store=str(store)))
    path = config_file(tmp_path / "config.py", with_train(config, run=str(tmp_path / "run"), every=1))
    for file in sorted((store / SITE / array / "c").rglob("*")):
        if file.is_file():
            flip(file)
    for main in (train_main, interpret_main):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop, report_errors():
            main(["--config", path])
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert f"of {SITE} is broken; revelio extract --verify names all broken shards" in lines[0]
        assert err.endswith(lines[0] + "\n")
