"""Runs on a real S3 server: the same results as in a local folder, and nothing half written after a failure."""

import json
import pathlib

import numpy as np
import pytest

from revelio_jax import evaluate, export, files, run_folders, train
from revelio_jax.errors import EnvironmentFailure, InputError, report_errors
from revelio_jax.grid import train as train_grid
from revelio_jax.store import layout
from revelio_jax.training import checkpoints, loader, processes, run
from tests.helpers.s3 import s3, s3_server  # noqa: F401


@pytest.fixture(scope="module")
def short(base, with_train):
    """The config of a run of 120 steps with checkpoints after 40, 80 and 120."""
    return with_train(base, steps=120, checkpoint_every=40, every=20, keep=1)


@pytest.fixture(scope="module")
def local(tmp_path_factory, short, with_train):
    """The config of a finished run in a local folder."""
    config = with_train(short, run=str(tmp_path_factory.mktemp("runs") / "a"))
    train.train(config)
    return config


def listed(location: str, part: str = "") -> list[str]:
    keys = sorted(key.decode() for key in layout.open_kvstore(location).list().result())
    return [key for key in keys if key.startswith(part)]


def read(location: str, key: str) -> bytes:
    return layout.open_kvstore(location).read(key).result().value


def params(config) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in run.restore_run(config).state.params.items()}


def assert_equal(config, other) -> None:
    ours, theirs = params(config), params(other)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


def metrics(text: str) -> list[dict]:
    timed = ("rows_per_s", "step_s", "data_wait_s", "rss_gib")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in text.splitlines()]


@pytest.mark.slow
def test_train_evaluate_and_export_as_in_a_local_folder(s3, short, local, with_train, config_file, tmp_path, capsys):  # noqa: F811
    place = "s3://bucket/runs/a"
    config = with_train(short, run=place)
    train.train(config)
    assert f"{place} is finished: 120 steps" in capsys.readouterr().out
    steps = {key.split("/")[1] for key in listed(place, "checkpoints/")}
    assert steps == {path.name for path in pathlib.Path(local.run, "checkpoints").iterdir()}
    assert json.loads(read(place, "config.json"))["run"] == place
    text = pathlib.Path(local.run, "metrics.jsonl").read_text()
    assert metrics(read(place, "metrics.jsonl").decode()) == metrics(text)
    assert_equal(config, local)

    assert evaluate.evaluate(config) == evaluate.evaluate(local)
    assert read(place, "evaluation.json") == pathlib.Path(local.run, "evaluation.json").read_bytes()
    export.main([f"--config={place}/config.json", f"--config.train.use={config.train.use}"])
    assert capsys.readouterr().out == f"exported to {place}/export\n"
    for path in export.export(local).iterdir():
        assert read(place, f"export/{path.name}") == path.read_bytes()

    with pytest.raises(InputError, match=r"config\.run is 's3://bucket/runs/a', which has checkpoints up to step 120"):
        train.train(config)


@pytest.mark.slow
def test_a_failed_upload_names_the_saved_step_and_the_run_resumes(s3, short, local, with_train, capsys):  # noqa: F811
    place = "s3://bucket/runs/failed"
    config = with_train(short, run=place)
    s3.fault = lambda request: "503" if "/checkpoints/80/state/" in request.key else None
    with pytest.raises(SystemExit) as stop, report_errors():
        train.train(config)
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {place} cannot be written: ")
    assert line.endswith(f"step 40 of {place} is saved; --config.train.resume=yes continues it")
    # The killed upload left files of step 80, but not the one that is written last.
    assert "checkpoints/80/_CHECKPOINT_METADATA" not in listed(place)
    assert listed(place, "checkpoints/80/")
    s3.fault = lambda request: None
    assert checkpoints.newest_step(run.run_folder(config)) == 40
    train.train(with_train(config, resume=True))
    assert_equal(config, local)
    assert {key.split("/")[1] for key in listed(place, "checkpoints/")} <= {"120", "80", "40"}
    for step in {key.split("/")[1] for key in listed(place, "checkpoints/")}:
        assert len([key for key in listed(place, f"checkpoints/{step}/") if "/ocdbt.process_0/manifest" in key]) == 1


@pytest.mark.slow
def test_members_of_a_grid_are_runs(s3, short, with_train):  # noqa: F811
    config = with_train(short, run="s3://bucket/runs/grid", steps=40)
    train_grid(config, ["sae.k=3"])
    member = json.loads(read("s3://bucket/runs/grid/k=3", "config.json"))
    assert member["run"] == "s3://bucket/runs/grid/k=3"
    assert listed("s3://bucket/runs/grid/k=3", "checkpoints/40/_CHECKPOINT_METADATA")


