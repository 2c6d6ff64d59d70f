"""A checkpoint with a truncated or missing file is passed over for the next older one; no state is ever wrong."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest.mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from revelio_jax import files
from revelio_jax.errors import InputError, report_errors
from revelio_jax.evaluate import main as evaluate_main
from revelio_jax.export import main as export_main
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints
from revelio_jax.training.mixture import open_mixture
from revelio_jax.training.run import restore_newest, restore_run, resumed_step

STEPS, EVERY = 60, 20


@pytest.fixture(scope="module")
def whole(base, with_train, tmp_path_factory):
    """The config of a finished run with checkpoints 20, 40 and 60."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    config = with_train(base, run=str(run), steps=STEPS, checkpoint_every=EVERY, every=1, keep=3, decay_share=0.0)
    train(config)
    return config


@pytest.fixture
def copied(whole, with_train, tmp_path):
    """The config of a copy of the run, and the folder of its newest checkpoint."""
    shutil.copytree(whole.run, tmp_path / "run")
    return with_train(whole, run=str(tmp_path / "run"), resume=True), tmp_path / "run/checkpoints/60"


def state_of(config, step):
    arguments = (pathlib.Path(config.run), step, 48, 16, config.sae, config.train, sharding.make_mesh(1, 1, 64, 48))
    return jax.device_get(checkpoints.restore(*arguments))


def assert_same(ours, theirs):
    for (name, left), right in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=jax.tree_util.keystr(name))


def files_of(whole):
    newest = pathlib.Path(whole.run, "checkpoints/60")
    return sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file())


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [halve, empty, flip, pathlib.Path.unlink])
def test_every_damaged_file_leads_to_a_good_state(whole, copied, damage, capsys):
    """Export, evaluation and resume get the exact state of the newest checkpoint that is intact, and print one line."""
    config, newest = copied
    good = {step: state_of(whole, step) for step in (40, 60)}
    identity = checkpoints.run_identity(config, open_mixture([config.extract.store]).record())
    passed_over = 0
    for name in files_of(whole):
        damage(newest / name)
        capsys.readouterr()
        state = jax.device_get(restore_run(config).state)
        err = capsys.readouterr().err
        step = int(state.step)
        assert_same(state.params, good[step].params)
        assert err.count("\n") == (step != 60), name
        if step != 60:
            passed_over += 1
            assert err.startswith("warning: checkpoint 60 (")
            assert err.endswith(f"of {config.run} cannot be read; step 40 is used instead\n")

        start = resumed_step(pathlib.Path(config.run), config.train, identity)
        start, state = restore_newest(start, [pathlib.Path(config.run)], lambda step: state_of(config, step))
        assert_same(state, good[start])
        assert capsys.readouterr().err.count("\n") == (start != 60), name
        shutil.rmtree(newest)
        shutil.copytree(pathlib.Path(whole.run, "checkpoints/60"), newest)
    assert passed_over >= 4


def test_every_checkpoint_has_checksums_of_its_items(whole):
    for step in (20, 40, 60):
        checkpoint = pathlib.Path(whole.run, "checkpoints", str(step))
        saved = json.loads((checkpoint / "sha256.json").read_text())
        items = {path.relative_to(checkpoint).as_posix() for path in checkpoint.glob("*/**/*") if path.is_file()}
        assert set(saved) == {name for name in items if not name.endswith("commit_success.txt")}
        assert {name.partition("/")[0] for name in saved} == {"state", "meta", "metrics"}


