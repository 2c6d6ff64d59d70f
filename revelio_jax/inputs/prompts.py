"""Read prompts and their label columns from a file."""

import codecs
import csv
import io
import pathlib
import random
import typing

import pyarrow
import pyarrow.parquet

from revelio_jax import json_text, shipped
from revelio_jax.errors import InputError
from revelio_jax.store import parquet

Row = dict[str, typing.Any]


def read_prompts(path: str | None, column: str = "prompt", shuffle: bool = False) -> list[Row]:
    """Return a dict per prompt: ``id`` (its number), ``prompt``, and every other column as a label.

    A .txt file has one prompt per line; blank lines are skipped. In .csv, .jsonl and .parquet files ``column`` holds
    the prompt, which may be empty (the unconditional prompt). A column called id becomes file_id. ``shuffle`` always
    gives the same random order. Raise InputError if the file cannot be read completely.
    """
    readers = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if not path:
        raise InputError(f"config.extract.prompts is not set; it must be a file: {', '.join(readers)}")
    file = pathlib.Path(shipped.locate(path))
    if file.suffix not in readers:
        raise InputError(f"prompts {path}: unknown suffix {file.suffix!r}; allowed: {', '.join(readers)}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"prompts {path}: {error.strerror}") from error
    rows = readers[file.suffix](path, data, column)
    if not rows:
        raise InputError(f"prompts {path}: the file has no prompts")
    rows = _samples(path, rows, column)
    if shuffle:
        random.Random(0).shuffle(rows)
        rows = [row | {"id": i} for i, row in enumerate(rows)]
    return rows


def check_columns(where: str, samples: list[Row]) -> None:
    """Raise InputError if a column cannot be written to a store. All samples have the same columns."""
    for name in samples[0]:
        try:
            table = pyarrow.table({name: [sample[name] for sample in samples]})
            pyarrow.parquet.ParquetWriter(pyarrow.MockOutputStream(), table.schema).close()
        except (pyarrow.ArrowException, OverflowError, UnicodeError) as error:
            raise InputError(f"{where}: column {name!r} cannot be written to a store: {error}") from error


def _txt(path: str, data: bytes, column: str) -> list[Row]:
    return [{column: line} for line in _lines(path, data) if line.strip()]


def _csv(path: str, data: bytes, column: str) -> list[Row]:
    reader = csv.reader(io.StringIO(_text(path, data), newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, None)
        if header is None:
            return []
        if len(set(header)) < len(header):
            raise InputError(f"prompts {path}: a column name is repeated in {', '.join(header)}")
        _require(path, column, header)
        for fields in reader:
            if not fields:  # a blank line; an empty prompt is written as ""
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"prompts {path}: line {reader.line_num} has {len(fields)} fields, the header {len(header)}"
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise InputError(f"prompts {path}: line {reader.line_num}: {error}") from error
    return rows


def _jsonl(path: str, data: bytes, column: str) -> list[Row]:
    rows = []
    for number, line in enumerate(_lines(path, data), 1):
        if not line.strip():
            continue
        try:
            row = json_text.parse(line)
        except ValueError as error:
            raise InputError(f"prompts {path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"prompts {path}: line {number} is not a JSON object: {line[:40]}")
        _require(path, column, row, f"line {number}: ")
        rows.append(row)
    return rows


def _parquet(path: str, data: bytes, column: str) -> list[Row]:
    try:
        table = parquet.read_table(data)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"prompts {path}: not a usable parquet file: {error}") from error
    _require(path, column, table.column_names)
    try:
        return table.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:  # Python's times have no nanoseconds
        raise InputError(f"prompts {path}: {error}") from error


def _require(path: str, column: str, columns: typing.Iterable[str], where: str = "") -> None:
    if column not in columns:
        raise InputError(
            f"prompts {path}: {where}column {column!r} (config.extract.prompt_column) is missing; "
            f"columns: {', '.join(map(repr, columns)) or 'none'}"
        )


def _samples(path: str, rows: list[Row], column: str) -> list[Row]:
    """Return rows with the same columns, in the form of the store's samples."""
    names = {"id": "file_id", column: "prompt"}
    columns = list(dict.fromkeys(key for row in rows for key in row if key != column))
    labels = {key: names.get(key, key) for key in columns}
    if "prompt" in labels.values() or len(set(labels.values())) < len(labels):
        raise InputError(f"prompts {path}: two columns would be called 'prompt' or 'file_id'; rename one")
    samples = []
    for i, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise InputError(f"prompts {path}: prompt {i} is {repr(row[column])[:80]}; it must be text")
        samples.append({"id": i, "prompt": row[column]} | {labels[key]: row.get(key) for key in columns})
    check_columns(f"prompts {path}", samples)
    return samples


def _lines(path: str, data: bytes) -> list[str]:
    return [line.removesuffix("\r") for line in _text(path, data).split("\n")]


def _text(path: str, data: bytes) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(data.removeprefix(codecs.BOM_UTF8))
        line = data[:start].count(b"\n") + 1
        raise InputError(
            f"prompts {path}: not UTF-8: byte {data[start]:#04x} at offset {start}, line {line}"
        ) from error
