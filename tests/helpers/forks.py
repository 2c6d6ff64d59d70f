"""Processes of Python that skip the import of large libraries, which takes most of the time of a short command.

A template process imports the libraries once. Each process is a fork of it with its own arguments, environment,
working folder and files, and then runs a module, a script or code as ``python`` does. Libraries read some variables
while they are imported: a process with other values of those is a new interpreter.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import typing
import warnings
from collections.abc import Mapping, Sequence

from tests.helpers import ROOT

LIBRARIES = (
    "torch", "transformers", "diffusers", "accelerate", "safetensors.torch", "PIL.Image",
    "jax", "flax.nnx", "optax", "orbax.checkpoint", "tensorstore", "pyarrow.parquet", "ml_collections", "absl.flags",
)  # fmt: skip
# ``diffusers`` and ``transformers`` import these when they are first used.
LAZY = {
    "diffusers": ("AutoencoderKL", "FluxPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "transformers": ("AutoTokenizer", "CLIPTextModel", "CLIPTokenizer", "T5EncoderModel"),
}
# A process may have other values of these: no library reads them while it is imported. Progress bars are always off.
FREE = {
    "PATH", "PYTEST_CURRENT_TEST", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "TQDM_DISABLE", "XLA_FLAGS",
    "TF_CPP_MIN_LOG_LEVEL", "TPU_SKIP_MDS_QUERY",  # which JAX itself sets
}  # fmt: skip
ENVIRONMENT = dict(os.environ)  # of the template


class Process:
    """A started process, with the methods of ``subprocess.Popen`` that tests use. Its output is text."""

    def __init__(self, arguments: Sequence[object], cwd: object, env: Mapping[str, str]):
        self.args = [sys.executable, *map(os.fspath, arguments)]  # pyright: ignore[reportArgumentType]
        self.returncode: int | None = None
        self._status, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = (os.fdopen(file, errors="replace") for file in (out, err))
        request = json.dumps([self.args[1:], str(cwd or pathlib.Path.cwd()), dict(env)]).encode()
        try:
            with open(os.devnull) as stdin:
                socket.send_fds(_template(), [request], [stdin.fileno(), child_out, child_err, status.fileno()])
        finally:
            os.close(child_out)
            os.close(child_err)
            status.close()
        self.pid = int(self._status.recv(100))

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raise subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._status.recv(100))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read stdout and stderr to their ends, and wait. Raise subprocess.TimeoutExpired."""
        end, files = None if timeout is None else time.monotonic() + timeout, (self.stdout, self.stderr)
        texts = ["", ""]

        def read(index: int) -> None:
            with files[index] as file:
                texts[index] = file.read()

        readers = [threading.Thread(target=read, args=(i,), daemon=True) for i, f in enumerate(files) if not f.closed]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[object], cwd: object = None, env: Mapping[str, str] | None = None
) -> "Process | subprocess.Popen[str]":
    """Start ``python`` with ``arguments``: ``-m`` and a module, ``-c`` and code, or a script, then its arguments."""
    environment = dict(os.environ if env is None else env)
    if {name for name, _ in environment.items() ^ ENVIRONMENT.items()} - FREE:
        command = [sys.executable, *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes)  # pyright: ignore
    return Process([str(one) for one in arguments], cwd, environment)


def run(
    arguments: Sequence[object], cwd: object = None, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python`` with ``arguments`` to its end; kill it after ``timeout`` seconds."""
    process = start(arguments, cwd, env)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@functools.cache
def _template() -> socket.socket:
    """Start the template, which ends when this socket is closed."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    command = [sys.executable, "-m", "tests.helpers.forks", str(there.fileno())]
    environment = ENVIRONMENT | {"TQDM_DISABLE": "1"}
    template = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[there.fileno()])
    there.close()

    def end() -> None:
        here.close()
        template.wait()

    atexit.register(end)
    return here


class _Request(typing.NamedTuple):
    arguments: list[str]
    cwd: str
    environment: dict[str, str]


def _serve(requests: socket.socket) -> _Request | None:
    """Fork at each request. Return the request in the fork, and None in the template at the end of its requests."""
    running: dict[int, socket.socket] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, nothing is written to ``wake``
    while True:
        ready = select.select([requests, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1 << 10)
        while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with running.pop(ended[0]) as status, contextlib.suppress(OSError):  # the test no longer waits
                status.send(str(os.waitstatus_to_exitcode(ended[1])).encode())
        if requests not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            return None
        *files, status = fds
        child = os.fork()
        if child:
            running[child] = socket.socket(fileno=status)
            running[child].send(str(child).encode())
            for fd in files:
                os.close(fd)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in (requests.fileno(), woken, wake, status, *(one.fileno() for one in running.values())):
            os.close(fd)
        for target, fd in enumerate(files):
            os.dup2(fd, target)
            os.close(fd)
        return _Request(*json.loads(message))


def _run(request: _Request, libraries_path: list[str]) -> typing.NoReturn:
    """Run the request, then the functions of atexit, and end the process. The libraries are not torn down.

    An exception, or Ctrl-C, ends it as it ends any process.
    """
    try:
        _become(request, libraries_path)
        code = 0
    except SystemExit as exit:
        code = exit.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    threading._shutdown()  # pyright: ignore - waits for the threads, as the interpreter does
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    sys.stderr.flush()
    os._exit(code or 0)


def _become(request: _Request, libraries_path: list[str]) -> None:
    """Run the request as ``python`` does."""
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first, *rest = request.arguments
    own = [path for path in request.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    main = types.ModuleType("__main__")
    if first == "-c":
        sys.path[:] = ["", *own, *libraries_path]
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.path[:] = [os.getcwd(), *own, *libraries_path]
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[:] = [os.path.dirname(os.path.abspath(first)), *own, *libraries_path]
        sys.argv = request.arguments
        runpy.run_path(first, run_name="__main__")


def _main() -> None:
    import importlib

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    stderr = os.dup(2)
    with open(os.devnull, "w") as hints:  # of transformers
        os.dup2(hints.fileno(), 2)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # an environment without torch
            module = importlib.import_module(name)
            for attribute in LAZY.get(name, ()):
                getattr(module, attribute)
    os.dup2(stderr, 2)
    os.close(stderr)
    own = {str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    libraries_path = [path for path in sys.path if path and path not in own]
    gc.collect()
    gc.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of any fork; no thread of it runs yet
        request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request:
        _run(request, libraries_path)


if __name__ == "__main__":
    _main()
