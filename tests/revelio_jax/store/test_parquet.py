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
    opened = pyarrow.parquet.ParquetFile
    monkeypatch.setattr(
        pyarrow.parquet, "ParquetFile", lambda file, **options: given.append(file) or opened(file, **options)
    )
    parquet.read_table(data)
    memory = given[0].read_buffer()
    assert memory.to_pybytes() == data
    assert memory.address != pyarrow.py_buffer(data).address


def written(table: pyarrow.Table, **options) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


def test_every_type_is_read_as_by_arrow():
    columns = {
        "id": range(9),
        "text": ["a", None, "c"] * 3,
        "category": pyarrow.array(["a", "b", None] * 3).dictionary_encode(),
        "nested": [["a", "b"], None, []] * 3,
        "object": [{"x": 1, "y": "q"}, None, {"x": None, "y": None}] * 3,
        "empty": pyarrow.nulls(9),
        "map": pyarrow.array([[("k", "v")]] * 9, pyarrow.map_(pyarrow.string(), pyarrow.string())),
    }
    table = pyarrow.table(columns)
    read = parquet.read_table(written(table))
    assert read.schema == table.schema
    assert read.to_pylist() == table.to_pylist()
    assert parquet.read_table(written(table.slice(0, 0))).schema == table.schema
    with pytest.raises(KeyError):
        parquet.read_table(written(table), columns=["no"])


BOMBS = {  # files of less than 200 kB, each with more than 64 MiB of values
    "compressed": lambda: written(
        pyarrow.table({"p": ["x" * (1 << 24)] * 8}), compression="zstd", use_dictionary=False
    ),
    "dictionary": lambda: written(repeated(["x" * 4096], 1 << 15), store_schema=False),
    "nested": lambda: written(
        pyarrow.table({"p": pyarrow.FixedSizeListArray.from_arrays(repeated(["x" * 4096], 1 << 15)["p"].chunk(0), 2)})
    ),
    "fixed": lambda: written(pyarrow.table({"p": pyarrow.array([b"x" * 4096] * 9, pyarrow.binary(4096))})),
    "nulls": lambda: written(pyarrow.table({"p": pyarrow.nulls(1 << 21, pyarrow.int8())})),
}


def repeated(texts: list[str], times: int) -> pyarrow.Table:
    indices = pyarrow.array([0] * times, pyarrow.int32())
    return pyarrow.table({"p": pyarrow.DictionaryArray.from_arrays(indices, texts)})


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_with_a_huge_table_is_refused_before_it_is_decoded(name, monkeypatch):
    data = BOMBS[name]()
    assert len(data) < 200_000
    monkeypatch.setattr(parquet, "LARGEST_TABLE", 64 << 20)
    monkeypatch.setattr(parquet, "MOST_VALUES", 1 << 20)
    usual, pool = pyarrow.default_memory_pool(), pyarrow.system_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        with pytest.raises(
            ValueError, match=r"need more than 64 MiB|fixed size of more than 1024|at most 1,048,576 values"
        ):
            parquet.read_table(data)
    finally:
        pyarrow.set_memory_pool(usual)
    assert pool.max_memory() < 64 << 20


def test_limits_count_only_the_selected_columns(monkeypatch):
    table = pyarrow.table({"id": range(400), "a": ["x" * 99] * 400, "a.b": range(400), "c": [["y"]] * 400})
    data = written(table, row_group_size=100, use_dictionary=False)
    monkeypatch.setattr(parquet, "MOST_VALUES", 400)
    monkeypatch.setattr(parquet, "LARGEST_TABLE", 16_000)  # a row group has about 13,000 bytes, and "a" has 42,800
    for name in ("id", "a.b", "c"):
        assert parquet.read_table(data, columns=[name]) == table.select([name])
    for columns in (["id", "a.b"], None):
        with pytest.raises(ValueError, match="at most 400 values"):
            parquet.read_table(data, columns=columns)
    monkeypatch.setattr(parquet, "MOST_VALUES", 1600)
    for columns in (["a"], None):
        with pytest.raises(ValueError, match="need more than"):
            parquet.read_table(data, columns=columns)
    monkeypatch.setattr(parquet, "LARGEST_TABLE", 10_000)
    with pytest.raises(ValueError, match="need more than"):
        parquet.read_table(data, columns=["id"])


@pytest.mark.slow
def test_a_process_that_ends_after_reading_keeps_its_status(data):
    command = [sys.executable, "-c", ENDS]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(6)]
    ended = [(*process.communicate(data), process.returncode) for process in running]
    assert ended == [(None, b"", 2)] * len(running)
