"""Workers that write one store together, and the locks that keep two runs off the same shards.

A worker holds a lock on a file of its own, ``STORE/.locks/NUMBER-of-COUNT``, as long as it writes;
the system releases it when the process ends, however that happens. The folder goes when the store
is finished. Only stores on file systems that have locks (flock) are guarded: with gs://, s3:// and
memory:// two runs of the same command do each other's work again, which changes no byte.
"""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import shutil
import typing
from collections.abc import Iterator

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
def alone(folder: pathlib.Path | None) -> Iterator[None]:
    """Wait until no other process starts or finishes the store."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            file = stack.enter_context(_opened(folder / FOLDER / "turn"))
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def held(folder: pathlib.Path | None, location: str, worker: Worker) -> Iterator[None]:
    """Lock the worker's shards. Raise InputError if another run writes some of them."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with alone(folder):
                for path in sorted((folder / FOLDER).glob("*-of-*")):
                    other = Worker(*map(int, path.name.split("-of-")))
                    if other != worker and worker.overlaps(other):
                        with _opened(path) as file:
                            _lock(file, location, other)
                name = f"{worker.number}-of-{worker.count}"
                _lock(stack.enter_context(_opened(folder / FOLDER / name)), location, worker)
        yield


def remove(folder: pathlib.Path | None) -> None:
    """Remove the locks, so that a finished store does not depend on the number of workers."""
    if folder is not None:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _lock(file: typing.IO, location: str, worker: Worker) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        run = "another run" if worker.count == 1 else f"another run, as {worker}"
        raise InputError(f"store {location} is being written by {run}") from error
    except OSError:  # a file system without locks
        return


def _opened(path: pathlib.Path) -> typing.IO:
    """Open a lock for writing. Another worker may finish the store and remove the folder meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
