"""The process that extracts the shards of a live run: ``python -m extract.run --live``.

It reads the numbers of shards from its standard input, one per line, and ends at end-of-file, so it ends with the
trainer. It prints ``written N`` after shard N.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable

from revelio_jax.config import Config
from revelio_jax.errors import EnvironmentFailure, InputError

MODULE = "extract.run"
READY, WRITTEN = "ready", "written "
SECONDS_TO_END = 10


class Extraction:
    """A running extraction with the configuration ``config``.

    A thread calls ``ready()`` once the plan of the store is written, ``written(shard)`` after each shard, and
    ``ended(error)`` when the process has ended for any reason. Other output goes to stdout and stderr.
    """

    def __init__(
        self,
        config: Config,
        ready: Callable[[], None],
        written: Callable[[int], None],
        ended: Callable[[Exception], None],
    ):
        self._ready, self._written, self._ended = ready, written, ended
        self._error_line = ""
        number, path = tempfile.mkstemp(".json", "revelio-")
        with os.fdopen(number, "w") as file:
            file.write(config.to_json())
        self._config = pathlib.Path(path)  # deleted once the process has read it
        # In a session of its own, because Ctrl-C would end it before the trainer.
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "--config", str(self._config), "--live"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env=os.environ | {"TQDM_DISABLE": "1"},
        )  # fmt: skip
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_errors, self._read_output)]
        for thread in self._threads:
            thread.start()

    def request(self, shards: Iterable[int]) -> None:
        """Ask for shards, in order."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the thread reports
            self._process.stdin.write("".join(f"{shard}\n" for shard in shards))
            self._process.stdin.flush()

    def close(self) -> None:
        """End the process and wait for its end."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(SECONDS_TO_END)  # a child of the extraction may hold the pipes open

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("error: "):
                self._error_line = line.removeprefix("error: ").strip()
            else:
                print(line, end="", file=sys.stderr, flush=True)
        self._config.unlink(missing_ok=True)

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if line.strip() == READY:
                    self._config.unlink()
                    self._ready()
                elif line.startswith(WRITTEN):
                    self._written(int(line.removeprefix(WRITTEN)))
                else:
                    print(line, end="", flush=True)
            status = self._process.wait()
            self._threads[0].join()
        except Exception as error:  # for example a marker that cannot be read; the trainer must not wait for ever
            self._ended(error)
        else:
            self._ended(_error(status, self._error_line))


def _error(status: int, line: str) -> Exception:
    """Return the exception for an extraction that ended with ``status`` and printed the error ``line``."""
    if status < 0:
        return EnvironmentFailure(f"extraction was ended by {signal.Signals(-status).name}")
    if not line:
        return EnvironmentFailure(f"extraction ended with status {status}")
    # The store is a part of the run.
    line = line.replace("choose another config.extract.store", "remove it, or choose another config.run")
    kind = InputError if status == 2 else EnvironmentFailure
    return kind(f"extraction: {line}")
