"""Run a process of a multi-process run as the child of a supervisor, which reports lost processes in one line.

When another process is lost, XLA aborts from a thread of its own, with a stack trace. Python cannot catch that, so the
supervisor holds back what XLA writes about other processes. If XLA then aborts, it prints one line instead.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator

from revelio_jax.config import MeshConfig
from revelio_jax.errors import report_errors

# XLA's log lines about other processes. Several follow each other within milliseconds before XLA aborts.
_ABOUT_PROCESSES = re.compile(rb"[WEF]\d{4} [\d:.]+ +\d+ (?:coordination_service|preemption_|client)\w*\.(?:cc|h):")
_ERROR = re.compile(rb"^error: .*\n?", re.M)
_SILENT = re.compile(r"stopped sending heartbeats\):\s*(\d[\d\s,]*)")
_FATAL = re.compile(rb"F\d{4} [\d:.]+ +\d+ (?:coordination_service|client)\w*\.(?:cc|h):")  # XLA aborts after it
_HOLD_S = 15.0  # other text that is held back is printed after this time
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def supervise(mesh: MeshConfig, advice: Callable[[], str]) -> None:
    """Continue in a child. The parent relays stderr and signals, and exits as the child does; it never returns.

    If XLA aborts because another process is lost, the parent prints one line, which ends with ``advice()``, and exits
    with status 1. ``mesh`` has the timeouts that the line names. Call this before any use of JAX.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the parent can pass it on
    parent, child = os.getpid(), os.fork()
    if not child:
        os.dup2(write, 2)
        os.close(read)
        os.close(write)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if sys.platform == "linux":  # elsewhere, a child whose parent is killed ends only with the run
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
        return
    os.close(write)

    def pass_on(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # the child has just ended
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the child, too
    status, held, gap = _relay(read, child)
    if status and (error := _ERROR.search(held)):  # the child itself noticed it, too
        _print(gap + error[0])
        os._exit(max(status, 1))
    if status == -signal.SIGABRT and _FATAL.search(held):
        _print(gap + f"error: {_line(held.decode(errors='replace'), mesh)}; {advice()}\n".encode())
        os._exit(1)
    _print(held)
    if status < 0:  # end by the same signal, for the shell or the scheduler
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


@contextlib.contextmanager
def ending_at_once() -> Generator[None]:
    """Report an error of the block and end the process at once. JAX would wait for the other processes at its end."""
    try:
        with report_errors():
            try:
                yield
            except SystemExit as end:  # all processes stop together
                status = end
            else:
                return
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        raise status
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _relay(read: int, child: int) -> tuple[int, bytes, bytes]:
    """Relay stderr of the child until it ends.

    Return its exit status, the text that is still held back, and what must be printed before the next line: a line feed
    if a progress bar stands there.

    A process that the child started may keep the pipe open longer, so its end is not awaited.
    """
    status, held, since, gap = None, b"", 0.0, b""
    while True:
        has_text = bool(select.select([read], [], [], 0.0 if status is not None else 0.5)[0])
        if held and status is None and not _FATAL.search(held) and time.monotonic() > since + _HOLD_S:
            _print(held)
            held = b""
        data = os.read(read, 65536) if has_text else b""
        if status is not None and not data:
            return status, held, gap
        if status is None and not data:
            number, end = os.waitpid(child, os.WNOHANG if not has_text else 0)
            status = os.waitstatus_to_exitcode(end) if number else None
        if not held and (found := _ABOUT_PROCESSES.search(data)):
            held, since, data = data[found.start() :], time.monotonic(), data[: found.start()]
        elif held:
            held, data = held + data, b""
        if data:
            _print(data)
            gap = b"" if data.endswith(b"\n") else b"\n"


def _line(text: str, mesh: MeshConfig) -> str:
    """Return a line about lost processes from what XLA wrote about them."""
    if "RegisterTask" in text:
        return f"not all processes connected within {mesh.start_timeout} s (config.mesh.start_timeout)"
    found = _SILENT.search(text)
    # Otherwise the connection to the coordinator is lost.
    lost = ", ".join(found[1].replace(",", " ").split()) if found else "0"
    return f"lost contact with process {lost}, which ended or did not answer for {mesh.timeout} s (config.mesh.timeout)"


def _print(text: bytes) -> None:
    """Write to stderr. The child must not wait for a reader that is gone."""
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(text)
        sys.stderr.buffer.flush()
