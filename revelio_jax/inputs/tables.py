"""Read rows from files: CSV, TSV, JSON, JSON Lines and parquet, and lines from text files."""

import codecs
import csv
import io
import typing
from collections.abc import Callable, Iterable

import pyarrow

from revelio_jax import json_text
from revelio_jax.errors import InputError
from revelio_jax.store import parquet

Row = dict[str, typing.Any]
ColumnCheck = Callable[[Iterable[str], str], None]
"""A function of column names and the place of the row, for example "line 2: ", that raises InputError."""


def read_rows(what: str, suffix: str, data: bytes, check: ColumnCheck | None = None) -> list[Row]:
    """Return the rows in the bytes of a file with one of SUFFIXES. ``what`` names the file in messages.

    A .json file is a list of objects, or one object, which becomes one row. ``check`` is called with the columns: of
    each row in JSON files, otherwise once. Raise InputError if the file is malformed.
    """
    return _READERS[suffix](what, data, check or _accept)


def lines(what: str, data: bytes) -> list[str]:
    """Return the lines of a UTF-8 text without their ends. Raise InputError if the text is not UTF-8."""
    return [line.removesuffix("\r") for line in _text(what, data).split("\n")]


def _accept(columns: Iterable[str], place: str) -> None:
    pass


def _csv(what: str, data: bytes, check: ColumnCheck, delimiter: str = ",") -> list[Row]:
    reader = csv.reader(io.StringIO(_text(what, data), newline=""), strict=True, delimiter=delimiter)
    rows: list[Row] = []
    try:
        header = next(reader, None)
        if header is None:
            return []
        if len(set(header)) < len(header):
            raise InputError(f"{what}: a column name is repeated in {', '.join(header)}")
        check(header, "")
        for fields in reader:
            if not fields:  # a blank line; an empty prompt is written as ""
                continue
            if len(fields) != len(header):
                raise InputError(f"{what}: line {reader.line_num} has {len(fields)} fields, the header {len(header)}")
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise InputError(f"{what}: line {reader.line_num}: {error}") from error
    return rows


def _tsv(what: str, data: bytes, check: ColumnCheck) -> list[Row]:
    return _csv(what, data, check, delimiter="\t")


def _json(what: str, data: bytes, check: ColumnCheck) -> list[Row]:
    try:
        content = json_text.parse(_text(what, data))
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{what}: not JSON: {error}") from error
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{what}: item {number} is not a JSON object")
        check(row, f"item {number}: ")
    return rows


def _jsonl(what: str, data: bytes, check: ColumnCheck) -> list[Row]:
    rows = []
    for number, line in enumerate(lines(what, data), 1):
        if not line.strip():
            continue
        try:
            row = json_text.parse(line)
        except ValueError as error:
            raise InputError(f"{what}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{what}: line {number} is not a JSON object: {line[:40]}")
        check(row, f"line {number}: ")
        rows.append(row)
    return rows


def _parquet(what: str, data: bytes, check: ColumnCheck) -> list[Row]:
    try:
        table = parquet.read_table(data)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{what}: not a usable parquet file: {error}") from error
    check(table.column_names, "")
    try:
        return table.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:  # Python's times have no nanoseconds
        raise InputError(f"{what}: {error}") from error


def _text(what: str, data: bytes) -> str:
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(data.removeprefix(codecs.BOM_UTF8))
        line = data[:start].count(b"\n") + 1
        raise InputError(f"{what}: not UTF-8: byte {data[start]:#04x} at offset {start}, line {line}") from error


_READERS = {".csv": _csv, ".tsv": _tsv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
SUFFIXES = tuple(_READERS)
