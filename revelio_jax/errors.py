"""Wrong input and failures of the machine, which end a command with one line on stderr.

Exit status 2: a wrong field, argument or file. Exit status 1: a full disk, too little memory, no network.
All other exceptions are programming errors and keep their traceback. REVELIO_TRACEBACK=1 always prints it.
"""

import contextlib
import errno
import importlib.util
import os
import pathlib
import re
import select
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Generator

try:
    import resource
except ImportError:  # Windows
    resource = None

ADDRESS_SPACE = 2 << 30  # bytes; with less, threads of XLA cannot start, and it ends the process with its own text
ONLY_POSIX = "revelio_jax runs on Linux and macOS; on Windows use WSL"

# Messages of torch, JAX, CUDA libraries and the C++ library about memory that cannot be allocated.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|RESOURCE_EXHAUSTED|allocate memory|ALLOC_FAILED|std::bad_alloc|can't start new thread", re.I
)
# TensorStore and safetensors raise errors of other classes that contain the system's error number.
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'|\(os error (\d+)\)")
# TensorStore's messages about a server that does not answer, or that refuses a request again and again.
_STORAGE = re.compile(r"retry attempts failed|CURL error|HTTP response code: 5\d\d")
# JAX's messages about other processes of a run: failed collectives, and lost connections to the coordinator.
_OTHER_PROCESSES = re.compile(r"Gloo \S+ failed|NCCL .*failed|[Cc]oordination ?[Ss]ervice|[Bb]arrier ")
_PLACE_IN_GLOO = re.compile(r".*Gloo \S+ failed: (?:\[[^]]*\] )?")
# Parts of TensorStore's messages that repeat the answer of the server.
_DETAILS = re.compile(r" \[(?:http|curl)_\w+='(?:[^'\\]|\\.)*'\]", re.S)
# System errors about the state of the machine. Others, for example EACCES, are about the path that the user chose.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG)
# Packages whose exceptions are failures of the network or of a server.
_NETWORK = ("httpx", "httpx2", "huggingface_hub", "requests", "urllib3")


class InputError(ValueError):
    """An invalid field, argument or file. The message names it, its value and what is allowed."""


class EnvironmentFailure(RuntimeError):
    """A failure of the machine that no argument caused, for example a full disk. The message describes what to do."""


@contextlib.contextmanager
def report_errors() -> Generator[None]:
    """Run a command in the block. Turn errors that need no traceback into one line and an exit status.

    Exit with status 2 on InputError, with 1 on a failure of the machine (see :func:`failure_line`), with 130 on
    Ctrl-C, and with 141 and no line if the reader of stdout or stderr is gone, for example after ``| head``.
    """
    try:
        with _flushed_stdout():
            if sys.platform == "win32":
                raise InputError(ONLY_POSIX)
            yield
    except KeyboardInterrupt:
        _print_to_stderr("stopped by Ctrl-C")
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        line = single_line(str(error)) if isinstance(error, InputError) else failure_line(error)
        if line is None:
            raise
        if os.environ.get("REVELIO_TRACEBACK", "0") != "0":
            traceback.print_exc()
        _print_to_stderr(f"error: {line}")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None


