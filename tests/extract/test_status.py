"""revelio extract --status and --verify on good, unfinished and damaged stores."""

import json
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from extract import run, status
from revelio_jax.errors import InputError, report_errors
from tests.helpers import ROOT
from tests.helpers.edits import edit_sealed
from tests.helpers.extraction import read_files

ROWS = np.random.default_rng(0).normal(size=(96, 16)).astype(np.float32)  # 16 per sample, 32 per shard
SITE = "clip.layer.1"


@pytest.fixture
def good(tmp_path, write_store):
    return pathlib.Path(write_store(tmp_path / "good", ROWS, shard_samples=2))


@pytest.fixture
def unfinished(good):
    (good / "manifest.json").unlink()
    (good / "shards/00001.json").unlink()
    return good


def verified(store, capsys):
    """Return whether the store is good, and the printed lines after its progress."""
    capsys.readouterr()
    is_good = status.report(str(store), 1, verify=True)
    return is_good, capsys.readouterr().out.splitlines()[3:]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_a_good_store_is_intact(good, capsys):
    assert status.report(str(good), 1, verify=False)
    assert capsys.readouterr().out.splitlines() == [
        f"store {good} is finished: 3 of 3 shards, 6 of 6 samples",
        f"{SITE}: 96 of 96 rows x 16; 0 dropped, samples skipped: 0",
        "no shard is missing",
    ]
    assert verified(good, capsys) == (True, ["the store is intact"])


def test_the_missing_shards_of_an_unfinished_store_are_listed(unfinished, capsys):
    assert status.report(str(unfinished), 2, verify=False)
    assert capsys.readouterr().out.splitlines() == [
        f"store {unfinished} is unfinished: 2 of 3 shards, 4 of 6 samples",
        f"{SITE}: 64 of 96 rows x 16",
        "worker 0 of 2: no shard is missing",
        "worker 1 of 2: missing shards: 1",
    ]
    is_good, lines = verified(unfinished, capsys)
    assert not is_good
    assert lines == ["the written shards are intact; the store is unfinished"]


def test_a_changed_byte_in_any_array_is_found_in_its_shard(good, capsys):
    files = sorted(good.glob(f"{SITE}/*/c/**/*"))
    files = [path for path in files if path.is_file()]
    assert len(files) == 3 * 4
    moments = random.Random(0)
    for path in files:
        for position in (0, -1, *(moments.randrange(path.stat().st_size) for _ in range(4))):
            flip(path, position)
            is_good, lines = verified(good, capsys)
            flip(path, position)
            shard = int(path.relative_to(good / SITE).parts[2])
            array = path.relative_to(good).parts[1]
            assert not is_good
            assert lines[0].startswith(f"shard {shard}: {SITE}/{array}: ")
            assert lines[1:] == [
                f"to repair the store, delete manifest.json, shards/0000{shard}.json in {good} and extract again"
            ]
    assert verified(good, capsys)[0]


@pytest.mark.parametrize("array", ["activations", "sample", "position", "timestep"])
def test_a_missing_or_swapped_file_is_found(good, array, capsys):
    paths = sorted(path for path in good.glob(f"{SITE}/{array}/c/**/*") if path.is_file())
    paths[2].rename(good / "away")
    is_good, lines = verified(good, capsys)
    assert not is_good
    assert lines[0].startswith(f"shard 2: {SITE}/{array}")
    if array in ("activations", "sample"):  # the other arrays are the same in every shard of this store
        shutil.copy(paths[1], paths[2])
        is_good, lines = verified(good, capsys)
        assert not is_good
        reason = {"activations": "the rows do not match", "sample": "these are not the samples"}[array]
        assert lines[0].startswith(f"shard 2: {SITE}/{array}: {reason}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 31}, "shard 1: clip.layer.1: the marker has 31 rows and 0 dropped rows, the plan has 32 rows"),
        ({"count": 31, "dropped": 1}, "shard 1: clip.layer.1/sample: these are not the samples of the 31 rows"),
        ({"mean": "x"}, "shard 1: "),
        ({"mean": None}, "shard 1: file://"),
        ({"count": "x"}, "shard 1: file://"),
    ],
)
def test_a_wrong_marker_is_found(good, change, message, capsys):
    path = good / "shards/00001.json"
    edit_sealed(path, lambda marker: marker[SITE].update(change))
    is_good, lines = verified(good, capsys)
    assert not is_good
    assert lines[0].startswith(message)


def test_a_marker_without_a_site_or_with_broken_json_is_found(good, capsys):
    for text in ("{}", "{", "[]"):
        (good / "shards/00001.json").write_text(text)
        is_good, lines = verified(good, capsys)
        assert not is_good
        assert lines[0].startswith("shard 1: ")


def test_a_manifest_that_contradicts_the_markers_is_found(good, capsys):
    path = good / "manifest.json"
    edit_sealed(path, lambda manifest: manifest["sites"][SITE].update(rows=95))
    is_good, lines = verified(good, capsys)
    assert not is_good
    assert lines == [
        f"manifest.json: has sites.{SITE}.rows 95, the markers have 96",
        f"to repair the store, delete manifest.json in {good} and extract again",
    ]
    (good / "shards/00001.json").unlink()
    assert verified(good, capsys)[1][0] == "manifest.json: exists, but only 2 of 3 shards are finished"


