"""The JSON file that a benchmark writes with ``--json``."""

import json
import pathlib
import typing

from revelio_jax import files
from revelio_jax.errors import InputError


def check(path: str | None) -> None:
    """Raise InputError, before anything is measured, if the folder of ``--json`` does not exist."""
    folder = pathlib.Path(path or "").parent
    if not folder.is_dir():
        raise InputError(f"--json is {path!r}; the folder {str(folder)!r} does not exist")


def write(path: str | None, rows: typing.Any) -> None:
    """Write ``rows`` to ``path`` in one step; do nothing if it is None."""
    if path:
        files.write_text(pathlib.Path(path), json.dumps(rows, indent=1) + "\n")