def failure_line(error: BaseException) -> str | None:
    """Return a line about a failure of the machine, disk, memory or network. Return None for any other exception.

    The line ends with the notes of the exception, which :func:`memory_advice` and :func:`failure_advice` add.
    """
    if isinstance(error, EnvironmentFailure):
        text = str(error)
    elif is_out_of_memory(error):
        text = f"out of memory: {first_sentence(error)}"
    elif (number := system_error(error)) is not None:
        path = getattr(error, "filename", None)
        text = f"{path}: {os.strerror(number)}" if path else os.strerror(number)
    elif is_storage_failure(error):
        text = f"object storage: {first_sentence(error)}"
    elif type(error).__name__ == "JaxRuntimeError" and _OTHER_PROCESSES.search(str(error)):
        text = f"lost contact with another process: {_PLACE_IN_GLOO.sub('', first_sentence(error))}"
    elif isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _NETWORK:
        text = f"{type(error).__name__}: {first_sentence(error)}"
    else:
        return None
    return single_line("; ".join([text, *getattr(error, "__notes__", ())]))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of Python, numpy, torch or JAX is about memory that could not be allocated."""
    if isinstance(error, MemoryError):
        return True
    if (number := system_error(error)) is not None:
        return number == errno.ENOMEM
    # torch.OutOfMemoryError and jax.errors.JaxRuntimeError are RuntimeErrors.
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def is_storage_failure(error: BaseException) -> bool:
    """Return whether an exception of TensorStore is about object storage that does not answer."""
    return isinstance(error, ValueError) and bool(_STORAGE.search(str(error)))


def system_error(error: BaseException) -> int | None:
    """Return the number of the system error that an exception reports, for example errno.ENOSPC, or None."""
    if isinstance(error, OSError) and error.errno:
        return error.errno if 0 < error.errno < 200 else None  # some libraries store other numbers there
    found = _SYSTEM_ERROR.search(str(error))
    return int(found[1] or found[2]) if found else None


@contextlib.contextmanager
def memory_advice(advice: str) -> Generator[None]:
    """Add advice, for example which field to lower, to the line of an out-of-memory error in the block.

    Raise EnvironmentFailure first if a limit leaves so little address space that XLA or torch would abort.
    """
    _check_address_space()
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.add_note(advice)
        raise


def _check_address_space() -> None:
    statm = pathlib.Path("/proc/self/statm")  # Linux
    if resource is None or not statm.exists():
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    left = limit - int(statm.read_text().split()[0]) * resource.getpagesize()
    if limit != resource.RLIM_INFINITY and left < ADDRESS_SPACE:
        raise EnvironmentFailure(
            f"out of memory: a limit leaves {max(left, 0) >> 20} MiB of address space (ulimit -v); this needs at least "
            f"{ADDRESS_SPACE >> 20} MiB"
        )


@contextlib.contextmanager
def failure_advice(advice: Callable[[], str]) -> Generator[None]:
    """Add ``advice()``, for example how to continue, to the line of a failure of the machine in the block."""
    try:
        yield
    except Exception as error:
        if failure_line(error) is not None:
            error.add_note(advice())
        raise


def write_failure(what: str, error: Exception, advice: str = "") -> InputError | EnvironmentFailure:
    """Return the exception for ``what``, a file or folder, that cannot be written.

    A wrong path and missing permissions are an InputError; a full disk is an EnvironmentFailure.
    """
    number = system_error(error)
    reason = os.strerror(number) if number else first_sentence(error)
    kind = EnvironmentFailure if number in _MACHINE or is_storage_failure(error) else InputError
    return kind("; ".join(filter(None, [f"{what} cannot be written: {reason}", advice])))


def read_failure(what: str, error: Exception) -> InputError | EnvironmentFailure:
    """Return the exception for ``what``, a file, that cannot be read.

    It is an EnvironmentFailure if object storage does not answer, otherwise an InputError.
    """
    kind = EnvironmentFailure if is_storage_failure(error) else InputError
    return kind(f"{what} cannot be read: {_DETAILS.sub('', str(error))}")


def single_line(text: str) -> str:
    """Return ``text`` with every run of white space replaced by one space."""
    return " ".join(text.split())


def first_sentence(error: BaseException) -> str:
    """Return the beginning of a library's message, which may have many lines, or the name of the error's class."""
    lines = _DETAILS.sub("", str(error)).strip().splitlines()
    return re.split(r"(?<=[a-z])\. (?=[A-Z])", lines[0], maxsplit=1)[0][:300] if lines else type(error).__name__


@contextlib.contextmanager
def _flushed_stdout() -> Generator[None]:
    """Flush stdout after the block. Exit quietly if the reader of stdout or stderr is gone.

    Raise EnvironmentFailure if stdout cannot be written for another reason.
    """
    try:
        try:
            yield
        finally:
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                _discard(sys.stdout)
                raise EnvironmentFailure(f"stdout cannot be written: {error.strerror}") from error
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _reader_is_gone(stream)]
        if not gone:
            raise
        for stream in gone:
            _discard(stream)
        raise SystemExit(128 + signal.SIGPIPE) from None


def _print_to_stderr(line: str) -> None:
    """Print a line to stderr, or nothing if its reader is gone."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _discard(sys.stderr)


def _discard(stream: typing.TextIO) -> None:
    """Discard all output of a stream. Python flushes it once more at exit, and would print a traceback there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _reader_is_gone(stream: typing.TextIO) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def require(package: str, extra: str, user: str) -> None:
    """Raise InputError if a package is not installed. ``user`` needs it and ``extra`` installs it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{user} needs the package {package}; pip install 'revelio_jax[{extra}]'")