def test_unreadable_samples_and_arrays_are_found(good, capsys):
    flip(good / "samples.parquet", -1)
    assert verified(good, capsys)[1][0].startswith("samples.parquet: cannot be read")
    array = good / f"{SITE}/position/zarr.json"
    whole = array.read_text()
    array.write_text("{")
    lines = verified(good, capsys)[1]
    assert lines[0].startswith(f"{SITE}/position/zarr.json: the array cannot be opened")
    assert lines[1:4] == [f"shard {shard}: {SITE}/position cannot be opened" for shard in range(3)]
    array.write_text(whole)


def test_the_advice_for_a_broken_manifest_is_to_delete_it(good):
    (good / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="delete this file and run the same extract command"):
        status.report(str(good), 1, verify=True)


def test_a_changed_sample_is_found(good, capsys):
    file = good / "samples.parquet"
    flip(file, file.read_bytes().index(b"prompt 0"))
    assert verified(good, capsys)[1][0].startswith("samples.parquet: cannot be read")


def test_a_missing_array_is_not_recreated_under_existing_markers(good, write_store, capsys):
    """Otherwise its rows would read as the fill value in a finished store."""
    array = good / f"{SITE}/position/zarr.json"
    before, whole = array.read_text(), read_files(good)
    array.unlink()
    (good / "manifest.json").unlink()
    with pytest.raises(InputError, match=rf"{SITE}/position is missing, but shards are marked as finished; .*ver"):
        write_store(good, ROWS, shard_samples=2)
    _, lines = verified(good, capsys)
    for name in lines[-1].removeprefix("to repair the store, delete ").partition(" in ")[0].split(", "):
        (good / name).unlink(missing_ok=True)
    write_store(good, ROWS, shard_samples=2)
    assert array.read_text() == before
    assert read_files(good) == whole


def test_following_the_advice_of_verify_repairs_the_store(good, tmp_path, write_store, capsys):
    whole = write_store(tmp_path / "whole", ROWS, shard_samples=2)
    for number, array in ((0, "activations"), (2, "sample")):
        path = (
            next(p for p in good.glob(f"{SITE}/{array}/c/{number}/**/*") if p.is_file())
            if (array == "activations")
            else good / f"{SITE}/{array}/c/{number}"
        )
        flip(path, -1)
    (good / "samples.parquet").write_bytes(b"")
    _, lines = verified(good, capsys)
    for name in lines[-1].removeprefix("to repair the store, delete ").partition(" in ")[0].split(", "):
        (good / name).unlink()
    write_store(good, ROWS, shard_samples=2)
    assert read_files(good) == read_files(whole)
    assert verified(good, capsys)[0]


@pytest.mark.parametrize("array", ["activations", "sample"])
@pytest.mark.parametrize("broken", [b"", b"no shard"])
def test_a_shorter_last_shard_is_repaired(array, broken, tmp_path, write_store, capsys):
    """The shard ends within the block that TensorStore writes, so TensorStore would read the broken block first."""
    store = pathlib.Path(write_store(tmp_path / "store", ROWS, shard_samples=4))
    before = read_files(store)
    path = store / f"{SITE}/{array}/c/1"
    (path / "0" if path.is_dir() else path).write_bytes(broken)
    _, lines = verified(store, capsys)
    for name in lines[-1].removeprefix("to repair the store, delete ").partition(" in ")[0].split(", "):
        (store / name).unlink()
    write_store(store, ROWS, shard_samples=4)
    assert read_files(store) == before


def test_the_exit_status_of_the_command(good, tmp_path, capsys):
    """It is 0, 1 or 2. The command needs no model and does not import torch."""
    config = tmp_path / "config.py"
    config.write_text("from revelio_jax.config import default\n\ndef get_config():\n    return default()\n")

    def status(store, flag):
        with pytest.raises(SystemExit) as exit, report_errors():
            run.main([f"--config={config}", f"--config.extract.store={store}", flag])
        return exit.value.code

    assert status(good, "--status") == status(good, "--verify") == 0
    (good / "manifest.json").unlink()
    assert status(good, "--status") == 0
    assert status(good, "--verify") == 1
    capsys.readouterr()
    assert status(tmp_path / "none", "--status") == status(tmp_path / "none", "--verify") == 2
    assert "it does not exist" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    program = (
        "import sys; from extract import run\ntry: run.main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    flags = [f"--config={config}", f"--config.extract.store={good}", "--verify"]
    process = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.stdout.splitlines()[-1] == "1 False"


def test_a_missing_store_or_another_format_version_is_refused(good, tmp_path):
    with pytest.raises(InputError, match="it does not exist"):
        status.report(str(tmp_path / "none"), 1, verify=False)
    plan = json.loads((good / "plan.json").read_text())
    (good / "plan.json").write_text(json.dumps(plan | {"format_version": 2}))
    with pytest.raises(InputError, match="format version 2; this version reads 1"):
        status.report(str(good), 1, verify=True)
