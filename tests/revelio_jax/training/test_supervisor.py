"""The supervisor of a process relays its output and status, and turns XLA's reports of lost processes into one line."""

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
ABSENT = "error: not all processes connected within 9 s (config.mesh.start_timeout); go on\n"
LOST = "error: lost contact with process {}, which ended or did not answer for 7 s (config.mesh.timeout); go on\n"


def start(body: str) -> subprocess.Popen[str]:
    """Start a process whose supervised part is ``body``."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "from revelio_jax.config import MeshConfig\n"
        "from revelio_jax.errors import InputError\n"
        "from revelio_jax.training import supervisor\n"
        "supervisor.supervise(MeshConfig(timeout=7, start_timeout=9), lambda: 'go on')\n"
        f"{body}\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


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
        ("subprocess.Popen(['sleep', '20'], stdout=subprocess.DEVNULL); sys.stderr.write('end\\n')", 0, "end\n"),
        # Aborts for other reasons keep their text and signal.
        ("os.write(2, b'double free\\n'); os.abort()", -signal.SIGABRT, "double free\n"),
        (f"os.write(2, {FATAL.format(SILENT).encode()}); os.abort()", 1, LOST.format("1, 3")),
        (f"os.write(2, b' 3%|bar' + {FATAL.format('').encode()}); os.abort()", 1, " 3%|bar\n" + LOST.format("0")),
        (f"os.write(2, {FATAL.format(REGISTER).encode()}); os.abort()", 1, ABSENT),
        # The process noticed it too, a moment before or after XLA's text.
        (f"os.write(2, {FATAL.format('').encode()} + b'error: peer\\nrest\\n'); os._exit(1)", 1, "error: peer\n"),
        # A warning that has no consequence is printed.
        (f"os.write(2, b'W{LOG}\\n')", 0, f"W{LOG}\n"),
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
        "warning",
        "wrong input",
        "stopped",
    ),
)
def test_status_and_stderr(body, status, stderr):
    process = start(body)
    if "sleep" in body:  # its stderr stays open
        assert process.wait(15) == status
        assert process.stderr.readline() == stderr
        return
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (status, stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_sigterm_reaches_the_process_and_a_killed_supervisor_ends_it():
    process = start("signal.signal(15, lambda *_: sys.exit(9)); print(os.getpid(), flush=True); time.sleep(20)")
    process.stdout.readline()
    process.terminate()
    assert process.wait(10) == 9
    process = start("print(os.getpid(), flush=True); time.sleep(20)")
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(child)
