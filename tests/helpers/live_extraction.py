"""An extraction for live runs without a pipeline: the process, its protocol and its store are real, rows are drawn.

``config.extract.prompt`` has a fault: ``fail N`` ends the extraction at shard N, ``nan N`` makes the first row of shard
N infinite, and ``slow N`` sleeps for ten minutes at shard N. The number of the process is in RUN/pid.
"""

import os
import pathlib
import sys
import time

import numpy as np

from extract import live
from revelio_jax import cli
from revelio_jax.errors import EnvironmentFailure, InputError, report_errors
from revelio_jax.store import SitePlan, StorePlan, StoreWriter, Worker

MODULE = "tests.helpers.live_extraction"
SITE, SAMPLES, TOKENS, D, LATENTS = "unet.mid_block", 512, 16, 16, 24


class Job:
    """The planted rows of a config."""

    def __init__(self, fault: str):
        self.kind, _, shard = fault.partition(" ")
        self.shard = int(shard or -1)
        self.directions = np.random.default_rng(1).normal(size=(LATENTS, D))

    def rows(self, sample: int) -> np.ndarray:
        """Return the rows of a sample [16, 16]: sums of 3 of the 24 directions."""
        random = np.random.default_rng([2, sample])
        codes = np.zeros((TOKENS, LATENTS))
        for code in codes:
            code[random.choice(LATENTS, 3, replace=False)] = random.uniform(1, 2, 3)
        return (codes @ self.directions).astype(np.float32)

    def shard_rows(self, job, samples: range, progress):
        shard = samples.start // len(samples)
        if shard == self.shard and self.kind == "fail":
            raise EnvironmentFailure("the pipeline is on fire")
        if shard == self.shard and self.kind == "slow":
            time.sleep(600)
        values = np.concatenate([self.rows(sample) for sample in samples])
        if shard == self.shard and self.kind == "nan":
            values[0] = np.inf
        index = {"sample": np.repeat(samples, TOKENS), "position": np.tile(np.arange(TOKENS), len(samples))}
        index["timestep"] = np.zeros(len(values))
        progress(len(samples))
        return {SITE: {"activations": values} | {name: array.astype(np.int32) for name, array in index.items()}}


def main(argv) -> None:
    config, _ = cli.parse([MODULE, *argv], __doc__, live=(False, "as in extract.run"))
    extract, requests, job = config.extract, live.read_requests(), Job(config.extract.prompt)
    if config.model.id != "planted":
        raise InputError(f"config.model.id is {config.model.id!r}; it must be planted")
    shards = SAMPLES // extract.shard_samples
    site = SitePlan(SITE, D, (extract.shard_samples * TOKENS,) * shards)
    plan = StorePlan((site,), "float32", extract.chunk_rows, extract.shard_samples, SAMPLES, {})
    writer = StoreWriter(extract.store, plan, [{"id": i, "prompt": f"prompt {i}"} for i in range(SAMPLES)])
    pathlib.Path(config.run, "pid").write_text(str(os.getpid()))
    live.write_requested(job, job, writer, Worker(), requests)


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
