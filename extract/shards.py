"""The shards of a store that are one worker's: each is made while the one before is written."""

import concurrent.futures
import typing
from collections.abc import Callable

import numpy as np
import tqdm

from revelio_jax.store import StorePlan, StoreWriter, Worker

# What a store takes of one shard: site -> activations [rows, d], sample, position, timestep [rows].
Rows = dict[str, dict[str, np.ndarray]]
Done = Callable[[int], None]


def samples_of(shard: int, plan: StorePlan) -> range:
    return range(shard * plan.shard_samples, min((shard + 1) * plan.shard_samples, plan.samples))


def write(
    writer: StoreWriter, worker: Worker, make_shard: Callable[[int, Done], Rows], passes: int = 1
) -> dict[str, typing.Any] | None:
    """Write what is missing of the worker's shards; the manifest too, where that was the last of all.

    ``make_shard(shard, done)`` returns the rows of a shard, a function of its number alone, and calls
    ``done(n)`` after every batch of n samples, ``passes`` times for each sample in all. Two shards are in
    memory at most: one that is made, one that a thread writes. Returns the manifest, or None while other
    workers have shards to write, which one line then tells. Raises InputError where the store cannot be
    written, at the batch that is being made, or where another run writes it.
    """
    with writer.claimed(worker):
        mine = [shard for shard in range(writer.plan.shards) if worker.owns(shard)]
        missing = [shard for shard in writer.missing() if worker.owns(shard)]
        total, todo = (passes * sum(len(samples_of(s, writer.plan)) for s in of) for of in (mine, missing))
        with (
            tqdm.tqdm(total=total, initial=total - todo, desc="extract", unit="prompt") as progress,
            concurrent.futures.ThreadPoolExecutor(1, "write") as thread,
        ):
            writing: concurrent.futures.Future | None = None

            def done(count: int) -> None:
                progress.update(count)
                if writing and writing.done():
                    writing.result()  # raises what the thread did: no need to finish a shard first

            for shard in missing:
                rows = make_shard(shard, done)
                if writing:
                    writing.result()
                writing = thread.submit(writer.write_shard, shard, rows)
                del rows  # the thread lets go of them when they are written
            if writing:
                writing.result()
        if others := writer.missing():
            print(f"{worker} is done; {_waiting(others, worker.count, writer.plan.shards)}")
            return None
        return writer.finish()


def _waiting(missing: list[int], workers: int, shards: int) -> str:
    """What is missing and by whom."""
    counts = {number: sum(Worker(number, workers).owns(s) for s in missing) for number in range(workers)}
    owners = ", ".join(f"{count} of worker {number}" for number, count in counts.items() if count)
    return f"{len(missing)} of {shards} shards are missing: {owners}; the last worker finishes the store"
