"""Prompt files in every format, and the message for every kind of malformed file."""

import csv
import importlib.util
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revelio_jax.errors import InputError
from revelio_jax.inputs.prompts import read_prompts

# Any text that a UTF-8 file can hold.
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
no_nul = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=20)
labeled = st.lists(st.fixed_dictionaries({"prompt": no_nul, "style": no_nul}), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@settings(max_examples=50)
@given(lines=st.lists(texts.filter(lambda t: "\n" not in t and "\r" not in t), max_size=8))
def test_txt_has_one_prompt_per_line(folder, lines):
    path = _write(folder / "p.txt", "\n".join([*lines, "a last one"]))
    wanted = [line for line in lines if line.strip()] + ["a last one"]
    if wanted[0].startswith("\ufeff"):  # a byte order mark at the start is not part of the text
        return
    assert read_prompts(path) == [{"id": i, "prompt": text} for i, text in enumerate(wanted)]


@settings(max_examples=50)
@given(rows=labeled)
def test_csv_jsonl_and_parquet_keep_prompts_and_labels(folder, rows):
    wanted = [{"id": i, **row} for i, row in enumerate(rows)]
    with (folder / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "style"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert read_prompts(str(folder / "p.csv")) == wanted
    path = _write(folder / "p.jsonl", "\n\n".join(map(json.dumps, rows)) + "\r\n")
    assert read_prompts(path) == wanted
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "p.parquet")
    assert read_prompts(str(folder / "p.parquet")) == wanted


def test_the_prompt_column_can_be_chosen_and_id_becomes_file_id(tmp_path):
    path = _write(tmp_path / "p.csv", '\ufeffid,caption,n\r\nx7,"a, b",1\r\nx8,"",2\r\n')
    assert read_prompts(path, "caption") == [
        {"id": 0, "prompt": "a, b", "file_id": "x7", "n": "1"},
        {"id": 1, "prompt": "", "file_id": "x8", "n": "2"},
    ]


def test_shuffle_gives_the_same_prompts_in_a_fixed_order(tmp_path):
    path = _write(tmp_path / "p.csv", "prompt,n\n" + "".join(f"p{i},{i}\n" for i in range(50)))
    plain, shuffled = read_prompts(path), read_prompts(path, shuffle=True)
    assert [row["id"] for row in shuffled] == list(range(50))
    assert [row["n"] for row in shuffled] != [row["n"] for row in plain]
    assert sorted(row["prompt"] for row in shuffled) == sorted(row["prompt"] for row in plain)
    assert all(row["prompt"] == f"p{row['n']}" for row in shuffled)
    assert read_prompts(path, shuffle=True) == shuffled


def test_missing_labels_are_null(tmp_path):
    path = _write(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "seed": 3}\n')
    assert read_prompts(path) == [
        {"id": 0, "prompt": "a", "seed": None},
        {"id": 1, "prompt": "b", "seed": 3},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "has no prompts"),
        ("p.txt", " \n\n", "has no prompts"),
        ("p.csv", "", "has no prompts"),
        ("p.csv", "prompt,style\n", "has no prompts"),
        ("p.csv", "text,style\na,b\n", "column 'prompt' .* is missing; columns: 'text', 'style'"),
        ("p.csv", "prompt,style\na,b\nc\n", "line 3 has 1 fields, the header 2"),
        ("p.csv", "prompt,prompt\na,b\n", "is repeated"),
        ("p.csv", 'prompt\n"a\n', "line 2"),
        ("p.txt", b"one\ntwo \xff\n", "not UTF-8: byte 0xff at offset 8, line 2"),
        ("p.txt", b"\xef\xbb\xbfone\n\xff", "not UTF-8: byte 0xff at offset 7, line 2"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2 is not JSON"),
        ("p.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "a"}\n', "line 2: column 'prompt'"),
        ("p.jsonl", '{"prompt": 3}\n', "prompt 0 is 3; it must be text"),
        ("p.jsonl", '{"prompt": "\\ud83d"}\n', "half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "n": ["\\ud83d"]}\n', "half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "\\ud83d": 1}\n', "half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "n": 1}\n{"prompt": "b", "n": "x"}\n', "column 'n' cannot be written"),
        ("p.jsonl", '{"prompt": "a", "n": {}}\n', "column 'n' cannot be written to a store: .* no child field"),
        ("p.jsonl", '{"prompt": "a", "n": 18446744073709551615}\n', "column 'n' cannot be written"),
        ("p.jsonl", '{"prompt": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 1 is not JSON"),
        ("p.parquet", b"no parquet", "not a usable parquet file"),
        ("p.json", "{}", "unknown suffix '.json'; allowed: .txt, .csv, .jsonl, .parquet"),
    ],
)
def test_an_unreadable_file_is_refused_with_the_reason(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_prompts(_write(tmp_path / name, content))


@pytest.mark.skipif(importlib.util.find_spec("pandas") is not None, reason="pandas knows nanoseconds")
def test_nanosecond_timestamps_are_refused(tmp_path):
    times = pyarrow.array([1], pyarrow.timestamp("ns"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "t": times}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"p\.parquet: Nanosecond"):
        read_prompts(str(tmp_path / "p.parquet"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: No such file"):
        read_prompts(str(tmp_path / "none.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        read_prompts(str(tmp_path / "folder.txt"))
