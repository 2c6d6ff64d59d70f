"""Live runs: the bound of the disk, and the same bits after a kill of either process.

Extraction is a real process with real shards and drawn rows; tests/benchmarks/test_live.py has a pipeline.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest

import revelio_jax.train as train_module
from revelio_jax.config import (
    Config,
    DataConfig,
    ExtractConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    SaeConfig,
    TrainConfig,
)
from revelio_jax.errors import EnvironmentFailure, InputError, report_errors
from revelio_jax.evaluate import evaluate
from revelio_jax.export import export
from revelio_jax.grid import train as train_grid
from revelio_jax.sae import sharding
from revelio_jax.train import train
from revelio_jax.training import checkpoints, extraction, live_order, loader, processes
from revelio_jax.training.run import make_order, open_run
from tests.helpers import live_extraction
from tests.helpers.live_extraction import SAMPLES, SITE, TOKENS

EVERY = 20


@pytest.fixture(autouse=True)
def drawn_rows(monkeypatch):
    """Extraction without a pipeline."""
    monkeypatch.setattr(extraction, "MODULE", live_extraction.MODULE)


@pytest.fixture
def config(tmp_path) -> Config:
    """A run of 1.2 epochs: 2 of 32 shards are held out, and 15 blocks of 2 shards have 512 rows each."""
    return Config(
        run=str(tmp_path / "run"),
        model=ModelConfig(id="planted"),
        extract=ExtractConfig(mode="generate", sites=(SITE,), shard_samples=16, chunk_rows=32),
        sae=SaeConfig(k=3, expansion=3, k_aux=16, dead_after_rows=4000, b_dec_init_rows=512),
        data=DataConfig(live=True, live_shards=6, held_out=0.06, buffer_chunks=6),
        train=TrainConfig(steps=144, batch_size=64, learning_rate=1e-2, checkpoint_every=EVERY),
        mesh=MeshConfig(data=1, feature=1),
        logging=LoggingConfig(every=10),
    )


def with_fault(config, fault) -> Config:
    return dataclasses.replace(config, extract=dataclasses.replace(config.extract, prompt=fault))


def state_of(config):
    run = pathlib.Path(config.run)
    arguments = (run, checkpoints.newest_step(run), 48, 16, config.sae, config.train, sharding.make_mesh(1, 1, 64, 48))
    return jax.device_get(checkpoints.restore(*arguments))


def assert_same_bits(left, right):
    ours, theirs = state_of(left), state_of(right)
    for (name, one), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(name))
    logs = [pathlib.Path(config.run, "metrics.jsonl").read_text().splitlines() for config in (left, right)]
    names = "step", "loss", "fvu", "coverage", "entropy"
    ours, theirs = ([[json.loads(line)[name] for name in names] for line in log] for log in logs)
    assert ours == theirs


def shards_on_disk(config) -> set[int]:
    return {int(path.name) for path in pathlib.Path(config.run, "live", SITE, "activations/c").glob("[0-9]*")}


@pytest.mark.slow
def test_a_run_sees_the_planned_rows_and_keeps_few_shards(config, monkeypatch, capsys):
    """Of shard 7, the first row is dropped; another row of the shard takes its place."""
    config, numbers, batches = with_fault(config, "nan 7"), [], []
    read, put = loader.batches, sharding.put_batch
    monkeypatch.setattr(sharding, "put_batch", lambda mesh, x_BD: [batches.append(x_BD.copy()), put(mesh, x_BD)][1])

    def watched(*arguments):
        for batch in read(*arguments):
            numbers.append(len(shards_on_disk(config)))
            yield batch

    monkeypatch.setattr(loader, "batches", watched)
    train(config)
    assert max(numbers) <= config.data.live_shards == 6
    assert shards_on_disk(config) == {int(path.stem) for path in pathlib.Path(config.run, "live/shards").iterdir()}
    assert len(shards_on_disk(config)) == 2  # the held-out ones
    out, err = capsys.readouterr()
    assert "live: 30 shards to train on, 2 held out; each epoch extracts them again, in 15 blocks; at most 6" in out
    assert "warning: shard 7 lacks 1 rows" in err

    _, mixture = open_run(config)
    order, job = make_order(config, mixture), live_extraction.Job("")
    planned = np.concatenate([job.rows(sample) for sample in range(SAMPLES)])
    lost = 7 * 16 * TOKENS
    planned[lost : lost + 256] = np.roll(planned[lost : lost + 256], -1, 0)
    planned[lost + 255] = planned[lost]
    for step in (0, 60, 143):
        np.testing.assert_array_equal(batches[step], planned[loader.rows_of(order, step)[1]])

    # The run is complete in itself.
    assert evaluate(config)["rows"] == 512
    cfg = json.loads((export(config) / "cfg.json").read_text())
    assert cfg["metadata"]["site"] == SITE
    assert cfg["metadata"]["evaluation"]["fvu"] < 0.5


def command(module: str, path: str, errors: str) -> None:
    """Run the training command with drawn rows; its output goes to the file ``errors``."""
    for number in (1, 2):
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    extraction.MODULE = module
    with report_errors():
        train_module.main(["--config", path, "--config.train.resume=yes"])


@pytest.fixture(scope="module")
def start():
    """A function that starts the training command in a process that is forked from one that imported the trainer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_module.__name__])

    def start_command(config):
        path = pathlib.Path(f"{config.run}.json")
        path.write_text(config.to_json())
        path.with_suffix(".err").write_text("")
        process = context.Process(
            target=command, args=(live_extraction.MODULE, str(path), str(path.with_suffix(".err")))
        )
        process.start()
        return process

    return start_command


