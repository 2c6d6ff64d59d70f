"""Where commands that take folders of runs write, and files that replace others in one step."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from revelio_jax.errors import InputError


def out_of(given: pathlib.Path | None, runs: Sequence[str], name: str) -> pathlib.Path:
    """What --out names, else ``name`` in the run's folder, or beside the first of several.

    Raises InputError where nothing could be written there, before the work is done.
    """
    first, suffix = pathlib.Path(runs[0]), pathlib.Path(name).suffix
    out = given or (first if len(runs) == 1 else first.absolute().parent) / name
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out is {out}; it must be a file in a folder that is there")
    if out.suffix != suffix:
        raise InputError(f"--out is {out}; it must end in {suffix}")
    try:
        _part(out).touch()
        _part(out).unlink()
    except OSError as error:
        raise InputError(f"--out is {out}, which cannot be written: {error.strerror or error}") from error
    return out


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file beside ``path`` that takes its place after the block. Raises InputError where it cannot."""
    part = _part(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def _part(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".part")
