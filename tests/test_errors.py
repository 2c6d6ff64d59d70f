"""Failures of disk, memory and network end a command with one line; programming errors keep their traceback."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from revelio_jax import errors
from revelio_jax.errors import EnvironmentFailure, InputError, failure_line
from tests.helpers import ROOT


def raised(function):
    """Return the exception that a function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def run(code: str, shell: str = "{}", **environment: str) -> subprocess.CompletedProcess:
    """Run lines of Python under report_errors in another process, in a shell command."""
    body = "\n".join(f"    {line}" for line in code.splitlines())
    program = f"from revelio_jax.errors import *\nimport os, sys\nwith report_errors():\n{body}\n"
    command = shell.replace("{}", f'"{sys.executable}" -c "$PROGRAM"')
    environment = os.environ | {"PROGRAM": program, "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_wrong_path_has_the_reason_and_status_1(tmp_path):
    done = run(f"open({str(tmp_path / 'none')!r})")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'none'}: No such file or directory\n")


def test_wrong_input_has_status_2():
    done = run("raise InputError('a  is\\n1')")
    assert (done.returncode, done.stderr) == (2, "error: a is 1\n")


def test_a_programming_error_keeps_its_traceback():
    for code in ("raise ValueError('wrong')", "None.x", "raise RuntimeError('wrong')", "[][1]"):
        done = run(code)
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback (most recent call last)")


def test_a_variable_shows_the_traceback_of_a_failure_too():
    for code, status in (("raise InputError('x')", 2), ("open('/none')", 1)):
        done = run(code, REVELIO_TRACEBACK="1")
        assert done.returncode == status
        assert done.stderr.startswith("Traceback")
        assert done.stderr.splitlines()[-1].startswith("error: ")


def test_a_full_device_is_one_line(tmp_path):
    error = raised(lambda: pathlib.Path("/dev/full").write_text("x"))
    assert failure_line(error) == "No space left on device"
    done = run("print('x' * 100)", "{} > /dev/full", PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (1, "error: stdout cannot be written: No space left on device\n")


def test_a_reader_of_stdout_or_stderr_that_leaves_ends_the_command_without_a_message():
    for stream, pipe in (("stdout", "{} | head -1"), ("stderr", "{} 2>&1 >/dev/null | head -1")):
        code = f"for i in range(100_000):\n    print(i, file=sys.{stream})"
        done = run(code, pipe + '; echo "status ${PIPESTATUS[0]}"')
        assert (done.stdout, done.stderr) == ("0\nstatus 141\n", ""), stream


def test_memory_that_cannot_be_allocated_is_one_line_in_every_library():
    import jax.numpy as jnp
    import torch

    for allocate in (
        lambda: bytearray(2**50),
        lambda: np.zeros(2**50),
        lambda: torch.zeros(2**50),
        lambda: jnp.zeros(2**46).block_until_ready(),
    ):
        line = failure_line(raised(allocate))
        assert line is not None
        assert line.startswith("out of memory: ")
        assert len(line) < 300


def test_out_of_memory_names_the_field_to_lower():
    code = "with memory_advice('lower config.extract.batch_size'):\n    {}"
    done = run(code.format("bytearray(2**50)"))
    assert (done.returncode, done.stderr) == (1, "error: out of memory: MemoryError; lower config.extract.batch_size\n")
    assert "batch_size" not in run(code.format("open('/none')")).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its address space")
def test_a_limit_of_the_address_space_is_one_line():
    limit = "resource.setrlimit(resource.RLIMIT_AS, (700 << 20,) * 2)"
    code = f"import resource\n{limit}\nwith memory_advice('lower a field'):\n    print('ran')"
    done = run(code)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: out of memory: a limit leaves \d+ MiB of address space \(ulimit -v\); this needs at least 2048 MiB\n",
        done.stderr,
    )
    assert run(code.replace("700", "7000")).stdout == "ran\n"


def test_the_memory_of_a_gpu_is_recognized_by_its_message():
    """No GPU is at hand, so these are the messages and classes that torch and JAX document."""
    import jax
    import torch

    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB")
    assert failure_line(cuda) == "out of memory: CUDA out of memory"
    xla = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
    assert failure_line(xla) == f"out of memory: {xla}"
    assert failure_line(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")) is not None
    assert failure_line(RuntimeError("shapes differ")) is None


def test_a_lost_process_is_recognized_by_the_messages_of_jax():
    jax = pytest.importorskip("jax")
    place = "[external/gloo/gloo/transport/tcp/pair.cc:547] "
    gloo = f"FAILED_PRECONDITION: Buffer Definition Event: Gloo all-reduce failed: {place}Connection closed by peer"
    unreachable = "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader was preempted\nRPC: /x"
    for text, line in ((gloo, "Connection closed by peer"), (unreachable, unreachable.partition(". ")[0])):
        assert failure_line(jax.errors.JaxRuntimeError(text)) == f"lost contact with another process: {line}"
        assert failure_line(RuntimeError(text)) is None


def test_errors_of_other_classes_with_a_system_error_are_recognized(tmp_path):
    import safetensors.numpy
    import tensorstore as ts

    unsaved = raised(lambda: safetensors.numpy.save_file({"x": np.zeros(3)}, str(tmp_path / "none" / "x")))
    assert failure_line(unsaved) == "No such file or directory"
    store = ts.KvStore.open(f"file://{tmp_path}/x/").result()
    (tmp_path / "x").write_text("a file in place of the folder")
    assert failure_line(raised(lambda: store.write("key", b"1").result())) == "Not a directory"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_a_network_failure_is_one_line(url):
    import urllib.request

    line = failure_line(raised(lambda: urllib.request.urlopen(url, timeout=5)))
    assert line is not None
    assert line.startswith("URLError: ")


def test_errors_of_the_hub_are_one_line():
    import huggingface_hub

    error = raised(lambda: huggingface_hub.snapshot_download("someone/none", endpoint="http://127.0.0.1:9"))
    assert failure_line(error) is not None
    assert "\n" not in (failure_line(error) or "")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, EnvironmentFailure), (errno.EFBIG, EnvironmentFailure), (errno.EACCES, InputError)],
)
def test_a_full_disk_is_a_failure_and_a_forbidden_path_wrong_input(number, kind):
    error = errors.write_failure("runs/a", OSError(number, os.strerror(number)), "free some space")
    assert type(error) is kind
    assert str(error) == f"runs/a cannot be written: {os.strerror(number)}; free some space"


def test_notes_follow_the_failure():
    def full():
        with errors.failure_advice(lambda: "step 20 is saved"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def wrong():
        with errors.failure_advice(lambda: "step 20 is saved"):
            raise ValueError

    assert failure_line(raised(full)) == "No space left on device; step 20 is saved"
    assert not hasattr(raised(wrong), "__notes__")


def test_windows_is_refused_in_one_line():
    """Windows is not at hand: its Python has no fcntl, and sys.platform is win32."""
    done = run("sys.modules['fcntl'] = None\nimport revelio_jax.store")
    assert (done.returncode, done.stderr) == (2, f"error: {errors.ONLY_POSIX}\n")
    code = "import sys; sys.platform = 'win32'; from revelio_jax.commands import main; main(['train'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {errors.ONLY_POSIX}\n")
