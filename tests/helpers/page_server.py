"""Serve a page of the explorer on this machine, in a thread."""

import contextlib
import threading
import time
import typing
from collections.abc import Generator

from revelio_jax.explore import server


@contextlib.contextmanager
def serving(application: typing.Any) -> Generator[int]:
    """Serve the result of ``server.application`` in the block and yield its port."""
    listener = server.listen("127.0.0.1", 0)
    running = server.server(application)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()
