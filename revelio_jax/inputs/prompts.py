"""Read prompts and their label columns from a file."""

import functools
import pathlib
import random
import typing

import pyarrow
import pyarrow.parquet

from revelio_jax import shipped
from revelio_jax.errors import InputError
from revelio_jax.inputs import tables
from revelio_jax.inputs.tables import Row

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")


def read_prompts(path: str | None, column: str = "prompt", shuffle: bool = False) -> list[Row]:
    """Return a dict per prompt: ``id`` (its number), ``prompt``, and every other column as a label.

    A .txt file has one prompt per line; blank lines are skipped. In .csv, .jsonl and .parquet files ``column`` holds
    the prompt, which may be empty (the unconditional prompt). A column called id becomes file_id. ``shuffle`` always
    gives the same random order. Raise InputError if the file cannot be read completely.
    """
    if not path:
        raise InputError(f"config.extract.prompts is not set; it must be a file: {', '.join(SUFFIXES)}")
    file = pathlib.Path(shipped.locate(path))
    if file.suffix not in SUFFIXES:
        raise InputError(f"prompts {path}: unknown suffix {file.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"prompts {path}: {error.strerror}") from error
    if file.suffix == ".txt":
        rows = [{column: line} for line in tables.lines(f"prompts {path}", data) if line.strip()]
    else:
        check = functools.partial(_require, path, column)
        rows = tables.read_rows(f"prompts {path}", file.suffix, data, check)
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


def _require(path: str, column: str, columns: typing.Iterable[str], where: str) -> None:
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