def errors_of(config) -> list[str]:
    text = pathlib.Path(f"{config.run}.err").read_text()
    return [line for line in text.splitlines() if "error" in line.lower()]


def wait_for(condition, process, seconds=300) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def extraction_pid(config) -> int:
    return int(pathlib.Path(config.run, "pid").read_text())


@pytest.mark.slow
def test_a_kill_of_each_process_ends_both_and_the_resumed_run_has_the_same_bits(config, start, tmp_path):
    whole = dataclasses.replace(config, run=str(tmp_path / "whole"))
    train(whole)

    def saved(step):
        return lambda: checkpoints.newest_step(pathlib.Path(config.run)) >= step

    trainer = start(config)
    wait_for(saved(EVERY), trainer)
    pid = extraction_pid(config)
    trainer.kill()
    trainer.join()
    end = time.monotonic() + 60
    while not has_ended(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert has_ended(pid)

    trainer = start(config)
    wait_for(saved(3 * EVERY), trainer)
    os.kill(extraction_pid(config), signal.SIGKILL)
    trainer.join(300)
    assert trainer.exitcode == 1
    (error,) = errors_of(config)
    step = checkpoints.newest_step(pathlib.Path(config.run))
    assert error.startswith("error: extraction was ended by SIGKILL; step ")
    assert error.endswith(f"step {step} of {config.run} is saved; --config.train.resume=yes continues it")
    assert 3 * EVERY <= step < 144

    # The newest checkpoint breaks too: the shards of the one before it are extracted again.
    metadata = pathlib.Path(config.run, "checkpoints", str(step), "state/_METADATA")
    metadata.write_bytes(metadata.read_bytes()[:100])
    trainer = start(config)
    trainer.join(300)
    assert trainer.exitcode == 0, errors_of(config)
    assert_same_bits(config, whole)
    assert shards_on_disk(config) == shards_on_disk(whole)


@pytest.mark.slow
def test_sigterm_while_rows_are_extracted_saves_the_last_step(config, start):
    (slow, *_), *_ = make_order_blocks(config)[3:]
    config = dataclasses.replace(config, logging=LoggingConfig(every=1))
    trainer = start(with_fault(config, f"slow {slow}"))
    log = pathlib.Path(config.run, "metrics.jsonl")
    # Metrics are read one step late: after 23 lines, step 25 waits for block 3.
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 23, trainer)
    os.kill(trainer.pid, signal.SIGTERM)
    trainer.join(60)
    assert trainer.exitcode == processes.STOPPED
    step = checkpoints.newest_step(pathlib.Path(config.run))
    assert step == 24  # three blocks of 512 rows
    assert has_ended(extraction_pid(config))


