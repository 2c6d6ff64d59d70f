"""Tables from bytes: what is read, and that a process which ends right after has its own status."""

import io
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from revelio_jax.store import parquet

ENDS = """
import sys
from revelio_jax.store import parquet
sys.setswitchinterval(100)  # no thread of Arrow's gets the interpreter before it ends
parquet.read_table(sys.stdin.buffer.read())
raise SystemExit(2)
"""


@pytest.fixture(scope="module")
def data():
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": range(9), "prompt": list("abcdefghi")}), file)
    return file.getvalue()


def test_read_table_returns_the_written_table(data):
    assert parquet.read_table(data, columns=["prompt"]).to_pydict() == {"prompt": list("abcdefghi")}
    with pytest.raises(pyarrow.ArrowInvalid):
        parquet.read_table(data[:-5])
    with pytest.raises(pyarrow.ArrowInvalid):
        parquet.read_table(b"")


def test_arrow_reads_a_copy_of_the_bytes(data, monkeypatch):
    given = []
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda source, **options: given.append(source))
    parquet.read_table(data)
    memory = given[0].read_buffer()
    assert memory.to_pybytes() == data
    assert memory.address != pyarrow.py_buffer(data).address


@pytest.mark.slow
def test_a_process_that_ends_after_reading_keeps_its_status(data):
    command = [sys.executable, "-c", ENDS]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    ended = [(*process.communicate(data), process.returncode) for process in running]
    assert ended == [(None, b"", 2)] * len(running)
