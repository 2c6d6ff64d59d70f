"""Compute the embeddings of a store in a process of their own, because they need PyTorch and the caller uses JAX."""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from revelio_jax.config import Config
from revelio_jax.errors import EnvironmentFailure, InputError, require
from revelio_jax.interpret.embeddings import embedding_file
from revelio_jax.store import Store

MODULE = "revelio_jax.interpret.embeddings"
ERROR = "error: "


def embeddings(config: Config, store: Store) -> np.ndarray:
    """Return the embeddings [samples, E] by config.interpret.embedder. Compute them unless the run has them.

    Raise InputError if the model cannot embed the samples.
    """
    path = pathlib.Path(config.run or "", embedding_file.NAME)
    model = embedding_file.fingerprint(config.interpret.embedder or "")
    existing = embedding_file.read(path, store.fingerprint, model)
    if existing is not None and len(existing) == store.manifest["samples"]:
        return existing
    require("transformers", "steer", embedding_file.FIELD)
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(".json", "revelio-")
    try:
        with os.fdopen(number, "w") as file:
            file.write(config.to_json())
        # Errors arrive on its stdout, so that its progress bar can use stderr.
        done = subprocess.run(
            [sys.executable, "-m", MODULE, "--config", name, "--config.run", str(path.parent), "--errors_on_stdout"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        pathlib.Path(name).unlink(missing_ok=True)
    if done.returncode:
        lines = [line.removeprefix(ERROR) for line in done.stdout.splitlines() if line.startswith(ERROR)]
        if lines:
            raise InputError(lines[-1])
        raise EnvironmentFailure(f"the process that embeds the samples ended with status {done.returncode}")
    computed = embedding_file.read(path, store.fingerprint, model)
    if computed is None:
        raise EnvironmentFailure(f"{path} was written, but cannot be read")
    return computed
