"""Run coroutines in tests."""

import asyncio
import concurrent.futures
import typing
from collections.abc import Coroutine

T = typing.TypeVar("T")


def run(coroutine: Coroutine[typing.Any, typing.Any, T]) -> T:
    """Return the result of a coroutine, run in a thread: Playwright keeps a loop running in the main thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
