"""The file that a benchmark writes with ``--json``: whole, or not at all."""

import json
import os
import pathlib
import typing

from revelio_jax.errors import InputError


def checked(path: str) -> str:
    """The value of ``--json``, before anything is measured. Raises InputError."""
    folder = pathlib.Path(path).parent
    if path and not folder.is_dir():
        raise InputError(f"--json is {path!r}; there is no folder {str(folder)!r}")
    return path


def write(path: str, rows: typing.Any) -> None:
    """Nothing where ``path`` is empty."""
    if path:
        part = pathlib.Path(f"{path}.part")
        part.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(part, path)
