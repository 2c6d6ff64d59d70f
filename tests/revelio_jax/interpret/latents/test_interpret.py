"""The command: planted latents are recovered, results are reused, and failures lose nothing."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from revelio_jax import files
from revelio_jax.config import Config, DataConfig, ExtractConfig, InterpretConfig
from revelio_jax.errors import EnvironmentFailure, InputError
from revelio_jax.interpret.latents import interpretation, results, store_pass, tables
from revelio_jax.store import open_store
from tests.revelio_jax.interpret import conftest as planted


@pytest.fixture
def own(image_config, with_fields, tmp_path):
    """``image_config`` with a new run folder that contains only the export."""
    shutil.copytree(pathlib.Path(image_config.run, "export"), tmp_path / "run" / "export")
    return with_fields(image_config, run=str(tmp_path / "run"), top=12)


# The process kills itself when it renames the new results.
KILLED = """
import os, runpy, signal

rename = os.rename
def killed(source, target):
    if str(source).endswith(".part"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.rename = killed
runpy.run_module("revelio_jax.interpret", run_name="__main__")
"""


def rows_of(table, **where) -> list[dict]:
    return [row for row in table.to_pylist() if all(row[name] == value for name, value in where.items())]


def test_planted_latents_are_recovered(own):
    run_results, is_new = interpretation.interpret(own)
    assert is_new
    classes = open_store(own.extract.store).table()["kind"].to_pylist()
    latent = run_results.latents.to_pylist()[planted.PLANTED]
    assert latent["kind.purity"] == 1
    assert latent["kind.majority"] == "class 0"
    assert latent["kind.entropy"] == 0
    assert latent["samples"] == classes.count("class 0")
    assert latent["spread"] == pytest.approx(4 / 16)
    assert run_results.latents["kind.purity"][planted.NOISE].as_py() < 0.9
    assert run_results.latents["rows"].to_pylist()[4:] == [0, 0]
    top = rows_of(run_results.samples, latent=planted.PLANTED, kind="top")
    assert [row["rank"] for row in top] == list(range(12))
    assert {(row["position"], row["timestep"]) for row in top} == {(5, 501)}
    assert {classes[row["sample"]] for row in top} == {"class 0"}
    values = [row["value"] for row in top]
    assert values == sorted(values, reverse=True)
    profile = run_results.part("profile", planted.PLANTED, planted.PLANTED + 1)[0, 0].reshape(4, 4)
    assert profile[1, 1] == 255
    assert not profile[2:].any()
    # Latent 3 is the negative of the planted one, so it never fires on the same rows.
    assert 3 not in run_results.array("coactive")[planted.PLANTED]
    assert run_results.array("nearest")[planted.PLANTED, 0] != -1


def same(one, other):
    for name in results.TABLES:
        assert getattr(one, name).equals(getattr(other, name))
    for name in ("histogram", "profile", "coactive", "nearest", "drawn", "fires"):
        np.testing.assert_array_equal(one.array(name), other.array(name))


@pytest.mark.slow
def test_results_are_the_same_for_any_batch_size(own, with_fields):
    run_results, _ = interpretation.interpret(own)
    kept = {name: getattr(run_results, name) for name in results.TABLES}
    arrays = {name: run_results.array(name) for name in ("histogram", "profile", "coactive", "fires")}
    for batch_size in (1, 37, 4096):
        again, is_new = interpretation.interpret(with_fields(own, batch_size=batch_size), again=True)
        assert is_new
        assert all(getattr(again, name).equals(table) for name, table in kept.items())
        for name, array in arrays.items():
            np.testing.assert_array_equal(again.array(name), array)


@pytest.mark.slow
def test_results_are_reused_unless_a_field_that_affects_them_changes(own, with_fields):
    interpretation.interpret(own)
    assert not interpretation.interpret(own)[1]
    assert not interpretation.interpret(with_fields(own, batch_size=7))[1]
    assert interpretation.interpret(own, again=True)[1]
    assert interpretation.interpret(with_fields(own, top=11))[1]


def test_neurons_fire_above_their_mean(own):
    config = dataclasses.replace(own, interpret=dataclasses.replace(own.interpret, sae="neurons"))
    run_results, _ = interpretation.interpret(config)
    assert run_results.folder.name == "neurons"
    site = open_store(own.extract.store).site("unet.mid_block")
    x = np.concatenate([site.read(start, stop) for start, stop in site.chunks])
    above = x > x.mean(0, dtype=np.float64)
    assert run_results.latents["rows"].to_pylist() == above.sum(0).tolist()
    assert run_results.summary["k"] is None


def test_an_interrupt_keeps_the_previous_results(own, monkeypatch):
    before, _ = interpretation.interpret(own)
    facts = (before.folder / "summary.json").read_bytes()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "make_tables", stopped)
    with pytest.raises(KeyboardInterrupt):
        interpretation.interpret(own, again=True)
    assert (before.folder / "summary.json").read_bytes() == facts
    same(results.load(before.folder), before)


@pytest.mark.parametrize("name", ["summary.json", "arrays.safetensors", "samples.parquet"])
def test_the_message_names_a_missing_file(own, name):
    run_results, _ = interpretation.interpret(own)
    (run_results.folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}; create it with revelio interpret"):
        results.load(run_results.folder)


def test_a_changed_byte_is_found(own):
    run_results, _ = interpretation.interpret(own)
    paths = sorted(run_results.folder.iterdir())
    assert len(paths) == 5
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        with pytest.raises(InputError, match=r"does not match its checksum|cannot be read"):
            results.load(run_results.folder)
        path.write_bytes(data)
    results.load(run_results.folder)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({"/dev/zero": ""}, "summary.json: unknown file '/dev/zero'"),
        ({"../summary.json": ""}, "unknown file '../summary.json'"),
        ([], r"summary.json: files is \[\]; it must be an object"),
    ],
)
def test_only_files_of_results_are_opened(tmp_path, monkeypatch, sums, message):
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"opened {path}"))
    (tmp_path / "summary.json").write_text(json.dumps({"version": results.VERSION, "files": sums}))
    with pytest.raises(InputError, match=message):
        results.load(tmp_path)


def test_a_file_at_the_path_of_the_results_folder_is_kept(own):
    mine = results.folder_of(own.run)
    mine.write_text("mine")
    with pytest.raises(InputError, match="latents is a file"):
        interpretation.interpret(own)
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_a_killed_process_keeps_the_previous_results(own):
    before, _ = interpretation.interpret(own)
    facts = (before.folder / "summary.json").read_bytes()
    # The process dies when the new results are complete and the previous ones are renamed.
    killed = command(own, "--again", start=("-c", KILLED))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not before.folder.exists()
    files.prepare_folder(before.folder)
    assert (before.folder / "summary.json").read_bytes() == facts
    same(results.load(before.folder), before)
    again, is_new = interpretation.interpret(own, again=True)
    assert is_new
    same(again, before)
    left = {path.name for path in before.folder.parent.iterdir()}
    assert left == {"export", "latents", "config.json"}


def test_a_moved_store_is_not_read_again(own, with_fields, tmp_path):
    interpretation.interpret(own)
    shutil.copytree(own.extract.store, tmp_path / "moved")
    moved = with_fields(own, extract={"store": str(tmp_path / "moved")})
    run_results, is_new = interpretation.interpret(moved)
    assert not is_new
    assert results.open_store_of(run_results).location == results.load(run_results.folder).summary["store"]["location"]
    assert run_results.summary["store"]["location"] == str(tmp_path / "moved")
    assert run_results.summary["images"] == str(tmp_path / "moved" / "images")
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(
        InputError, match=r"moved: it does not exist; .*; if the store was moved, run revelio interpret"
    ):
        results.open_store_of(run_results)


def test_an_unwritable_folder_is_refused_before_the_store_is_read(own, monkeypatch):
    pathlib.Path(own.run, "latents.part").write_text("no folder")
    monkeypatch.setattr(store_pass, "accumulate", None)
    with pytest.raises(InputError, match="latents cannot be written: File exists"):
        interpretation.interpret(own)


def test_a_full_disk_keeps_the_previous_results(own, monkeypatch):
    before, _ = interpretation.interpret(own)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(results, "save_file", full)
        with pytest.raises(EnvironmentFailure, match=r"cannot be written: .*No space left on device"):
            interpretation.interpret(own, again=True)
    assert not before.folder.with_name("latents.part").exists()
    same(results.load(before.folder), before)


def test_strata_by_language_of_texts(tmp_path, write_samples, write_sae):
    """Latent 0 fires at "cœur", which only French prompts have; 1 at every second word, in any language."""
    languages = ["de", "fr", ""]  # the last has none
    samples, rows, sample, position = [], [], [], []
    for i in range(90):
        language = languages[i % 3]
        words = ["<s>", "ein", "Herz", "</s>"] if language == "de" else ["<s>", "un", "cœur", "</s>", "</s>"]
        samples.append({"prompt": f"{i}", "language": language, "clip_l.tokens": words})
        for at, word in enumerate(words):
            rows.append([(language == "fr") * (word == "cœur") * (1 + i), at % 2])
            sample.append(i)
            position.append(at)
    site = "clip_l.layer.1+clip_g.layer.1"
    index = np.array([sample, position, [-1] * len(sample)])
    store = write_samples(tmp_path / "store", site, np.array(rows, np.float32), *index, samples)
    write_sae(tmp_path / "run" / "export", np.eye(2), np.zeros(2), np.eye(2), np.zeros(2), k=2)
    config = Config(
        extract=ExtractConfig(store=store),
        run=str(tmp_path / "run"),
        data=DataConfig(site=site),
        interpret=InterpretConfig(stratum="language", top=12, batch_size=7),
    )
    run_results, _ = interpretation.interpret(config)
    assert (run_results.summary["kind"], run_results.summary["tokens"]) == ("text", "clip_l.tokens")
    assert run_results.summary["stratum"] == {"column": "language", "values": ["de", "fr"]}
    heart, other = run_results.latents.to_pylist()
    assert (heart["words"], heart["language.purity"], heart["language.majority"]) == ("cœur", 1, "fr")
    assert (heart["rows"], heart["max"], heart["spread"]) == (30, 89, pytest.approx(1 / 5))
    assert [row["rows"] for row in rows_of(run_results.strata, latent=0)] == [0, 30]
    assert other["samples"] == 90
    # Samples without a language count for the latent but belong to no stratum.
    assert sum(row["samples"] for row in rows_of(run_results.strata, latent=1)) == 60
    strongest = rows_of(run_results.samples, latent=0, kind="stratum")
    assert [row["stratum"] for row in strongest] == ["fr"] * 12
    assert [row["sample"] for row in strongest] == list(range(88, 88 - 36, -3))
    assert {row["position"] for row in strongest} == {2}


def test_strata_by_a_column_separate_its_values(own, with_fields):
    run_results, _ = interpretation.interpret(with_fields(own, stratum="style"))
    assert run_results.summary["stratum"] == {"column": "style", "values": ["a", "b"]}
    table = open_store(own.extract.store).table()
    for row in rows_of(run_results.samples, kind="stratum"):
        assert table["style"][row["sample"]].as_py() == row["stratum"]
    of_b = rows_of(run_results.strata, latent=2)
    assert [row["rows"] > 0 for row in of_b] == [False, True]  # latent 2 fires on style "b" alone


def command(config, *flags, start=("-m", "revelio_jax.interpret")) -> subprocess.CompletedProcess:
    """The command as a process, on a run's config.json."""
    run = pathlib.Path(config.run)
    (run / "config.json").write_text(config.to_json())
    arguments = [sys.executable, *start, f"--config={run / 'config.json'}", *flags]
    return subprocess.run(arguments, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_writes_results_and_report(own):
    done = command(own)
    assert done.returncode == 0, done.stderr
    run = pathlib.Path(own.run)
    assert json.loads((run / "latents" / "summary.json").read_text())["latents"] == 6
    assert "kind, 3 classes" in done.stdout
    assert (run / "report" / "index.html").is_file()
    assert len({path.stat().st_mode for path in (run / "latents").iterdir()}) == 1  # all have the same permissions
    assert f"report: {run / 'report' / 'index.html'}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.interpret.top=0", "config.interpret.top is 0"),
        ("--config.interpret.labels=('shade',)", "config.interpret.labels has 'shade'"),
        ("--config.interpret.stratum=shade", "config.interpret.stratum is 'shade'"),
        ("--config.interpret.sae=no/such", "no/such/cfg.json is missing"),
        ("--config.data.site=unet.up_blocks.1", "unet.up_blocks.1"),
        ("--config.run=", "config.run is not set"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(own, flag, message):
    done = command(own, flag)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not pathlib.Path(own.run, "latents").exists()


def test_an_sae_of_another_width_is_refused(own, write_sae, tmp_path):
    folder = write_sae(tmp_path / "wide", np.eye(5), np.zeros(5), np.eye(5), np.zeros(5), k=2)
    with pytest.raises(InputError, match=r"has width 5, but hook point unet\.mid_block of store .* has width 4"):
        interpretation.interpret(dataclasses.replace(own, interpret=dataclasses.replace(own.interpret, sae=folder)))
