"""JAX on 8 devices of the host, and the small stores and runs that tests of the trainer share."""

import importlib.metadata
import os
import pathlib

# These variables must be set before JAX is imported. Subprocesses inherit them.
# Tests compile hundreds of small programs: without most optimizations this takes less than half the time. Commands
# that run in the environment `one_device` are compiled as for users.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
if importlib.metadata.version("jax").startswith("0.10."):  # JAX 0.12 does not know this flag and would abort
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Parallel workers share the cores; torch in each would otherwise start a thread per core.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests train the same small model. Parallel workers, subprocesses and later sessions share what is compiled.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parents[1] / ".cache" / f"jax-{importlib.metadata.version('jax')}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import collections
import dataclasses
import functools
import json
import socket

import hypothesis
import numpy as np
import pytest

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
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from tests.helpers.browser import chromium, visit  # noqa: F401 - imported here once, so that a session starts one browser
from tests.helpers.configs import changed
from tests.helpers.disks import forbidden_folder, small_disk  # noqa: F401
from tests.helpers.kills import kill_library, kill_server  # noqa: F401

# Deadlines would fail on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SITE, D, DICTIONARY, ACTIVE, SAMPLES, TOKENS = "clip.layer.1", 16, 24, 3, 256, 16


@pytest.hookimpl(tryfirst=True)  # before -m selects tests by their markers
def pytest_collection_modifyitems(items):
    for item in items:
        if {"chromium", "visit"} & set(item.fixturenames):
            item.add_marker("browser")
    # Parallel workers take whole files. Files that consist of slow tests come first, so that all workers end together.
    tests = collections.Counter(item.path for item in items)
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path] / tests[item.path])


@pytest.fixture(scope="session")
def one_device() -> dict[str, str]:
    """The environment of a command outside the tests: JAX sees the CPU as one device that uses all cores."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="session")
def quick_device() -> dict[str, str]:
    """As ``one_device``, but programs are compiled without most optimizations, as in the tests themselves."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return os.environ | {"XLA_FLAGS": flags}


@pytest.fixture(scope="session")
def directions() -> np.ndarray:
    """The planted dictionary: 24 unit vectors of width 16."""
    directions = np.random.default_rng(1).normal(size=(DICTIONARY, D))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def planted(directions) -> np.ndarray:
    """Rows [4096, 16]: sums of 3 of the 24 directions, far from the origin."""
    random = np.random.default_rng(0)
    codes = np.zeros((SAMPLES * TOKENS, DICTIONARY))
    for code in codes:
        code[random.choice(DICTIONARY, ACTIVE, replace=False)] = random.uniform(1, 2, ACTIVE)
    return (7 * random.normal(size=D) + 3 * codes @ directions).astype(np.float32)


@pytest.fixture(scope="session")
def write_store():
    """A function that writes rows [N, d] as a store of one hook point with TOKENS rows per sample."""

    def write(location, rows, shard_samples=32, finish=True, site=SITE, dtype="float32", **provenance):
        samples = [{"id": i, "prompt": f"prompt {i}"} for i in range(len(rows) // TOKENS)]
        shards = np.split(rows, range(shard_samples * TOKENS, len(rows), shard_samples * TOKENS))
        plan = SitePlan(site, rows.shape[1], tuple(len(shard) for shard in shards))
        plan = StorePlan((plan,), dtype, 32, shard_samples, len(samples), {"test": "", **provenance})
        writer = StoreWriter(str(location), plan, samples)
        for index, shard in enumerate(shards):
            position = np.arange(len(shard), dtype=np.int32)
            sample = index * shard_samples + position // TOKENS
            arrays = {"activations": shard, "sample": sample, "position": position % TOKENS}
            writer.write_shard(index, {site: arrays | {"timestep": np.zeros_like(position)}})
        if finish:
            writer.finish()
        return str(location)

    return write


@pytest.fixture(scope="session")
def store(tmp_path_factory, planted, write_store) -> str:
    return write_store(tmp_path_factory.mktemp("store") / "planted", planted)


@pytest.fixture(scope="session")
def base(store) -> Config:
    """The config of an SAE that learns the planted dictionary in seconds; ``run`` is not set."""
    return Config(
        model=ModelConfig(id="planted", family="sd"),
        extract=ExtractConfig(store=store),
        sae=SaeConfig(k=ACTIVE, expansion=3, k_aux=16, dead_after_rows=4000),
        train=TrainConfig(
            steps=600,
            batch_size=64,
            learning_rate=1e-2,
            decay_share=0.3,
            checkpoint_every=200,
        ),
        data=DataConfig(held_out=0.1, buffer_chunks=24),
        mesh=MeshConfig(data=1, feature=1),
        logging=LoggingConfig(every=50),
    )


@pytest.fixture(scope="session")
def with_train():
    """A function that returns a config with another run and other fields of train, data, mesh and logging."""
    return changed


@pytest.fixture(scope="session")
def trained(tmp_path_factory, base, with_train) -> Config:
    """The config of a finished run on the planted store."""
    from revelio_jax.train import train

    config = with_train(base, run=str(tmp_path_factory.mktemp("runs") / "planted"))
    train(config)
    return config


# Fields of config.sae and of config.train.
VARIANTS = {
    "batch_topk": ({"architecture": "batch_topk"}, {}),
    "jumprelu": ({"architecture": "jumprelu", "l0_coefficient": 1.0}, {}),
    "dense": ({"architecture": "dense", "latents": 8}, {}),
    "matryoshka": ({"prefixes": (0.25, 1.0)}, {}),
    "ema": ({}, {"ema": 0.99}),
    "annealed": ({"k_start": 12, "k_anneal_steps": 300}, {}),
}


@pytest.fixture(scope="session")
def variant(tmp_path_factory, base, with_train, trained):
    """A function that trains a variant (once per session) and returns the config of its finished run."""
    from revelio_jax.train import train

    @functools.cache
    def run(name: str) -> Config:
        if name == "topk":
            return trained
        sae, options = VARIANTS[name]
        config = with_train(base, run=str(tmp_path_factory.mktemp("runs") / name), **options)
        config = dataclasses.replace(config, sae=dataclasses.replace(config.sae, **sae))
        train(config)
        return config

    return run


@pytest.fixture
def compiled() -> list[str]:
    """The names of the functions that XLA compiles, or reads from its cache on disk, during the test."""
    import jax

    names = []

    def listen(event, _, fun_name="", **rest):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return names


@pytest.fixture(scope="session")
def config_file():
    """A function that writes a Config as a file for ``--config``."""

    def write(path: pathlib.Path, config: Config) -> str:
        values = json.loads(config.to_json())
        path.write_text(
            f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n"
        )
        return str(path)

    return write


@pytest.fixture
def unused_port() -> int:
    """A free port of this machine, where the processes of a test can meet."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
