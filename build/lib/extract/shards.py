"""The shards of a store that are one worker's: each is made while the one before is written."""

import concurrent.futures
import typing

import tqdm

from extract.jobs import ExtractionJob
from revelio_jax.store import StorePlan, StoreWriter, Worker


def samples_of(shard: int, plan: StorePlan) -> range:
    return range(shard * plan.shard_samples, min((shard + 1) * plan.shard_samples, plan.samples))


def write(writer: StoreWriter, worker: Worker, work: ExtractionJob) -> dict[str, typing.Any] | None:
    """Write what is missing of the worker's shards; the manifest too, where that was the last of all.

    Two shards are in memory at most: one that is made, one that a thread writes. Returns the manifest, or
    None while other workers have shards to write, which one line then tells. Raises InputError where the
    store cannot be written, at the batch that is being made, or where another run writes it.
    """
    with writer.claimed(worker):
        mine = [shard for shard in range(writer.plan.shards) if worker.owns(shard)]
        missing = sorted(set(mine) & set(writer.missing()))
        size = {shard: work.rounds * len(samples_of(shard, writer.plan)) for shard in mine}
        total = sum(size.values())
        done_before = total - sum(size[shard] for shard in missing)
        with (
            tqdm.tqdm(total=total, initial=done_before, desc="extract", unit=work.unit) as progress,
            concurrent.futures.ThreadPoolExecutor(1, "write") as thread,
        ):
            writing: concurrent.futures.Future | None = None

            def done(count: int) -> None:
                progress.update(count)
                if writing and writing.done():
                    writing.result()  # raises what the thread did: no need to finish a shard first

            for shard in missing:
                rows = work.shard(samples_of(shard, writer.plan), done)
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
