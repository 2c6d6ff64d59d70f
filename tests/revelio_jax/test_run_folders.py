"""Run folders that cannot be written, and disks that fill up during training."""

import pathlib
import re
import subprocess
import sys

import pytest

from revelio_jax import files
from revelio_jax.config import Config
from revelio_jax.errors import InputError, report_errors
from revelio_jax.grid import train as train_grid
from revelio_jax.train import train
from revelio_jax.training import checkpoints, loader, run


def test_a_forbidden_folder_is_refused_and_nothing_is_created(forbidden_folder):
    for folder in (forbidden_folder, forbidden_folder / "a" / "b"):
        with pytest.raises(InputError, match=r"config\.run is '.*', which cannot be written: Permission denied"):
            files.check_writable(folder, "config.run")
    assert not list(forbidden_folder.iterdir())


def test_a_folder_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/run"):
        with pytest.raises(InputError, match=r"config\.run is '.*'; .*file is a file, and it must be a folder"):
            files.check_writable(tmp_path / folder, "config.run")
    files.check_writable(tmp_path / "new" / "run", "config.run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", [train, lambda config: train_grid(config, ["sae.k=2,3"])])
def test_an_unwritable_run_is_refused_before_any_row_is_read(base, with_train, small_disk, monkeypatch, command):
    monkeypatch.setattr(run, "open_mixture", None)
    monkeypatch.setattr(loader, "first_rows", None)
    config = with_train(base, run=str(small_disk("size=1m,ro") / "runs" / "a"))
    with pytest.raises(InputError, match="which cannot be written: Read-only file system"):
        command(config)


@pytest.mark.parametrize("location", ["file:///tmp/a", "http://host/a", "memory://a"])
def test_other_schemes_are_refused(location):
    with pytest.raises(InputError, match=r"config\.run is '.*'; it must be a local folder, gs:// or s3://"):
        Config(run=location)


@pytest.mark.slow
def test_a_full_disk_during_training_names_the_last_good_step(base, with_train, config_file, small_disk, tmp_path):
    disk = small_disk("size=1m")
    config = with_train(base, run=str(disk / "run"), steps=4000, checkpoint_every=20)
    path = config_file(tmp_path / "config.py", config)
    command = [sys.executable, "-m", "revelio_jax.train", "--config", path]
    (disk / "ballast").write_bytes(bytes(700_000))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    found = re.fullmatch(r"error: .*No space left on device.*; step (\d+) of .*run is saved; .*resume=yes .*", line)
    assert found, line
    step = int(found[1])
    assert step == checkpoints.newest_step(disk / "run")
    (disk / "ballast").unlink()
    train(with_train(config, steps=step + 1, resume=True, keep=1))
    assert checkpoints.newest_step(disk / "run") == step + 1


def test_a_run_that_cannot_be_written_is_one_line(base, config_file, tmp_path, capsys):
    from revelio_jax.train import main

    (tmp_path / "run").write_text("")
    path = config_file(tmp_path / "config.py", base)
    with pytest.raises(SystemExit) as stop, report_errors():
        main(["--config", path, f"--config.run={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert pathlib.Path(tmp_path / "run").read_text() == ""
