"""Commands that end by SIGKILL at a named place: at a call of a Python function, or at a call of the C library.

A server process imports the command once. Each run is a fork of it, so it starts in milliseconds. A run can also be
killed by the clock, and count its calls instead of being killed.
"""

import contextlib
import ctypes
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Iterator, Sequence

import pytest

from tests.helpers import ROOT

CALLS, MANY = ("write", "rename", "unlink"), 1 << 30
SOURCE = pathlib.Path(__file__).with_name("kill_at.c")


class Place(typing.NamedTuple):
    """A place in a command: before the ``number``-th call.

    ``call`` is a Python function, ``module:name``, or ``write``, ``rename`` or ``unlink`` of a path that contains
    ``path``. Half of the bytes of a write are written. ``call`` can also be ``clock``: after ``number`` milliseconds.
    """

    call: str
    number: int = 1
    path: str = ""


class Server:
    """Runs a command with a place at which it is killed."""

    def __init__(self, library: pathlib.Path, *modules: str):
        environment = os.environ | {"LD_PRELOAD": str(library), "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.kills", str(library), *modules],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, arguments: Sequence[str], place: Place | None = None) -> int:
        """Run the command and return its exit status, negative for a signal."""
        return self._run(arguments, place)[0]

    def count(self, arguments: Sequence[str], path: str) -> dict[str, int]:
        """Run the command to its end and return the number of its calls of the C library at paths with ``path``."""
        status, calls = self._run(arguments, Place(CALLS[0], MANY, path))
        assert status == 0, f"status {status}"
        return dict(zip(CALLS, calls, strict=True))

    def _run(self, arguments: Sequence[str], place: Place | None) -> tuple[int, list[int]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(arguments), place]) + "\n")
        self._process.stdin.flush()
        status, calls = json.loads(self._process.stdout.readline())
        return status, calls

    def kill(self, arguments: Sequence[str], place: Place) -> None:
        """Run the command and check that it was killed at the place."""
        status = self.run(arguments, place)
        assert status == -signal.SIGKILL, f"{place} ended with status {status}"

    def close(self) -> None:
        self._process.communicate()


def compile_library(folder: pathlib.Path) -> pathlib.Path:
    """Compile kill_at.c. Raise FileNotFoundError without a C compiler."""
    library = folder / "kill_at.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def kill_library(tmp_path_factory) -> pathlib.Path:
    """The compiled kill_at.c. Skip the test without a C compiler or outside of Linux."""
    if sys.platform != "linux":
        pytest.skip("calls of the C library are caught on Linux only")
    try:
        return compile_library(tmp_path_factory.mktemp("kills"))
    except FileNotFoundError:
        pytest.skip("there is no C compiler")


@pytest.fixture
def kill_server(kill_library) -> Iterator[typing.Callable[..., Server]]:
    """A function that starts the server of a command, given by its module and by other modules to import once."""
    servers: list[Server] = []

    def start(*modules: str) -> Server:
        servers.append(Server(kill_library, *modules))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def _arm(library: str, place: Place) -> None:
    module, colon, name = place.call.partition(":")
    if not colon:
        ctypes.CDLL(library).kill_at(place.call.encode(), place.number, place.path.encode())
        return
    *owners, last = name.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    function, left = getattr(owner, last), place.number

    def count(*arguments, **keywords):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    setattr(owner, last, count)


def _child(
    library: str, main: typing.Callable[[list[str]], None], arguments: list[str], place: Place | None, counted: int
) -> None:
    os.dup2(2, 1)  # stdout belongs to the server
    status = 1
    try:
        if place and place.call != "clock":
            _arm(library, place)
        main(arguments)
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os.write(counted, json.dumps([ctypes.CDLL(library).calls_made(kind) for kind in range(len(CALLS))]).encode())
        os._exit(status)


def _wait(child: int, place: Place | None) -> int:
    """Wait for the child and return its exit status; kill it when its time is over."""
    end = time.monotonic() + place.number / 1000 if place and place.call == "clock" else None
    while end is not None and time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.001)
    else:
        if end is not None:
            os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _serve(library: str, command: str, *modules: str) -> None:
    main = importlib.import_module(command).main
    for module in modules:
        with contextlib.suppress(Exception):  # some modules of a finished command were made by others
            importlib.import_module(module)
    for line in sys.stdin:
        arguments, place = json.loads(line)
        place = Place(*place) if place else None
        counts, counted = os.pipe()
        child = os.fork()
        if not child:
            _child(library, main, arguments, place, counted)
        os.close(counted)
        status = _wait(child, place)
        print(json.dumps([status, json.loads(os.read(counts, 100) or "[]")]), flush=True)
        os.close(counts)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
