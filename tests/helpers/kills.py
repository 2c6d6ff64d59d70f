"""Commands that end by SIGKILL at a named place: at a call of a Python function, or at a call of the C library.

A server process imports the command once. Each run is a fork of it, so it starts in milliseconds.
"""

import ctypes
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence

import pytest

from tests.helpers import ROOT

SOURCE = pathlib.Path(__file__).with_name("kill_at.c")


class Place(typing.NamedTuple):
    """A place in a command: before the ``number``-th call.

    ``call`` is a Python function, ``module:name``, or ``write``, ``rename`` or ``unlink`` of a path that contains
    ``path``. Half of the bytes of a write are written.
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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(arguments), place]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def kill(self, arguments: Sequence[str], place: Place) -> None:
        """Run the command and check that it was killed at the place."""
        status = self.run(arguments, place)
        assert status == -signal.SIGKILL, f"{place} ended with status {status}"

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def kill_library(tmp_path_factory) -> pathlib.Path:
    """The compiled kill_at.c. Skip the test without a C compiler or outside of Linux."""
    library = tmp_path_factory.mktemp("kills") / "kill_at.so"
    if sys.platform != "linux":
        pytest.skip("calls of the C library are caught on Linux only")
    try:
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    return library


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


def _child(library: str, main: typing.Callable[[list[str]], None], arguments: list[str], place: Place | None) -> None:
    os.dup2(2, 1)  # stdout belongs to the server
    status = 1
    try:
        if place:
            _arm(library, place)
        main(arguments)
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(library: str, command: str, *modules: str) -> None:
    main = importlib.import_module(command).main
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        arguments, place = json.loads(line)
        child = os.fork()
        if not child:
            _child(library, main, arguments, Place(*place) if place else None)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
