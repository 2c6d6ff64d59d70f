"""Write the shards that a trainer asks for, one number per line on standard input.

Prints ``ready`` once the store has its plan, and ``written N`` after shard N. The process ends when its standard input
ends, so it does not outlive the trainer.
"""

import os
import queue
import signal
import sys
import threading
import typing

import tqdm

from extract import shards
from extract.jobs import ShardRows
from revelio_jax.errors import InputError
from revelio_jax.store import StoreWriter, Worker

Requests = queue.SimpleQueue[int]


def read_requests() -> Requests:
    """Return a queue that a thread fills with the numbers from standard input. At its end, the process ends at once.

    Every file is written as a whole, so the process may end at any moment. SIGTERM is ignored, because a cluster sends
    it to all processes of a job, and the trainer then saves its state first.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests: Requests = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(int(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests


def write_requested(
    mode: typing.Any, job: typing.Any, writer: StoreWriter, worker: Worker, requests: Requests
) -> typing.NoReturn:
    """Write the requested shards without end; the arguments are those of :func:`extract.run.write_missing_shards`.

    Raise InputError if the store is finished, if it cannot be written, or if another run is writing it.
    """

    if writer.finished:
        raise InputError(f"store {writer.location} is finished; train on it without config.data.live")

    def write(shard: int, rows: ShardRows) -> None:
        writer.write_shard(shard, rows)
        _say(f"written {shard}")

    with (
        writer.lock_shards(worker),
        tqdm.tqdm(disable=True) as progress,
        shards.BackgroundWriter(write, progress) as background,
    ):
        _say("ready")
        while True:
            if requests.empty():
                background.wait()  # so that a failed write is raised, although no other shard may be requested
            shard = requests.get()
            samples = shards.samples_of(shard, writer.plan)
            background.write_shard(shard, mode.shard_rows(job, samples, background.advance))


def _say(line: str) -> None:
    # One write, because two threads print.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