def make_order_blocks(config) -> list[list[int]]:
    """The blocks of the first epoch of ``config``."""
    plan = {"sites": {SITE: {"expected_rows": [16 * TOKENS] * 32}}}
    shards = live_order.split(plan, SITE, config)
    chunks = {shard: (loader.Chunk(0, shard * 256, shard * 256 + 256),) for shard in shards.training}
    stream = live_order.LiveStream(0, (0, 0), tuple(each[0] for each in chunks.values()), 1, chunks, shards.block)
    return stream.blocks(0)[0]


@pytest.mark.slow
def test_a_failed_extraction_ends_the_trainer_with_its_line(config):
    with pytest.raises(EnvironmentFailure, match=r"^extraction: the pipeline is on fire") as failure:
        train(with_fault(config, f"fail {make_order_blocks(config)[2][1]}"))
    assert "no step of" in failure.value.__notes__[0]
    assert has_ended(extraction_pid(config))
    with pytest.raises(InputError, match=r"^extraction: config.model.id is 'other'; it must be planted$"):
        train(dataclasses.replace(config, model=ModelConfig(id="other"), run=config.run + "2"))
    assert not pathlib.Path(config.run + "2").exists()


def test_another_plan_in_the_same_run_is_refused(config):
    with pytest.raises(EnvironmentFailure):
        train(with_fault(config, f"fail {make_order_blocks(config)[0][0]}"))
    other = dataclasses.replace(config, extract=dataclasses.replace(config.extract, chunk_rows=16))
    with pytest.raises(InputError, match=r"live was made with chunk_rows 32, this run has 16; remove it, or choose an"):
        train(other)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"held_out": 0.0}, "config.data.held_out is 0; it must be above 0"),
        ("data", {"stores": ("a", "b")}, "config.data.stores is a,b; it must be empty"),
        ("data", {"lanes": 2}, "config.data.lanes is 2; it must be 1"),
        ("data", {"resident": "yes"}, "config.data.resident is 'yes'; it must be auto or no"),
        ("data", {"site": "other"}, "config.data.site is 'other'; config.extract.sites has unet.mid_block"),
        ("extract", {"save_images": True}, "config.extract.save_images is True; it must be False"),
        ("extract", {"worker": 0, "workers": 2}, "config.extract.workers is 2; it must be 1 or None"),
        ("", {"run": "s3://bucket/run"}, "config.run is 's3://bucket/run'; it must be a local folder"),
    ],
)
def test_settings_that_a_live_run_does_not_support_are_refused(config, section, fields, message):
    def start():
        changes = {section: dataclasses.replace(getattr(config, section), **fields)} if section else fields
        train(dataclasses.replace(config, **changes))

    with pytest.raises(InputError, match=r"^config.data.live is True and " + re.escape(message)):
        start()


def test_several_processes_are_refused(config, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"config.mesh.distributed is True; it must be False"):
        open_run(config)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("train", {"batch_size": 320}, "gives blocks of 512 rows; two dispatches need 640; increase config.data.live_"),
        (
            "sae",
            {"b_dec_init_rows": 2048},
            "config.sae.b_dec_init_rows is 2048, but the first two blocks .* have 1,024",
        ),
    ],
)
def test_blocks_that_are_too_small_are_refused(config, section, fields, message):
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)}))
    assert not pathlib.Path(config.run, "checkpoints").exists()


def test_only_train_reads_a_live_run_without_rows(config, trained):
    with pytest.raises(InputError, match=r"run/live has no rows yet; run revelio train"):
        evaluate(config)
    with pytest.raises(InputError, match=r"config.data.live is True; a grid needs stores"):
        train_grid(config, ["sae.k=2,3"])
    # A run on a store is no live run, although neither saves the other's fields.
    live = dataclasses.replace(trained, data=dataclasses.replace(trained.data, live=True))
    (step, *_), rows = checkpoints.steps(pathlib.Path(trained.run)), open_run(trained)[1].record()
    meta = checkpoints.read_meta(pathlib.Path(trained.run), step)
    with pytest.raises(InputError, match=r"config.data.live is True, but run .* was trained with False"):
        checkpoints.check(pathlib.Path(trained.run), meta, checkpoints.run_identity(live, rows))
    for name in ("live", "live_shards"):
        del meta["identity"]["config.data"][name]  # a run of an earlier version
    checkpoints.check(pathlib.Path(trained.run), meta, checkpoints.run_identity(trained, rows))
