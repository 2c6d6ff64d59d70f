"""TensorBoard and wandb show the lines of metrics.jsonl, each step once."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest

from revelio_jax.errors import InputError
from revelio_jax.train import train
from revelio_jax.training import trackers
from revelio_jax.training.metrics import FIELDS

RESUMED_AT = 200


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stopped_and_resumed(config, with_train, run):
    """Train 600 steps, remove the checkpoints after step 200, and resume."""
    train(with_train(config, run=str(run)))
    for lost in (400, 600):
        shutil.rmtree(run / f"checkpoints/{lost}")
    train(with_train(config, run=str(run), resume=True))


@pytest.mark.slow
def test_tensorboard_shows_every_line_once(base, with_train, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    run = tmp_path / "run"
    stopped_and_resumed(with_train(base, tensorboard=True), with_train, run)
    shown = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(shown.Tags()["scalars"]) == set(FIELDS) - {"step"}
    for name in shown.Tags()["scalars"]:
        points = [(point.step, point.value) for point in shown.Scalars(name)]
        assert points == [(line["step"], pytest.approx(line[name])) for line in lines(run)]
    files = sorted((run / "tensorboard").iterdir())
    steps = [[e.step for e in EventFileLoader(str(file)).Load() if e.HasField("summary")] for file in files]
    assert steps == [list(range(50, 601, 50)), list(range(RESUMED_AT + 50, 601, 50))]


def test_tensorboard_needs_no_torch(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    code = (
        "import pathlib, sys; from revelio_jax.training import trackers; "
        "board = trackers.TensorBoard(pathlib.Path(sys.argv[1]), 0); board.add({'step': 1, 'loss': 2.0}); "
        "board.close(failed=False); assert 'tensorboard' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.fixture
def wandb(monkeypatch):
    """wandb, offline; its process ends with the test."""
    package = pytest.importorskip("wandb", reason="wandb is not installed; pip install -e '.[wandb]'")
    package.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield package
    package.teardown()


def records(path):
    """Yield the records of a .wandb file, a LevelDB log of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too short for a header: the block is padded
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_wandb_has_every_line_under_one_id(base, with_train, tmp_path, wandb):
    run = tmp_path / "run"
    stopped_and_resumed(with_train(base, wandb="a project"), with_train, run)
    attempts = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        found = list(records(file))
        start = next(record.run for record in found if record.HasField("run"))
        assert (start.run_id, start.project) == ((run / "wandb_id").read_text(), "a project")
        assert start.display_name == "run"
        config = {update.key: json.loads(update.value_json) for update in start.config.update}
        assert config["sae"]["k"] == base.sae.k
        rows = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.HasField("history")
        ]
        assert all(row["_step"] == row["step"] for row in rows)
        assert next(record.exit.exit_code for record in found if record.HasField("exit")) == 0
        attempts.append([{name: row[name] for name in FIELDS} for row in rows])
    first, second = attempts
    assert [line["step"] for line in first] == list(range(50, 601, 50))
    assert first[: RESUMED_AT // 50] + second == lines(run)


def test_wandb_records_the_failure_of_a_run(base, with_train, tmp_path, wandb):
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        train(with_train(base, run=str(run), wandb="a project", learning_rate=1e30))
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert [record.exit.exit_code for record in records(file) if record.HasField("exit")] == [1]


def test_steps_that_wandb_already_has_are_not_sent_again(base, tmp_path):
    """A resumed online run knows the step from which it continues."""
    sink = trackers.Wandb.__new__(trackers.Wandb)

    class Online:
        starting_step, sent = 101, []

        def log(self, line, step, commit):
            self.sent.append(step)

    sink._run = Online()
    for step in (50, 100, 150):
        sink.add({"step": step})
    assert sink._run.sent == [150]


def assert_refused(config, match, tmp_path):
    with pytest.raises(InputError, match=match):
        train(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "value"), [("tensorboard", True), ("wandb", "a project")])
def test_a_missing_package_is_refused_before_anything_is_written(
    base, with_train, tmp_path, monkeypatch, package, value
):
    monkeypatch.setitem(sys.modules, package, None)
    config = with_train(base, run=str(tmp_path / "run"), **{package: value})
    assert_refused(config, rf"config\.logging\.{package} needs the package {package}; pip install", tmp_path)


def test_a_project_name_that_wandb_rejects_is_refused(base, with_train, tmp_path, wandb):
    config = with_train(base, run=str(tmp_path / "run"), wandb="a/b")
    assert_refused(config, r"config\.logging\.wandb is 'a/b': Invalid project name", tmp_path)


@pytest.mark.slow
def test_wandb_without_a_login_is_refused(base, with_train, config_file, tmp_path, wandb):
    path = config_file(tmp_path / "config.py", with_train(base, run=str(tmp_path / "run"), wandb="p"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    result = subprocess.run(
        [sys.executable, "-m", "revelio_jax.train", "--config", path],
        env=environment | {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "netrc")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: config.logging.wandb is 'p': No API key")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_only_the_first_process_has_trackers(base, with_train, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    config = with_train(base, run=str(tmp_path), tensorboard=True, wandb="a project")
    assert trackers.sinks(pathlib.Path(tmp_path), 0, config) == []
    assert not list(tmp_path.iterdir())


def test_no_tracker_is_enabled_by_default(base, tmp_path):
    trackers.check(base.logging)
    assert trackers.sinks(tmp_path, 0, base) == []
