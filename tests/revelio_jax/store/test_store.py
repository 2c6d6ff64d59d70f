"""The activation store: what is written is read, by this reader and by zarr; kills leave no trace."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import typing

import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.errors import InputError
from revelio_jax.store import SitePlan, StorePlan, StoreWriter, open_store, parquet, statistics
from tests.helpers import ROOT
from tests.helpers.edits import edit_sealed

D = 5


def make_plan(rows, dtype="float32", chunk_rows=4, provenance=None, **more):
    """A plan of one sample a shard with ``rows[i]`` rows in shard i."""
    return StorePlan(
        sites=(SitePlan("a.layer.0", D, tuple(rows)), SitePlan("b", 2, tuple(rows))),
        dtype=dtype,
        chunk_rows=chunk_rows,
        shard_samples=1,
        samples=len(rows),
        provenance=provenance or {"model": {"id": "m"}},
        **more,
    )


def make_shard(index, rows, bad=()):
    """Arrays of a shard, a function of its number alone; rows ``bad`` are not finite."""
    generator = np.random.default_rng(index)
    shard = {}
    for name, d in (("a.layer.0", D), ("b", 2)):
        values = generator.normal(size=(rows, d)).astype(np.float32)
        values[list(bad), 0] = np.nan
        shard[name] = {
            "activations": values,
            "sample": np.full(rows, index, np.int32),
            "position": np.arange(rows, dtype=np.int32),
            "timestep": np.full(rows, -1, np.int32),
        }
    return shard


def write(location, rows, dtype="float32", bad=(), order=None, chunk_rows=4):
    plan = make_plan(rows, dtype, chunk_rows)
    writer = StoreWriter(str(location), plan, [{"id": i, "prompt": f"p{i}"} for i in range(len(rows))])
    for index in order or writer.missing():
        writer.write_shard(index, make_shard(index, rows[index], [b for b in bad if b < rows[index]]))
    writer.finish()
    return open_store(str(location))


def tree(folder):
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


def test_samples_that_readers_refuse_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_VALUES", 3)
    write(tmp_path / "three", [1, 1, 1])
    with pytest.raises(
        InputError, match=r"four: samples\.parquet: .* at most 3 values; extract fewer samples per store"
    ):
        write(tmp_path / "four", [1, 1, 1, 1])
    assert not (tmp_path / "four" / "plan.json").exists()


@settings(max_examples=25)
@given(
    rows=st.lists(st.integers(0, 11), min_size=1, max_size=5),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    bad=st.sets(st.integers(0, 10), max_size=3),
    chunk_rows=st.integers(1, 6),
)
def test_written_rows_and_statistics_are_read_back(rows, dtype, bad, chunk_rows):
    with tempfile.TemporaryDirectory() as folder:
        store = write(folder, rows, dtype, bad, chunk_rows=chunk_rows)
        site = store.site("a.layer.0")
        wanted = []
        for i, count in enumerate(rows):
            values = make_shard(i, count)["a.layer.0"]["activations"]
            good = [r for r in range(count) if r not in bad]
            wanted.append(values[good].astype(ts.dtype(dtype).numpy_dtype).astype(np.float32))
        wanted = np.concatenate(wanted)
        read = [site.read(*chunk) for chunk in site.chunks]
        np.testing.assert_array_equal(np.concatenate(read) if read else np.zeros((0, D)), wanted)
        assert all(0 < stop - start <= chunk_rows for start, stop in site.chunks)
        assert site.rows == len(wanted)
        assert site.dropped == sum(len([b for b in bad if b < count]) for count in rows)
        samples = [x for chunk in site.chunks for x in site.read_index("sample", *chunk)]
        assert samples == [i for i, n in enumerate(rows) for r in range(n) if r not in bad]
        if len(wanted):
            np.testing.assert_allclose(site.mean, wanted.mean(0, dtype=np.float64), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(site.variance, wanted.var(0, dtype=np.float64), rtol=1e-9, atol=1e-12)
        assert [s["prompt"] for s in store.samples] == [f"p{i}" for i in range(len(rows))]


@settings(max_examples=25)
@given(count=st.integers(0, 40), offset=st.floats(-1e4, 1e4), block=st.integers(1, 20))
def test_statistics_do_not_depend_on_the_blocks(count, offset, block):
    rows = np.random.default_rng(count).normal(offset, 1, (count, 3)).astype(np.float32)
    total = statistics.of_rows(rows[:block])
    total = statistics.combine(total, statistics.of_rows(rows[block:]))
    assert total.count == count
    if count:
        np.testing.assert_allclose(total.mean, rows.mean(0, dtype=np.float64), rtol=1e-9)
        np.testing.assert_allclose(total.variance, rows.var(0, dtype=np.float64), rtol=1e-6, atol=1e-9)
    back = statistics.Statistics.from_json(json.loads(json.dumps(total.to_json())))
    np.testing.assert_array_equal(back.m2, total.m2)


def test_statistics_of_more_rows_than_a_block():
    rows = np.random.default_rng(0).normal(3, 2, (2 * statistics.BLOCK_ROWS + 7, 2))
    total = statistics.of_rows(rows)
    np.testing.assert_allclose(total.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.variance, rows.var(0), rtol=1e-12)


def test_the_examples_of_the_documentation_read_the_same_rows(tmp_path, monkeypatch):
    """They leave out padding: the shards have 3, 7, 0 and 5 rows, one of which is dropped, in chunks of 4."""
    monkeypatch.chdir(tmp_path)
    site = write("stores/mini_sd", [3, 7, 0, 5], bad=[2]).site()
    pathlib.Path("stores/mini_sd/clip.layer.2").symlink_to("a.layer.0")
    text = (ROOT / "docs/extraction.md").read_text().partition("## The store")[2].partition("\n## ")[0]
    ours, theirs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, typing.Any] = {}
    exec(ours.replace("clip.layer.2", site.name), found)
    assert found["rows"].shape == (12, D)
    np.testing.assert_array_equal(found["samples"], [0, 0, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3])
    zarr_rows, tensorstore_rows = theirs.split("spec = ")
    others: dict[str, typing.Any] = {}
    exec(zarr_rows, others)
    np.testing.assert_array_equal(others["rows"], found["rows"])
    exec(f"spec = {tensorstore_rows}", others)
    np.testing.assert_array_equal(others["rows"], found["rows"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_zarr_python_opens_the_store(tmp_path, dtype):
    site = write(tmp_path, [3, 7, 0, 5], dtype).site()
    for name in ("activations", "sample", "position", "timestep"):
        array = zarr.open_array(tmp_path / "a.layer.0" / name, mode="r")
        ours = site.arrays[name].read().result()
        assert array.dtype == ours.dtype
        np.testing.assert_array_equal(array[:], ours)


def test_a_store_in_memory_is_written_and_read():
    store = write("memory://one/", [3, 2])
    assert open_store("memory://one").site().rows == 5
    assert store.fingerprint == open_store("memory://one/").fingerprint
    with pytest.raises(InputError, match="it does not exist"):
        open_store("memory://two/")


def test_the_fingerprint_depends_on_provenance_and_not_on_notes():
    plan = make_plan([3, 2], notes={"versions": {"torch": "1"}})
    assert plan.to_json()["fingerprint"] == make_plan([3, 2]).to_json()["fingerprint"]
    assert plan.to_json()["fingerprint"] != make_plan([3, 1]).to_json()["fingerprint"]
    other = make_plan([3, 2], provenance={"model": {"id": "n"}})
    assert plan.to_json()["fingerprint"] != other.to_json()["fingerprint"]


def test_a_store_does_not_depend_on_shard_order_or_interrupted_writes(tmp_path):
    rows = [3, 7, 0, 5]
    write(tmp_path / "a", rows)
    write(tmp_path / "b", rows, order=[2, 3, 0, 1])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    # A shard that was written, with other bytes, but has no marker; a lock of a killed writer.
    writer = StoreWriter(str(tmp_path / "c"), make_plan(rows), [{"id": i, "prompt": f"p{i}"} for i in range(4)])
    writer.write_shard(1, make_shard(9, 7))
    (tmp_path / "c/shards/00001.json").unlink()
    (tmp_path / "c/a.layer.0/activations/c/1/0.__lock").write_bytes(b"half")
    write(tmp_path / "c", rows)
    assert tree(tmp_path / "a") == tree(tmp_path / "c")


def test_the_root_of_a_file_system_is_refused():
    with pytest.raises(InputError, match="not empty and is not a store"):
        StoreWriter("/", make_plan([3]), [{"id": 0, "prompt": ""}])
    assert not pathlib.Path("/plan.json").exists()


def test_a_run_killed_before_its_plan_was_written_can_start_again(tmp_path):
    write(tmp_path / "a", [3])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/plan.json.__lock").write_bytes(b'{"chunk')
    write(tmp_path / "b", [3])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


WRITE = """
import sys
sys.path.insert(0, sys.argv[1])
import test_store
test_store.write(sys.argv[2], [40] * 60, chunk_rows=8)
"""


@pytest.mark.slow
def test_a_killed_and_restarted_run_equals_an_uninterrupted_run(tmp_path):
    rows = [40] * 60
    write(tmp_path / "whole", rows, chunk_rows=8)
    moments, kills = random.Random(0), 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITE, os.path.dirname(__file__), str(tmp_path / "killed")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        before = len(list((tmp_path / "killed").glob("shards/*")))
        while process.poll() is None and len(list((tmp_path / "killed").glob("shards/*"))) < before + 3:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert b"Error" not in process.stderr.read()
    assert kills >= 2
    write(tmp_path / "killed", rows, chunk_rows=8)
    assert tree(tmp_path / "whole") == tree(tmp_path / "killed")


def test_another_plan_is_refused_with_the_difference(tmp_path):
    write(tmp_path, [3, 2])
    before = tree(tmp_path)
    for plan, message in [
        (make_plan([3, 2], "float16"), "dtype 'float32', this run has 'float16'"),
        (make_plan([3, 2], provenance={"model": {"id": "n"}}), "model.id 'm', this run has 'n'"),
        (make_plan([3, 2], chunk_rows=2), "chunk_rows 4, this run has 2"),
        (make_plan([3, 1]), r"sites.a.layer.0.expected_rows \[3, 2\], this run has \[3, 1\]"),
        (make_plan([3]), "samples 2, this run has 1"),
    ]:
        with pytest.raises(InputError, match=message):
            StoreWriter(str(tmp_path), plan, [])
    assert tree(tmp_path) == before


def test_another_library_version_may_continue_a_store(tmp_path):
    StoreWriter(str(tmp_path), make_plan([3], notes={"versions": {"torch": "1"}}), [{"id": 0, "prompt": "p0"}])
    write(tmp_path, [3])
    assert open_store(str(tmp_path)).manifest["notes"]["versions"] == {"torch": "1"}


def test_a_finished_store_has_nothing_missing(tmp_path):
    write(tmp_path, [3, 2])
    before = tree(tmp_path)
    writer = StoreWriter(str(tmp_path), make_plan([3, 2]), [])
    assert writer.finished
    assert writer.missing() == []
    assert writer.finish() == open_store(str(tmp_path)).manifest
    assert tree(tmp_path) == before


def test_a_shard_of_another_size_and_an_early_manifest_raise(tmp_path):
    writer = StoreWriter(str(tmp_path), make_plan([3, 2]), [])
    with pytest.raises(ValueError, match="planned"):
        writer.write_shard(0, make_shard(0, 2))
    with pytest.raises(ValueError, match="missing"):
        writer.finish()


def test_locations_that_are_not_stores_are_refused(tmp_path):
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and is not a store"):
        StoreWriter(str(tmp_path), make_plan([3]), [])
    assert tree(tmp_path) == {"other.txt": b"mine"}
    with pytest.raises(InputError, match="store"):
        StoreWriter(str(tmp_path / "other.txt"), make_plan([3]), [])
    with pytest.raises(InputError, match="unknown scheme ftp; allowed: file, gs"):
        open_store("ftp://host/store")
    with pytest.raises(InputError, match="store is not set"):
        open_store("")


def test_open_store_refuses_all_but_finished_stores(tmp_path):
    with pytest.raises(InputError, match="it does not exist"):
        open_store(str(tmp_path / "none"))
    StoreWriter(str(tmp_path / "half"), make_plan([3]), [])
    with pytest.raises(InputError, match="unfinished"):
        open_store(str(tmp_path / "half"))
    write(tmp_path / "whole", [3])
    store = open_store(str(tmp_path / "whole"))
    with pytest.raises(InputError, match=r"'c'; store .* has a\.layer\.0, b"):
        store.site("c")
    manifest_path = tmp_path / "whole/manifest.json"
    for change, message in [
        ({"dtype": "float16"}, "is float32, the manifest says float16"),
        ({"format_version": 2}, "format version 2; this version reads 1"),
    ]:
        edit_sealed(manifest_path, lambda manifest, change=change: manifest.update(change))
        with pytest.raises(InputError, match=message):
            open_store(str(tmp_path / "whole")).site()
    manifest_path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        open_store(str(tmp_path / "whole"))


def test_skipped_samples_have_no_rows_and_are_listed(tmp_path):
    plan = make_plan([4, 4, 4])
    writer = StoreWriter(str(tmp_path), plan, [{"id": i} for i in range(3)])
    for index, count in ((0, 4), (1, 2), (2, 0)):
        shard = make_shard(index, count)
        skipped = np.array([] if count == 4 else [index], np.int32)
        writer.write_shard(index, {name: arrays | {"skipped": skipped} for name, arrays in shard.items()})
    writer.finish()
    store = open_store(str(tmp_path))
    site = store.site("b")
    assert store.manifest["sites"]["b"]["skipped"] == [1, 2]
    assert (site.rows, site.dropped) == (6, 0)
    assert [s for chunk in site.chunks for s in site.read_index("sample", *chunk)] == [0, 0, 0, 0, 1, 1]


def test_missing_rows_without_skipped_samples_raise(tmp_path):
    writer = StoreWriter(str(tmp_path), make_plan([4]), [{"id": 0}])
    with pytest.raises(ValueError, match="planned"):
        writer.write_shard(0, make_shard(0, 3))
    with pytest.raises(ValueError, match="planned"):
        writer.write_shard(0, {n: a | {"skipped": np.array([0])} for n, a in make_shard(0, 5).items()})
