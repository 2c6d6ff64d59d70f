"""The supervisor of a process relays its output and status, and turns XLA's reports of lost processes into one line."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT

LOG = "1128 22:13:29.232303    6018 coordination_service_agent.cc:289] Polled an error from coordination service"
FATAL = (
    f"E{LOG}\nF{LOG.replace('coordination_service_agent.cc', 'client.h')} Terminating process because the JAX "
    "distributed service detected fatal errors.\n{}*** Check failure stack trace: ***\n"
)
SILENT = "The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed.\n"
REGISTER = "RPC: /xla.coordination.CoordinationService/RegisterTask\n"
PREEMPTED = "W1128 22:13:29.232303    6018 preemption_notifier.cc:89] SIGTERM caught at 2026-11-28T22:13:29+00:00"
ABSENT = "error: not all processes connected within 9 s (config.mesh.start_timeout); go on\n"
LOST = "error: lost contact with process {}, which ended or did not answer for 7 s (config.mesh.timeout); go on\n"


@pytest.fixture
def start():
    """``start(body, before)`` starts a process whose supervised part is ``body``; ``before`` runs in the parent too."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, before: str = "") -> subprocess.Popen[str]:
        code = (
            "import os, signal, subprocess, sys, time\n"
            "from revelio_jax.config import MeshConfig\n"
            "from revelio_jax.errors import InputError\n"
            "from revelio_jax.training import supervisor\n"
            f"{before}\n"
            "supervisor.supervise(MeshConfig(timeout=7, start_timeout=9), lambda: 'go on')\n"
            f"{body}\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("print('out'); sys.stderr.write('err')", 0, "err"),
        ("sys.exit(3)", 3, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        # Another program may keep stderr open.
        ("subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL); sys.stderr.write('end\\n')", 0, "end\n"),
        # Aborts for other reasons keep their text and signal.
        ("os.write(2, b'double free\\n'); os.abort()", -signal.SIGABRT, "double free\n"),
        (f"os.write(2, {FATAL.format(SILENT).encode()}); os.abort()", 1, LOST.format("1, 3")),
        (f"os.write(2, b' 3%|bar' + {FATAL.format('').encode()}); os.abort()", 1, " 3%|bar\n" + LOST.format("0")),
        (f"os.write(2, {FATAL.format(REGISTER).encode()}); os.abort()", 1, ABSENT),
        # The process noticed it too, a moment before or after XLA's text.
        (f"os.write(2, {FATAL.format('').encode()} + b'error: peer\\nrest\\n'); os._exit(1)", 1, "error: peer\n"),
        (f"os.write(2, b'W{LOG}\\nerror: peer\\n'); os._exit(2)", 2, "error: peer\n"),
        # A warning that has no consequence is printed, also before an abort for another reason.
        (f"os.write(2, b'W{LOG}\\n')", 0, f"W{LOG}\n"),
        (f"os.write(2, b'{PREEMPTED}\\ndouble free\\n'); os.abort()", -signal.SIGABRT, f"{PREEMPTED}\ndouble free\n"),
        ("with supervisor.ending_at_once(): raise InputError('wrong')", 2, "error: wrong\n"),
        ("with supervisor.ending_at_once(): sys.exit(143)", 143, ""),
    ],
    ids=(
        "output",
        "status",
        "killed",
        "stderr stays open",
        "another abort",
        "silent processes",
        "coordinator",
        "absent process",
        "noticed twice",
        "noticed with its own status",
        "warning",
        "warning and another abort",
        "wrong input",
        "stopped",
    ),
)
def test_status_and_stderr(start, body, status, stderr):
    process = start(body)
    if "sleep" in body:  # its stderr stays open
        assert process.wait(120) == status
        assert process.stderr.readline() == stderr
        return
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (status, stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_sigterm_reaches_the_process_and_a_killed_supervisor_ends_it(start):
    process = start("signal.signal(15, lambda *_: sys.exit(9)); print(os.getpid(), flush=True); time.sleep(600)")
    process.stdout.readline()
    process.terminate()
    assert process.wait(120) == 9
    process = start("print(os.getpid(), flush=True); time.sleep(600)")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + 120
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(child)


def test_sigterm_after_the_end_of_the_process_keeps_its_status(start):
    before = (
        "def wait(*arguments, waitpid=os.waitpid):\n"
        "    result = waitpid(*arguments)\n"
        "    if result[0]: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return result\n"
        "os.waitpid = wait"
    )
    process = start("sys.exit(3)", before)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 3
