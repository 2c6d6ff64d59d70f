"""Forked processes behave as new interpreters do: arguments, files, variables, statuses and signals."""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import ROOT, forks

FACTS = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ.get("XLA_FLAGS"), __name__, sys.modules["__main__"].__name__)
print("warning", file=sys.stderr)
"""


def plain(arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


@pytest.mark.parametrize("kind", ["-c", "script", "-m"])
def test_a_fork_has_the_output_of_a_new_interpreter(tmp_path, kind):
    (tmp_path / "facts.py").write_text(FACTS)
    start = {"-c": ["-c", FACTS], "script": ["facts.py"], "-m": ["-m", "facts"]}[kind]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = forks.run([*start, "--a=1", tmp_path], cwd=tmp_path, env=environment)
    expected = plain([*start, "--a=1", str(tmp_path)], cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "warning\n")
    assert expected.stderr == "warning\n"


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'end')", 0, ""),
    ],
)
def test_a_fork_has_the_status_of_a_new_interpreter(code, status, last):
    done, expected = forks.run(["-c", code]), plain(["-c", code])
    assert done.returncode == expected.returncode == status
    assert done.stdout == expected.stdout
    assert done.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:] == ([last] if last else [])


def test_libraries_are_loaded_before_the_fork():
    done = forks.run(["-c", "import sys; print('numpy' in sys.modules, 'revelio_jax' in sys.modules)"])
    assert done.stdout == "True False\n"


def test_ctrl_c_and_other_signals_reach_a_fork():
    code = "import time; print('started', flush=True); time.sleep(600)"
    for number in (signal.SIGINT, signal.SIGTERM):
        process = forks.start(["-c", code])
        assert isinstance(process, forks.Process)
        assert process.stdout.readline() == "started\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == -number
        process.communicate()


def test_another_variable_needs_a_new_interpreter(monkeypatch):
    monkeypatch.setenv("ANOTHER_VARIABLE", "1")
    process = forks.start(["-c", "import os, sys; print(os.environ['ANOTHER_VARIABLE'], 'numpy' in sys.modules)"])
    assert isinstance(process, subprocess.Popen)
    assert process.communicate() == ("1 False\n", "")


def test_a_fork_that_does_not_end_in_time_is_killed():
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(["-c", "import time; time.sleep(600)"], cwd=ROOT, timeout=0.2)