def test_unfinished_checkpoints_and_odd_keys_are_not_read(s3):  # noqa: F811
    kvstore = layout.open_kvstore("s3://bucket/runs/odd")
    for key in ("checkpoints/1/a", "checkpoints/2/a", "checkpoints/2/_CHECKPOINT_METADATA", "checkpoints/../../b"):
        kvstore.write(key, b"x").result()
    folder = run_folders.open_folder("s3://bucket/runs/odd", "*")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "checkpoints/2/_CHECKPOINT_METADATA",
        "checkpoints/2/a",
    ]
    assert folder.name == "odd"
    assert run_folders.location(folder / "checkpoints") == "s3://bucket/runs/odd/checkpoints"
    (folder / "checkpoints/2/a").unlink()
    (folder / "checkpoints/2/_CHECKPOINT_METADATA").unlink()
    (folder / "metrics.jsonl").write_text("{}")
    run_folders.push(folder)
    assert listed("s3://bucket/runs/odd", "checkpoints/1/") == listed("s3://bucket/runs/odd", "checkpoints/2/") == []
    assert read("s3://bucket/runs/odd", "metrics.jsonl") == b"{}"


def test_a_marker_is_removed_first_and_written_last(s3):  # noqa: F811
    folder = run_folders.open_folder("s3://bucket/runs/marked")
    (folder / "report").mkdir()
    for name in ("index.html", "data.js", "old.js"):
        (folder / "report" / name).write_text("old")
    run_folders.push(folder)
    s3.requests.clear()
    run_folders.push(folder)
    assert not s3.requests  # nothing has changed
    (folder / "report/data.js").write_text("new text")
    (folder / "report/old.js").unlink()
    run_folders.push(folder)
    order = [(each.method, each.key.rpartition("/")[2]) for each in s3.requests if each.method in ("PUT", "DELETE")]
    expected = [("DELETE", "index.html"), ("PUT", "data.js"), ("DELETE", "old.js"), ("PUT", "index.html")]
    assert order == expected

    s3.fault = lambda request: "503" if request.method == "PUT" and request.key.endswith("data.js") else None
    (folder / "report/data.js").write_text("newer text")
    with pytest.raises(EnvironmentFailure, match=r"s3://bucket/runs/marked cannot be written: .*SlowDown"):
        run_folders.push(folder)
    assert listed("s3://bucket/runs/marked") == ["report/data.js"]
    s3.fault = lambda request: None
    run_folders.push(folder)
    assert read("s3://bucket/runs/marked", "report/data.js") == b"newer text"
    assert listed("s3://bucket/runs/marked") == ["report/data.js", "report/index.html"]


def test_a_run_on_google_cloud_storage(monkeypatch):
    server = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    emulator.start()
    port = emulator._api._httpd.server_port
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    folder = run_folders.open_folder("gs://bucket/runs/a")
    for name in ("checkpoints/5/_CHECKPOINT_METADATA", "checkpoints/5/a", "checkpoints/50/_CHECKPOINT_METADATA"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    run_folders.push(folder)
    other = run_folders.open_folder("gs://bucket/runs/a", "*")
    assert (other / "checkpoints/5/a").read_text() == "checkpoints/5/a"
    for name in ("_CHECKPOINT_METADATA", "a"):
        (other / "checkpoints/5" / name).unlink()
    run_folders.push(other)
    assert listed("gs://bucket/runs/a") == ["checkpoints/50/_CHECKPOINT_METADATA"]
    emulator.stop()


def test_a_run_that_cannot_be_written_is_refused_before_rows_are_read(s3, short, with_train, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run, "open_mixture", None)
    monkeypatch.setattr(loader, "first_rows", None)
    for place in ("s3://nowhere/runs/a", "s3://B/a"):
        with pytest.raises(InputError, match=place):
            train.train(with_train(short, run=place))
    s3.fault = lambda request: "503"
    with pytest.raises(EnvironmentFailure, match=r"config\.run is 's3://bucket/a', which cannot be written: .*retry"):
        train.train(with_train(short, run="s3://bucket/a"))


def test_other_commands_and_several_processes_are_refused(short, with_train, monkeypatch):
    with pytest.raises(InputError, match=r"config\.run is 's3://bucket/a'; this command needs a local folder"):
        files.check_writable("s3://bucket/a", "config.run")
    monkeypatch.setattr(run.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="with several processes it must be a folder that all of them share"):
        run.open_run(with_train(short, run="s3://bucket/a"))
    assert processes.is_first()
