"""The shards of one worker: list the missing ones, and write them in a thread."""

import concurrent.futures
import types
from collections.abc import Callable

import tqdm

from extract.jobs import ShardRows
from revelio_jax.store import StorePlan, StoreWriter, Worker


class BackgroundWriter:
    """A context manager that writes each shard in a thread while the next shard is computed.

    At most two shards are in memory: one in the thread, one being computed. An error in the thread is raised by the
    next call of :meth:`advance`, :meth:`write_shard` or :meth:`wait`, or when the block ends.
    """

    def __init__(self, write: Callable[[int, ShardRows], None], progress: tqdm.tqdm):
        self._write, self._progress = write, progress
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "write")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, _: object, __: types.TracebackType | None) -> None:
        self._thread.shutdown()
        if error_type is None:
            self.wait()

    def advance(self, count: int) -> None:
        """Add ``count`` samples to the progress bar. Raise the error of the thread if it failed."""
        self._progress.update(count)
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def write_shard(self, shard: int, rows: ShardRows) -> None:
        """Wait until the previous shard is written, then write ``rows`` in the thread."""
        self.wait()
        self._pending = self._thread.submit(self._write, shard, rows)

    def wait(self) -> None:
        """Wait until the previous shard is written. Raise the error of the thread if it failed."""
        if self._pending is not None:
            self._pending.result()


def samples_of(shard: int, plan: StorePlan) -> range:
    """Return the ids of the samples of a shard."""
    return range(shard * plan.shard_samples, min((shard + 1) * plan.shard_samples, plan.samples))


def missing_shards(writer: StoreWriter, worker: Worker) -> list[int]:
    """Return the shards of the worker that are not written yet, in order."""
    return [shard for shard in writer.missing() if worker.owns(shard)]


def progress_bar(writer: StoreWriter, worker: Worker, missing: list[int], unit: str, passes: int) -> tqdm.tqdm:
    """Return a progress bar over the worker's samples, each counted ``passes`` times."""
    plan = writer.plan
    sizes = {shard: passes * len(samples_of(shard, plan)) for shard in range(plan.shards) if worker.owns(shard)}
    total = sum(sizes.values())
    finished = total - sum(sizes[shard] for shard in missing)
    return tqdm.tqdm(total=total, initial=finished, desc="extract", unit=unit)


def batch_size_line(writer: StoreWriter) -> str:
    """Return a line if the store has shards of another config.extract.batch_size, otherwise ""."""
    if writer.finished or (written := writer.written_batch_size()) in (None, writer.plan.batch_size):
        return ""
    return (
        f"store {writer.location} was begun with config.extract.batch_size={written} and continues with "
        f"{writer.plan.batch_size}; the last bits of rows may depend on the batch size"
    )


def waiting_line(missing: list[int], worker: Worker, shards: int) -> str:
    """Return a line with the number of shards that each other worker still has to write."""
    counts = {
        number: sum(Worker(number, worker.count).owns(shard) for shard in missing) for number in range(worker.count)
    }
    owners = ", ".join(f"{count} of worker {number}" for number, count in counts.items() if count)
    return (
        f"{worker} is finished; {len(missing)} of {shards} shards are missing: {owners}; "
        "the last worker to finish writes the manifest"
    )
