"""A store may be continued with another batch size, for example after a run was out of memory."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from revelio_jax.store import check, open_store
from tests.helpers import ROOT
from tests.helpers.extraction import read_files, run_extract


@pytest.mark.parametrize("mode", ["text", "generate"])
def test_another_batch_size_continues_the_store_and_is_recorded(text_config, tmp_path, capsys, mode):
    fields = {} if mode == "text" else {"extract__sites": "unet.mid_block", "extract__height": 8, "extract__width": 8}
    fields |= {"extract__mode": mode, "extract__steps": 2}
    run_extract(text_config, **fields, extract__worker=0, extract__workers=2)  # shards 0 and 2 of 4, 2 prompts at once
    capsys.readouterr()
    run_extract(text_config, **fields, extract__batch_size=3)
    out = capsys.readouterr().out
    assert f"store {tmp_path / 'store'} was begun with config.extract.batch_size=2 and continues with 3; " in out
    store = open_store(str(tmp_path / "store"))
    assert store.manifest["batch_sizes"] == [2, 3]
    assert "batch_size" not in store.manifest["extract"]
    assert [fault for _, fault in check.faults(check.read_state(str(tmp_path / "store"))) if fault] == []
    markers = [json.loads((tmp_path / "store" / "shards" / f"{i:05d}.json").read_text()) for i in range(4)]
    parts = [next(part for name, part in marker.items() if name != "checksum") for marker in markers]
    assert [part["batch_size"] for part in parts] == [2, 3, 2, 3]

    run_extract(text_config, **fields, extract__store=tmp_path / "whole")
    assert "was begun with" not in capsys.readouterr().out
    whole = open_store(str(tmp_path / "whole"))
    assert whole.manifest["batch_sizes"] == [2]
    assert whole.manifest["fingerprint"] == store.manifest["fingerprint"]
    for name in whole.manifest["sites"]:
        one, two = ([site.read(*chunk) for chunk in site.chunks] for site in (whole.site(name), store.site(name)))
        np.testing.assert_allclose(np.concatenate(two), np.concatenate(one), rtol=1e-4, atol=1e-5)


def test_stores_of_earlier_versions_are_continued(text_config, tmp_path):
    """They had the batch size in plan.json, none in the markers, and no checksums."""
    run_extract(text_config)
    store = tmp_path / "store"
    before = read_files(store)
    plan = json.loads((store / "plan.json").read_text())
    plan["extract"]["batch_size"] = 64
    del plan["checksum"]
    (store / "plan.json").write_text(json.dumps(plan))
    (store / "manifest.json").unlink()
    (store / "shards/00001.json").unlink()
    for shard in (0, 2, 3):
        marker = json.loads((store / f"shards/{shard:05d}.json").read_text())
        del marker["checksum"]
        for site in marker.values():
            del site["batch_size"]
        (store / f"shards/{shard:05d}.json").write_text(json.dumps(marker))
    run_extract(text_config)
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["batch_sizes"] == [2]
    assert manifest["extract"]["batch_size"] == 64
    after = read_files(store)
    assert {name for name in before if before[name] != after[name]} == {
        "plan.json",
        "manifest.json",
        *(f"shards/{shard:05d}.json" for shard in (0, 2, 3)),
    }


OUT_OF_MEMORY = """
import pathlib, resource, sys
from extract import run
from extract.modes import text
from revelio_jax.errors import report_errors

compute = text.shard_rows

def limited(*arguments):  # the model is loaded
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 100 * 2**20,) * 2)
    return compute(*arguments)

text.shard_rows = limited
with report_errors():
    run.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="memory is limited by /proc/self/statm")
def test_a_run_out_of_memory_names_the_field_and_a_smaller_batch_continues(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("flat emoji of red apple with a long name\n" * 2048)
    flags = ["--config=mini_sd", f"--config.extract.prompts={prompts}", f"--config.extract.store={tmp_path / 'store'}"]
    flags += ["--config.extract.shard_samples=2048"]
    command = [sys.executable, "-c", OUT_OF_MEMORY, *flags]
    environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--config.extract.batch_size=2048"], **options)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: out of memory: ")
    assert "; lower config.extract.batch_size, or set config.model.offload; the same store then " in done.stderr
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*command, "--config.extract.batch_size=32"], **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert open_store(str(tmp_path / "store")).manifest["batch_sizes"] == [32]
