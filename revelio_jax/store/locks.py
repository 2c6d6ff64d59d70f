"""Workers that write one store together, and locks that keep two runs from writing the same shards.

While a worker writes, it locks its own file ``STORE/.locks/NUMBER-of-COUNT``. The system releases the lock when the
process ends for any reason. The folder of locks is removed when the store is finished. Locks need a file system with
flock. On gs://, s3:// and memory:// two runs of the same command repeat each other's work and write the same bytes.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import typing
from collections.abc import Generator

from revelio_jax import file_locks
from revelio_jax.errors import InputError

FOLDER = ".locks"


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of ``count`` workers: shard i belongs to worker i % count."""

    number: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"worker {self.number} of {self.count}"

    def owns(self, shard: int) -> bool:
        return shard % self.count == self.number

    def overlaps(self, other: "Worker") -> bool:
        """Return whether some shard of a large enough store belongs to both workers."""
        return (self.number - other.number) % math.gcd(self.count, other.count) == 0


@contextlib.contextmanager
def exclusive(folder: pathlib.Path | None) -> Generator[None]:
    """Hold a lock in the block, so that only one process at a time starts or finishes the store."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            file = stack.enter_context(_open_lock(folder / FOLDER / "turn"))
            file_locks.lock(file.fileno(), wait=True)
        yield


@contextlib.contextmanager
def lock_shards(folder: pathlib.Path | None, location: str, worker: Worker) -> Generator[None]:
    """Lock the worker's shards in the block. Raise InputError if another run is writing some of them."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with exclusive(folder):
                for path in sorted((folder / FOLDER).glob("*-of-*")):
                    other = Worker(*map(int, path.name.split("-of-")))
                    if other != worker and worker.overlaps(other):
                        with _open_lock(path) as file:
                            _lock(file, location, other)
                name = f"{worker.number}-of-{worker.count}"
                _lock(stack.enter_context(_open_lock(folder / FOLDER / name)), location, worker)
        yield


def remove(folder: pathlib.Path | None) -> None:
    """Remove the folder of locks, so that the files of a finished store do not depend on the number of workers."""
    if folder is not None:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _lock(file: typing.IO[str], location: str, worker: Worker) -> None:
    if not file_locks.lock(file.fileno(), wait=False):
        run = "another run" if worker.count == 1 else f"another run, as {worker}"
        raise InputError(f"store {location} is being written by {run}")


def _open_lock(path: pathlib.Path) -> typing.IO[str]:
    """Open a lock file for writing; retry if another worker finishes the store and removes the folder meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
