"""Edits of JSON files with a checksum."""

import json
import pathlib
import typing
from collections.abc import Callable

from revelio_jax import checksums


def edit_sealed(path: pathlib.Path, edit: Callable[[dict[str, typing.Any]], object]) -> None:
    """Apply ``edit`` to the object in a JSON file, and write it back with a new checksum."""
    content = checksums.unsealed(json.loads(path.read_text()))
    edit(content)
    path.write_text(json.dumps(checksums.sealed(content)))