def test_a_changed_byte_of_every_large_file_is_found(whole, copied, capsys):
    config, newest = copied
    files = [path for path in (newest / "state").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert files
    for path in files:
        data = path.read_bytes()
        flip(path)
        assert int(restore_run(config).state.step) == 40
        assert f"60 (state/{path.relative_to(newest / 'state')} does not match" in capsys.readouterr().err
        path.write_bytes(data)


def test_a_finished_run_loses_what_a_kill_left_behind(copied, monkeypatch, capsys):
    """As after a kill between the last checkpoint and the removal of older ones, or in the middle of it."""
    config, newest = copied
    read_meta = checkpoints.read_meta

    def read_meta_with_keep_1(folder, step):
        meta = read_meta(folder, step)
        meta["config"]["train"]["keep"] = 1
        return meta

    best = checkpoints.ranked_steps(pathlib.Path(config.run), "best")[0]
    for name in ("70.orbax-checkpoint-tmp", "mine"):
        newest.with_name(name).mkdir()
    shutil.copytree(newest.with_name("20"), newest.with_name("10"))
    shutil.rmtree(newest.with_name("10") / "state")
    train(config)
    assert "is finished" in capsys.readouterr().out
    assert {path.name for path in newest.parent.iterdir()} == {"20", "40", "60", "mine"}
    monkeypatch.setattr(checkpoints, "read_meta", read_meta_with_keep_1)
    checkpoints.remove_leftovers(pathlib.Path(config.run))
    assert {path.name for path in newest.parent.iterdir()} == {"60", str(best), "mine"}


@pytest.mark.parametrize("fields", [{"keep": 1}, {"steps": EVERY}, {"keep": 1, "steps": 2 * EVERY}])
def test_a_finished_run_keeps_its_checkpoints_with_lower_fields(copied, with_train, fields, capsys):
    config, newest = copied
    newest.with_name("mine").mkdir()
    train(with_train(config, **fields))
    assert "is finished" in capsys.readouterr().out
    assert {path.name for path in newest.parent.iterdir()} == {"20", "40", "60", "mine"}


def test_a_run_that_stopped_early_keeps_its_checkpoints(copied, monkeypatch):
    """The saved ``keep`` applies only to a run at its last step."""
    config, newest = copied
    saved = {"config": {"train": {"steps": STEPS + 1, "keep": 1}}}
    monkeypatch.setattr(checkpoints, "read_meta", lambda folder, step: saved)
    checkpoints.remove_leftovers(pathlib.Path(config.run))
    assert {path.name for path in newest.parent.iterdir()} == {"20", "40", "60"}


def test_processes_share_the_files_of_a_state(copied, monkeypatch):
    """Together they read every file once. Each checks the whole JSON part, because all must agree about it."""
    config, newest = copied
    names, sha256 = [], files.sha256

    def traced_sha256(path):
        names.append(path.relative_to(newest).as_posix())
        return sha256(path)

    monkeypatch.setattr(files, "sha256", traced_sha256)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(ocp, "Checkpointer", lambda handler: contextlib.nullcontext(unittest.mock.MagicMock()))
    for number in range(3):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        checkpoints._read(pathlib.Path(config.run), 60, state=ocp.args.StandardRestore())
    saved = json.loads((newest / "sha256.json").read_text())
    assert sorted(names) == sorted(name for name in saved if name.startswith("state/"))
    names.clear()
    checkpoints._read(pathlib.Path(config.run), 60, meta=ocp.args.JsonRestore())
    assert names == ["meta/metadata"]


def test_a_run_resumed_from_an_older_checkpoint_ends_with_the_same_bits(whole, copied, with_train, capsys):
    config, newest = copied
    halve(newest / "state/_METADATA")
    expected = state_of(whole, 60)
    halve(newest.with_name("20") / "metrics/metrics")  # Orbax would not open the folder
    train(with_train(config, steps=STEPS + EVERY))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "step 40 is used instead" in warnings[0]
    assert_same(state_of(config, 60), expected)
    steps = [json.loads(line)["step"] for line in pathlib.Path(config.run, "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + EVERY + 1))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_commands_print_one_line_that_names_both_steps(copied, config_file, tmp_path, command):
    config, newest = copied
    path = config_file(tmp_path / "config.py", config)
    for file in (newest / "state").glob("**/d/*"):
        halve(file)
    done = subprocess.run(
        [sys.executable, "-m", f"revelio_jax.{command}", "--config", path],
        env=os.environ | {"TQDM_DISABLE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"warning: checkpoint 60 \(.*\) of .*run cannot be read; step 40 is used .*\n", done.stderr), (
        done.stderr
    )
    file = pathlib.Path(config.run, "evaluation.json" if command == "evaluate" else "export/cfg.json")
    assert re.search(r'"steps?": 40\b', file.read_text())


def test_without_a_good_checkpoint_there_is_one_line(copied, config_file, tmp_path, capsys):
    config, newest = copied
    path = config_file(tmp_path / "config.py", config)
    for step in (20, 40, 60):
        (newest.with_name(str(step)) / "meta/metadata").unlink()
    for main in (evaluate_main, export_main):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop, report_errors():
            main(["--config", path])
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.count("\n") == 1
        assert err.startswith(f"error: no checkpoint of {config.run} can be read: 60 (")
        assert "; 20 (" in err
    with pytest.raises(InputError, match=r"no checkpoint of .* can be read: 60"):
        train(config)


def test_the_checkpoint_with_the_lowest_fvu_falls_back_too(copied, with_train):
    config, newest = copied
    config = with_train(config, use="best")
    best, second, _ = checkpoints.ranked_steps(pathlib.Path(config.run), "best")
    (newest.with_name(str(best)) / "meta/metadata").unlink()
    assert int(restore_run(config).state.step) == second
    halve(newest.with_name(str(second)) / "metrics/metrics")
    assert checkpoints.ranked_steps(pathlib.Path(config.run), "best")[-1] == second


def test_a_checkpoint_that_training_removes_while_it_is_read_is_not_reported(capsys):
    present = [20, 40]

    def read(step):
        if step == 40:
            present[:] = [60, 80]  # the run went on and removed 20 and 40
            raise FileNotFoundError
        return str(step)

    found = checkpoints.first_readable("run", lambda: sorted(present, reverse=True), read)
    assert found == (80, "80")
    assert capsys.readouterr().err == ""


def test_too_little_memory_is_not_a_broken_checkpoint():
    def read(step):
        raise MemoryError

    with pytest.raises(MemoryError):
        checkpoints.first_readable("run", lambda: [20], read)


def test_a_moving_average_cannot_be_added_to_a_run(copied, with_train):
    with pytest.raises(InputError, match=r"config\.train\.ema is 0\.9, but run .* was trained with None"):
        train(with_train(copied[0], ema=0.9, steps=STEPS + 1))
