"""User errors, which end a command with one line on stderr and exit status 2."""

import contextlib
import importlib.util
import os
import select
import signal
import sys
from collections.abc import Generator


class InputError(ValueError):
    """An invalid field, argument or file. The message names it, its value and what is allowed."""


@contextlib.contextmanager
def report_errors() -> Generator[None]:
    """Run a command in the block. Turn errors that need no traceback into one line and an exit status.

    Exit with status 2 on InputError, with 130 on Ctrl-C, and with 141 and no line if the reader of stdout is gone,
    for example after ``| head``.
    """
    try:
        with _flushed_stdout():
            yield
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


@contextlib.contextmanager
def _flushed_stdout() -> Generator[None]:
    """Flush stdout after the block. Exit quietly if its reader is gone; raise the errors of other pipes."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_of_stdout_is_gone():
            raise
        # Python flushes once more at exit, and would print a traceback there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def _reader_of_stdout_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def require(package: str, extra: str, user: str) -> None:
    """Raise InputError if a package is not installed. ``user`` needs it and ``extra`` installs it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{user} needs the package {package}; pip install 'revelio_jax[{extra}]'")
